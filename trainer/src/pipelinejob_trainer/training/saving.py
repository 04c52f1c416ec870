"""Checkpoints within the training loop: written while it waits, or beside it and published a few steps later."""

import time

from pipelinejob_trainer.checkpoint.background import BackgroundSave
from pipelinejob_trainer.checkpoint.checkpoints import Checkpoints
from pipelinejob_trainer.checkpoint.snapshot import Snapshot
from pipelinejob_trainer.data.position import TextPosition
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

    def save(self, state: Snapshot, place: TextPosition, *, waits: bool) -> None:
        """Save the state, or begin to, beside training; what was begun before is published first.

        Raises CheckpointFailedError, PeerLostError.
        """
        self.publish()
        self._status.begin_checkpoint()
        began = time.perf_counter()
        if not waits:
            self._unpublished = BackgroundSave(self._checkpoints, state, place)
            return
        self._checkpoints.save(state, place)
        self._saved(state.step, began)

    def publish(self) -> None:
        """Publish the checkpoint that was written beside training, if there is one. Raises as `save` does."""
        if self._unpublished is None:
            return
        began, save = time.perf_counter(), self._unpublished
        save.publish()
        self._unpublished = None
        self._saved(save.step, began)

    def _saved(self, step: int, began: float) -> None:
        self._not_finite.saved()
        self._status.add_checkpoint(step=step, seconds=time.perf_counter() - began)
