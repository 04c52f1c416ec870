"""`pipelinejob plan`: what would be done and what is expected of it, touching nothing."""

from pipelinejob_operator.cli.plan.command import plan

__all__ = ["plan"]
