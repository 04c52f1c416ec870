"""Checkpoints within the training loop: written while it waits, or beside it and published a few steps later."""

import time
from collections.abc import Callable, Iterable

from pipelinejob_trainer.checkpoint.background import BackgroundSave
from pipelinejob_trainer.checkpoint.checkpoints import CheckpointFailedError, Checkpoints
from pipelinejob_trainer.checkpoint.snapshot import Snapshot
from pipelinejob_trainer.data.position import TextPosition
from pipelinejob_trainer.process.output import warn
from pipelinejob_trainer.process.stage_status import StageStatus
from pipelinejob_trainer.training.not_finite import NotFinitePolicy


class Saving:
    """Saves a rank's part of each; every rank calls it at the same points."""

    def __init__(self, checkpoints: Checkpoints, status: StageStatus, not_finite: NotFinitePolicy) -> None:
        self._checkpoints = checkpoints
        self._status = status
        self._not_finite = not_finite
        self._unpublished: BackgroundSave | None = None

    @property
    def has_written(self) -> bool:
        """Whether this rank's file of a checkpoint to be published is there, or could not be written."""
        return self._unpublished is not None and self._unpublished.is_written()

    def save(self, state: Snapshot, place: TextPosition, *, waits: bool, is_last: bool) -> None:
        """Save the state, or begin to, beside training; what was begun before is published first.

        One that could not be written is told of and passed over; if it is the last,
        CheckpointFailedError is raised. Raises PeerLostError.
        """
        self.publish()
        self._status.begin_checkpoint()
        if not waits:
            self._unpublished = BackgroundSave(self._checkpoints, state, place)
            return
        failure = self._finish(state.step, lambda: self._checkpoints.save(state, place))
        if is_last and failure is not None:
            raise failure
        if is_last:
            self._tell_of_copies(self._checkpoints.await_copies())

    def publish(self) -> None:
        """Publish the checkpoint that was written beside training, if there is one. Raises PeerLostError."""
        if self._unpublished is None:
            return
        save, self._unpublished = self._unpublished, None
        self._finish(save.step, save.publish)

    def _finish(self, step: int, work: Callable[[], None]) -> CheckpointFailedError | None:
        began = time.perf_counter()
        try:
            work()
        except CheckpointFailedError as error:
            warn(f"{error}; the checkpoint before it stays, and the next is tried at its step")
            self._status.add_failed_checkpoint(str(error))
            return error
        self._not_finite.saved()
        self._status.add_checkpoint(step=step, seconds=time.perf_counter() - began)
        self._tell_of_copies(self._checkpoints.take_failures())
        return None

    def _tell_of_copies(self, failures: Iterable[str]) -> None:
        for failure in failures:
            self._status.add_failed_checkpoint(failure)
