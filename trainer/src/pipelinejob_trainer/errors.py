"""Errors of a stage's process, named for who can do something about them; `main` makes exit codes of them, once."""

from pipelinejob.errors import PipelineJobError


class UserError(PipelineJobError):
    """The user's model, data or manifest is wrong: the same again if retried.

    `reason` is one CamelCase word for the termination message; the sentence gives the value, the rule and the way out.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class PeerLostError(PipelineJobError):
    """Another rank went away in the middle of a step; that one's exit code counts, this one's does not."""


class SupersededError(PeerLostError):
    """A newer attempt of this job has taken over; this one must leave its checkpoints alone."""


class StoppedError(PipelineJobError):
    """This stage was asked to stop, and has done what it had to do first."""
