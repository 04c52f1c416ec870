"""The layers of a model: one global list, of which each stage of a route holds a stretch.

Of a built-in model only the requested layers are made. A layer's initial weights depend on the
seed and its index alone, so every split of the model starts from equal weights. The first layer
receives token ids (batch, sequence), each later one the output of the layer before it, a tensor or
a nesting; the last returns logits (batch, sequence, vocabulary).

A parameter or buffer has a global name, `layers.<index>.<name>`. One in several places, of one
layer or of several (a head tied to the embedding), has the name of the first; each rank that has
any of these layers holds it, equal on all of them. `identity.py` finds which tensors are the same,
and what is refused.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from pipelinejob.spec.families.family import BuiltIn
from pipelinejob.spec.job import Data, Lora, Model
from pipelinejob_trainer.base.seeds import mix, seed_python_and_numpy
from pipelinejob_trainer.base.user_code import preparing
from pipelinejob_trainer.communication.expert_group import UNDIVIDED, ExpertGroup
from pipelinejob_trainer.communication.layer_group import LayerGroup
from pipelinejob_trainer.communication.tensor_group import ALONE, TensorGroup
from pipelinejob_trainer.models.dividing import divide
from pipelinejob_trainer.models.families import family_of
from pipelinejob_trainer.models.huggingface import layers as huggingface
from pipelinejob_trainer.models.identity import Made, Place, fill, immutable, layer_of, new_buffer, of_layer, places
from pipelinejob_trainer.models.lora import Adapters, adapt, digest_of, hold_short
from pipelinejob_trainer.models.master_weights import to_masters, to_training
from pipelinejob_trainer.models.own import entrypoint
from pipelinejob_trainer.models.portions import Portion
from pipelinejob_trainer.models.walk import Runner, Walk, one_after_another


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerEntry:
    """One layer and its place in the global list.

    `tied` maps the names of its tied places and modules to their own names; `immutable` maps
    tensors that must not change to the reason. `runner` runs it together with its neighbours.
    """

    index: int
    name: str
    module: nn.Module
    tied: Mapping[str, str] = field(default_factory=dict)
    immutable: Mapping[str, str] = field(default_factory=dict)
    runner: Runner | None = None

    def places(self) -> Iterator[tuple[str, Place]]:
        """Return all places of its tensors, with the tensors' names."""
        return ((place.name_by(self.tied), place) for place in places(self.index, self.module))

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Return the layer's parameters by their global names, each once."""
        found = {name: place.tensor for name, place in self.places() if not place.is_buffer}
        return ((name, each) for name, each in found.items() if isinstance(each, nn.Parameter))


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The chunks of one rank, and which tensors and modules of the model layers share.

    `shared` maps a global name to the layers that use it; `immutable` maps tensors that must not
    change to the reason. A layer in two chunks is the same object in both, and so is a shared
    tensor. `elsewhere` are trained parameters of other ranks' layers, if a user's function made
    them here. `adapters` is what low-rank adapters were given to, if there are any. `remarks` are
    for the user's eyes. `portions` are what this rank holds of tensors that the tensor group
    divides, or the expert group, or both, by global name; it holds all of the others. Of so many
    tokens, `vocabulary`, it gives the logits of its part; None where nothing says how many there
    are.
    """

    chunks: tuple[tuple[LayerEntry, ...], ...]
    shared: Mapping[str, tuple[int, ...]]
    immutable: Mapping[str, str] = field(default_factory=dict)
    elsewhere: Mapping[str, weakref.ref[torch.Tensor]] = field(default_factory=dict)
    adapters: Adapters = field(default_factory=Adapters)
    remarks: tuple[str, ...] = ()
    portions: Mapping[str, Portion] = field(default_factory=dict)
    vocabulary: int | None = None
    tensor_group: TensorGroup = ALONE
    expert_group: ExpertGroup = UNDIVIDED

    def is_divided(self, name: str, group: LayerGroup) -> bool:
        """Return whether a group divides a tensor."""
        return name in self.portions and self.portions[name].is_over(group)

    def own(self, name: str, whole: torch.Tensor) -> torch.Tensor:
        """Return what this rank holds of a whole tensor: all of one that is not divided."""
        return self.portions[name].of(whole) if name in self.portions else whole

    @property
    def layers(self) -> Iterator[LayerEntry]:
        """The layers, each once."""
        return iter({layer.index: layer for chunk in self.chunks for layer in chunk}.values())

    def places(self) -> dict[str, list[Place]]:
        """Return all places of each tensor, by its global name."""
        return _by_name(self.layers)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Return all parameters by their global names, each once."""
        return {name: each for layer in self.layers for name, each in layer.named_parameters()}

    def kept_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that checkpoints keep: all but those that adapters stand beside."""
        return {name: each for name, each in self.named_parameters().items() if name not in self.adapters.base}

    def base_digest(self) -> str | None:
        """Return the digest of the parameters that adapters stand beside, of a whole model; None without adapters."""
        base, parameters = self.adapters.base, self.named_parameters().items()
        return digest_of((name, each) for name, each in parameters if name in base).hex() if base else None

    def named_buffers(self) -> dict[str, torch.Tensor]:
        """Return all buffers that a checkpoint keeps, by their global names, each once."""
        found = {name: of[0] for name, of in self.places().items() if of[0].is_buffer and of[0].is_kept}
        return {name: tensor for name, place in found.items() if (tensor := place.tensor) is not None}

    def fill(self, values: Mapping[str, torch.Tensor]) -> None:
        """Set tensors to values, by name.

        A buffer that its layer makes only when it runs is made here. Raises UserError for one that
        its layer cannot hold.
        """
        places = self.places()
        for name, value in values.items():
            fill(places[name] if name in places else [self._new_buffer(name)], value)

    def _new_buffer(self, name: str) -> Place:
        layer = next(layer for layer in self.layers if layer.index == layer_of(name))
        return new_buffer(layer.index, layer.module, name)

    def settle(self, device: torch.device) -> None:
        """Move the layers to a device, in training mode and with fp32 master weights."""
        for layer in self.layers:
            with preparing(layer.index, layer.module):
                to_training(to_masters(layer.module.to(device)))
        _unite(self.layers)  # for torch moves each place of a buffer by itself

    def hold_frozen_short(self) -> None:
        """Hold the matrices that adapters stand beside in bf16, for passes that multiply in bf16."""
        tied = {*self.shared, *(name for layer in self.layers for each in layer.tied.items() for name in each)}
        hold_short(((layer.index, layer.module) for layer in self.layers), tied)


def walk_of(layers: Sequence[LayerEntry]) -> Walk:
    """Return how a chunk's layers are run."""
    first, *others = layers
    if first.runner is None or not others:
        return one_after_another([(layer.index, layer.module) for layer in layers])
    return partial(first.runner.walk, range(first.index, layers[-1].index + 1))


def num_layers(model: Model) -> int:
    """Return the length of the global list.

    Embedding and head of a built-in or a Hugging Face model are layers too.
    """
    if model.built_in is not None:
        return model.built_in.decoder(1).num_layers
    assert model.num_layers is not None, "the spec demands numLayers with entrypoint and huggingFace"
    return model.num_layers


def build_part(
    model: Model,
    data: Data,
    *,
    stretches: Sequence[tuple[int, int]],
    seed: int,
    lora: Lora | None = None,
    narrow: huggingface.Narrow | None = None,
    tensor_group: TensorGroup = ALONE,
    expert_group: ExpertGroup = UNDIVIDED,
) -> Part:
    """Make the layers of a rank's chunks, each a stretch [first, end) of the global list.

    With `lora` they have adapters, and are frozen otherwise. A folder's model may be made narrow:
    as many layers, of few hidden units, which so many can share. Of tensors that a tensor group
    divides, or an expert group, this rank's part is kept. Raises UserError when the user's entry
    point or folder cannot be used, what a target names cannot be adapted, or layers cannot be
    divided.
    """
    own = frozenset(index for first, end in stretches for index in range(first, end))
    source = _source(model, data, seed, own, narrow=narrow, tensor_group=tensor_group, expert_group=expert_group)
    entries = {index: source.entry(index) for first, end in stretches for index in range(first, end)}
    _borrow(entries, source)
    _unite(entries.values())
    adapters = _adapted(entries, source, lora, head=_head_of(model)) if lora is not None else Adapters()
    tied = {mine: theirs for entry in entries.values() for mine, theirs in entry.tied.items()}
    fixed = immutable(((index, entry.module) for index, entry in entries.items()), tied)
    here = _by_name(entries.values())
    return Part(
        chunks=tuple(tuple(entries[index] for index in range(first, end)) for first, end in stretches),
        portions=divide(model, entries, source.portions, tensor_group=tensor_group, expert_group=expert_group),
        vocabulary=source.vocabulary,
        tensor_group=tensor_group,
        expert_group=expert_group,
        shared=_users(source.tied),
        immutable=fixed | {name: why for entry in entries.values() for name, why in entry.immutable.items()},
        elsewhere={name: parameter for name, parameter in source.trained.items() if name not in here},
        adapters=adapters,
        remarks=source.remarks,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """The factory of each layer of a model.

    `tied` maps global names to the names that they share. `runner` runs this rank's layers
    together.
    """

    parts: Sequence[tuple[str, Callable[[], Made]]]
    tied: Mapping[str, str]
    seed: int
    trained: Mapping[str, weakref.ref[torch.Tensor]] = field(default_factory=dict)
    runner: Runner | None = None
    remarks: tuple[str, ...] = ()
    portions: Mapping[str, Portion] | None = None  # by own global names, of layers that are made divided
    vocabulary: int | None = None

    def entry(self, index: int) -> LayerEntry:
        name, make = self.parts[index]
        with _seeded(self.seed, index):
            made = make()
        return LayerEntry(
            index=index,
            name=name,
            module=made.module,
            tied=made.tied,
            immutable=made.immutable,
            runner=self.runner,
        )


def _source(
    model: Model,
    data: Data,
    seed: int,
    own: frozenset[int],
    *,
    narrow: huggingface.Narrow | None,
    tensor_group: TensorGroup,
    expert_group: ExpertGroup,
) -> _Source:
    if model.built_in is not None:
        return _built_in(model.built_in, data.sequence_length, seed)
    if model.hugging_face is not None:
        cut = huggingface.layers_of(
            model,
            own,
            sequence_length=data.sequence_length,
            narrow=narrow,
            tensor_group=tensor_group,
            expert_group=expert_group,
        )
        return _Source(
            parts=cut.parts,
            tied=cut.tied,
            seed=seed,
            runner=cut.runner,
            remarks=cut.remarks,
            portions=cut.portions,
            vocabulary=cut.vocabulary,
        )
    assert model.entrypoint is not None, "the spec demands a built-in family, an entrypoint or huggingFace"
    with _seeded(seed, 0):
        layers = entrypoint.load(model.entrypoint, model.arguments, expected=num_layers(model))
    return _Source(parts=layers.parts, tied=layers.tied, seed=seed, trained=layers.trained)


def _built_in(sizes: BuiltIn, sequence_length: int, seed: int) -> _Source:
    family = family_of(sizes)
    tied = family.tied(sizes)

    def made(index: int) -> Made:
        return Made(module=family.layer(sizes, index, sequence_length), tied=of_layer(index, tied))

    decoder = sizes.decoder(sequence_length)
    parts = [(name, partial(made, index)) for index, name in enumerate(decoder.layer_names)]
    return _Source(parts=parts, tied=tied, seed=seed, vocabulary=decoder.vocabulary)


def _adapted(entries: Mapping[int, LayerEntry], source: _Source, lora: Lora, *, head: int | None) -> Adapters:
    layers = [(entry.index, entry.module) for entry in entries.values()]
    return adapt(layers, lora, seed=source.seed, tied=source.tied, head=head)


def _head_of(model: Model) -> int | None:
    """Return the layer that is a head; of a user's own layers without sizes nobody knows."""
    return num_layers(model) - 1 if model.entrypoint is None or model.config is not None else None


def _borrow(entries: Mapping[int, LayerEntry], source: _Source) -> None:
    """Start tensors tied to a layer of another rank with that layer's initial value."""
    owners: dict[int, Mapping[str, list[Place]]] = {}
    for name, place in (each for entry in entries.values() for each in entry.places()):
        layer = layer_of(name)
        if layer not in entries:
            owner = owners[layer] if layer in owners else owners.setdefault(layer, _by_name([source.entry(layer)]))
            tensor = owner[name][0].tensor
            if tensor is not None:
                place.put(tensor)


def _unite(layers: Iterable[LayerEntry]) -> None:
    """Put the first layer's tensor into all places that share it."""
    for first, *others in _by_name(sorted(layers, key=lambda layer: layer.index)).values():
        for place in others:
            if first.tensor is not None and place.tensor is not first.tensor:
                place.put(first.tensor)


def _by_name(layers: Iterable[LayerEntry]) -> dict[str, list[Place]]:
    found: dict[str, list[Place]] = {}
    for name, place in (each for layer in layers for each in layer.places()):
        found.setdefault(name, []).append(place)
    return found


def _users(tied: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Return, for each shared tensor or module, the layers that use it."""
    layers: dict[str, dict[int, None]] = {}
    for user, owner in tied.items():
        layers.setdefault(owner, {layer_of(owner): None})[layer_of(user)] = None
    return {name: tuple(of) for name, of in layers.items() if len(of) > 1}


@contextmanager
def _seeded(seed: int, index: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=()):
        state = mix(seed, index)
        torch.manual_seed(state)
        seed_python_and_numpy(state)
        yield
