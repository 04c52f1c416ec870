"""Targets of a loss: the token that each one is, or that it does not count."""

IGNORED = -100  # a target that does not count, as torch's cross entropy has it
