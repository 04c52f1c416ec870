"""The layers of a model: one global list, of which each stage of a route holds a stretch.

Of a built-in model only the layers asked for are ever made. What a layer's initial weights are depends on the seed and
its place in the global list alone, so every way of splitting the model starts from equal weights. The first layer gets
token ids (batch, sequence); each later one what the layer before it returned, one tensor; the last returns logits
(batch, sequence, vocabulary).

A parameter is known everywhere by its global name, `layers.<index>.<parameter>`. One that two layers share (a head tied
to the embedding) has one name, the earlier layer's; each rank that has either layer holds it, equal on all of them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from pipelinejob.spec import Data, Model
from pipelinejob_trainer.data import mix
from pipelinejob_trainer.models import entrypoint, gpt


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerEntry:
    """One layer and its place in the global list. `tied` maps its parameters that are another layer's to their name."""

    index: int
    name: str
    module: nn.Module
    tied: Mapping[str, str] = field(default_factory=dict)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Give the layer's parameters by their global names."""
        for name, parameter in self.module.named_parameters(remove_duplicate=False):
            own = _global_name(self.index, name)
            yield self.tied.get(own, own), parameter

    def named_buffers(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Give the layer's buffers by their global names; what it declares as not persistent is its own to make."""
        kept = self.module.state_dict(keep_vars=True)
        for name, buffer in self.module.named_buffers():
            if name in kept:
                yield _global_name(self.index, name), buffer


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The chunks that one rank works on, and which parameters of the whole model several layers share.

    `shared` maps a global name to the layers that use it. A layer that stands in two chunks is the same object in both,
    and so is a shared parameter.
    """

    chunks: tuple[tuple[LayerEntry, ...], ...]
    shared: Mapping[str, tuple[int, ...]]

    @property
    def layers(self) -> Iterator[LayerEntry]:
        """Give the layers, each once."""
        return iter({layer.index: layer for chunk in self.chunks for layer in chunk}.values())

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Give all parameters by their global names, each once."""
        return {name: each for layer in self.layers for name, each in layer.named_parameters()}

    def named_buffers(self) -> dict[str, torch.Tensor]:
        """Give all buffers that a checkpoint keeps, by their global names."""
        return {name: each for layer in self.layers for name, each in layer.named_buffers()}


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
    return list(build_part(model, data, stretches=[(first, end)], seed=seed).chunks[0])


def build_part(model: Model, data: Data, *, stretches: Sequence[tuple[int, int]], seed: int) -> Part:
    """Make the layers of a rank's chunks, each a stretch [first, end) of the global list.

    Raises UserError when the user's entry point cannot be used.
    """
    source = _source(model, data, seed)
    entries = {index: source.entry(index) for first, end in stretches for index in range(first, end)}
    _share(entries, source)
    return Part(
        chunks=tuple(tuple(entries[index] for index in range(first, end)) for first, end in stretches),
        shared=_users(source.tied),
    )


def layer_of(name: str) -> int:
    """Give the layer that a global name is of."""
    return int(name.split(".", 2)[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """What makes each layer of a model. `tied` maps global names to the global names that they are known by instead."""

    parts: Sequence[tuple[str, Callable[[], nn.Module]]]
    tied: Mapping[str, str]
    seed: int

    def entry(self, index: int) -> LayerEntry:
        name, make = self.parts[index]
        tied = {mine: theirs for mine, theirs in self.tied.items() if layer_of(mine) == index}
        with _seeded(self.seed, index):
            return LayerEntry(index=index, name=name, module=make(), tied=tied)


def _source(model: Model, data: Data, seed: int) -> _Source:
    if model.gpt is not None:
        sizes, sequence_length = model.gpt, data.sequence_length
        parts = [gpt.part(sizes, index=i, sequence_length=sequence_length) for i in range(gpt.num_layers(sizes))]
        return _Source(parts=parts, tied=gpt.tied(sizes), seed=seed)
    assert model.entrypoint is not None, "the spec demands one of gpt and entrypoint"
    with _seeded(seed, 0):
        layers = entrypoint.load(model.entrypoint, model.arguments, expected=num_layers(model))
    return _Source(parts=layers.parts, tied=layers.tied, seed=seed)


def _share(entries: dict[int, LayerEntry], source: _Source) -> None:
    """Put the owner's parameter where a layer borrows it; where the owner is on another rank, its initial value."""
    owners = dict(entries)
    for entry in entries.values():
        for mine, theirs in entry.tied.items():
            owner = owners.setdefault(layer_of(theirs), source.entry(layer_of(theirs)))
            _set_parameter(entry.module, _local_name(mine), owner.module.get_parameter(_local_name(theirs)))


def _set_parameter(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    path, _, last = name.rpartition(".")
    setattr(module.get_submodule(path), last, parameter)


def _users(tied: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    return {
        name: (layer_of(name), *(layer_of(user) for user, owner in tied.items() if owner == name))
        for name in tied.values()
    }


def _global_name(index: int, name: str) -> str:
    return f"layers.{index}.{name}"


def _local_name(name: str) -> str:
    return name.split(".", 2)[2]


@contextmanager
def _seeded(seed: int, index: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(mix(seed, index))
        yield
