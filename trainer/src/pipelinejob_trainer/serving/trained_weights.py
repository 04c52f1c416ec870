"""What is served of a job that trained: a stage's layers as a checkpoint holds them, read where they lie."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipelinejob.contract.trained import Trained
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.checkpoint.folder import Checkpoint, CheckpointFolder
from pipelinejob_trainer.checkpoint.shards import DamagedCheckpointError
from pipelinejob_trainer.export.families import target_of
from pipelinejob_trainer.export.source import Source
from pipelinejob_trainer.models.huggingface.cut import Cut, materialise
from pipelinejob_trainer.models.identity import layer_of, places

_POSITIONS = "parameter/layers.0.position.weight"


class TrainedWeights:
    """A checkpoint, of any split, as the model of transformers that equals the trained one.

    `positions` is how long a text may be where the model itself does not say. Raises UserError for
    a checkpoint of another model, or one that cannot be served.
    """

    def __init__(self, trained: Trained, checkpoint: Checkpoint, *, positions: int) -> None:
        if checkpoint.manifest.base is not None:
            raise UserError(
                "NotServable",
                f"checkpoint {checkpoint.path}: holds adapters (spec.training.lora), and no model; write both as a"
                " folder with `pipelinejob export`, and name that in spec.model.huggingFace.path",
            )
        contents = checkpoint.contents()
        if _POSITIONS in contents.names:
            positions = len(contents.tensor(_POSITIONS))
        data = trained.data.model_copy(update={"sequence_length": positions})
        self._source = Source(trained.model_copy(update={"data": data}), checkpoint)
        self.step = checkpoint.step
        target = target_of(self._source.trained)
        if target is None:
            raise UserError(
                "NotServable",
                "spec.model: layers of your own cannot be served, for no model of transformers is known to equal them",
            )
        self._target = target

    @property
    def config(self) -> Any:
        """The config of transformers' model."""
        return self._target.model.config

    @cached_property
    def _layers(self) -> dict[int, Mapping[str, torch.Tensor]]:
        return {}

    def fill(self, cut: Cut, first: int, end: int) -> None:
        """Give layers [first, end) of a cut model the checkpoint's values; those tied to another layer too."""
        for index in range(first, end):
            for place in places(index, materialise(cut, index)):
                if place.tensor is None or (place.is_buffer and not place.is_kept):
                    continue
                value = self._value(cut, place.name_by(cut.tied))
                place.put(value if place.is_buffer else nn.Parameter(value, requires_grad=False))
        self._layers.clear()

    def _value(self, cut: Cut, name: str) -> torch.Tensor:
        index, full = layer_of(name), cut.names.full(name)
        if index not in self._layers:
            self._layers[index] = self._target.named(self._source.layer(index))
        value = self._layers[index].get(full)
        if value is None:
            raise self._source.mismatch(f"it has nothing for {full}")
        return value


def of_step(path: Path, step: int) -> Checkpoint | None:
    """Return the checkpoint of a step, which another stage has verified; None if it is gone meanwhile.

    `path` is the folder of all, or that step's own.
    """
    folder = CheckpointFolder(path)
    if not folder.steps() and path == CheckpointFolder(path.parent).path(step):
        folder = CheckpointFolder(path.parent)
    try:
        checkpoint = folder.open(step) if step in folder.steps() else None
        if checkpoint is not None:
            checkpoint.check_files()
    except DamagedCheckpointError:
        return None
    return checkpoint
