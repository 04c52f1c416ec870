"""Errors of a stage's process, named for who can fix them.

`process.termination` maps them to exit codes.
"""

from pipelinejob.base.errors import PipelineJobError


class UserError(PipelineJobError):
    """The user's model, data or manifest is wrong; a retry would end the same.

    `reason` is one CamelCase word for the termination message; the sentence gives the value, the
    rule and the way out.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class LayerError(UserError):
    """A user's layer, or the loss of its output, raised; `__cause__` is the original exception.

    Callers add where it happened (step, stage, micro-batch) with `within`.
    """

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(reason, sentence)
        self._sentence = sentence
        self._places: tuple[str, ...] = ()

    def within(self, place: str) -> None:
        """Add where this happened, in front of what is known already."""
        self._places = (place, *self._places)

    def __str__(self) -> str:
        return ", ".join((*self._places, self._sentence))


class ChangedInPlaceError(RuntimeError):
    """A backward pass needs a tensor that was changed after its layer had used it."""


class PeerLostError(PipelineJobError):
    """Another rank went away in the middle of a step; its exit code counts, not this one's."""


class SupersededError(PeerLostError):
    """A newer attempt of this job has taken over; this one must leave its checkpoints alone."""


class PeersLeaveError(PeerLostError):
    """Other ranks were asked to stop, and leave after a step; this one keeps its process, and waits for the next."""

    def __init__(self, message: str, leaving: frozenset[int]) -> None:
        super().__init__(message)
        self.leaving = leaving


class GangMovesError(PipelineJobError):
    """All ranks leave this incarnation after a step, for the one of this number, which has other members."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


class NotNeededError(PipelineJobError):
    """The job goes on with fewer replicas, and without this rank: its end is no failure."""


class StoppedError(PipelineJobError):
    """This stage was asked to stop, and has saved its state first."""


class LeftError(PipelineJobError):
    """This stage alone was asked to stop; the others go on with one that takes its place.

    `reason` is one CamelCase word for the termination message.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
