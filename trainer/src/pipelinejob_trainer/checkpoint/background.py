"""A checkpoint that is written beside training, from a copy of the state at a step border."""

import threading
from dataclasses import replace

import torch

from pipelinejob_trainer.checkpoint.checkpoints import CheckpointFailedError, Checkpoints
from pipelinejob_trainer.checkpoint.snapshot import Snapshot
from pipelinejob_trainer.data.position import TextPosition


class BackgroundSave:
    """This rank's part of one checkpoint: a thread writes it; then every rank calls `publish`, at the same point."""

    def __init__(self, checkpoints: Checkpoints, snapshot: Snapshot, place: TextPosition) -> None:
        self._checkpoints = checkpoints
        copied = {name: _copy(tensor) for name, tensor in snapshot.tensors.items()}
        self._snapshot = replace(snapshot, tensors=copied)
        self._place = place
        self._written: bytes | CheckpointFailedError = b""
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._write, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def step(self) -> int:
        """The step after which the state was copied."""
        return self._snapshot.step

    def is_written(self) -> bool:
        """Return whether this rank's file is there, or could not be written."""
        return not self._thread.is_alive()

    def publish(self) -> None:
        """Wait for this rank's file, and publish the checkpoint. Raises what `Checkpoints.save` does."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        self._checkpoints.publish(self._snapshot, self._place, self._written)

    def _write(self) -> None:
        try:
            self._written = self._checkpoints.write(self._snapshot)
        except CheckpointFailedError as error:
            self._written = error
        except BaseException as error:  # noqa: BLE001  # raised where it is waited for
            self._error = error


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)
