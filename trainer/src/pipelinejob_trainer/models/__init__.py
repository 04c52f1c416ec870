"""The layers of a model: one global list, of which a stage holds a stretch.

Of a built-in model only the layers [first, end) are ever made. What a layer's initial weights are depends on the seed
and its place in the global list alone, so every way of splitting the model starts from equal weights. The first layer
gets token ids (batch, sequence); each later one what the layer before it returned, one tensor; the last returns
logits (batch, sequence, vocabulary).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from pipelinejob.spec import Data, Model
from pipelinejob_trainer.data import mix
from pipelinejob_trainer.models import entrypoint, gpt


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerEntry:
    """One layer and its place in the global list; its parameters are called `layers.<index>.<parameter>`."""

    index: int
    name: str
    module: nn.Module


def num_layers(model: Model) -> int:
    """Count the global list; embedding and head of a built-in model are layers too."""
    if model.gpt is not None:
        return gpt.num_layers(model.gpt)
    assert model.num_layers is not None, "the spec demands numLayers beside entrypoint"
    return model.num_layers


def build_layers(model: Model, data: Data, *, first: int, end: int, seed: int) -> list[LayerEntry]:
    """Make the layers [first, end) of the global list.

    Raises UserError when the user's entry point cannot be used.
    """
    if model.gpt is not None:
        parts = [gpt.part(model.gpt, index=index, sequence_length=data.sequence_length) for index in range(first, end)]
    else:
        assert model.entrypoint is not None, "the spec demands one of gpt and entrypoint"
        with _seeded(seed, 0):
            parts = entrypoint.load(model.entrypoint, model.arguments, expected=num_layers(model))[first:end]
    entries = []
    for index, (name, make) in enumerate(parts, start=first):
        with _seeded(seed, index):
            entries.append(LayerEntry(index=index, name=name, module=make()))
    return entries


@contextmanager
def _seeded(seed: int, index: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(mix(seed, index))
        yield
