"""Which tensors of a model are the same tensor: identified by object and memory, not by name.

A parameter is the object that an optimiser updates; a buffer is its view of memory. Both have the
global name of the first place that holds them. Two trained parameters on the same memory would be
updated twice, with separate gradients and moments, and on two ranks they would be separate: that
is refused. Tensors that are not trained may share memory, as long as nothing changes them.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from pipelinejob_trainer.base.errors import UserError

LIES_TWICE = "lies on the same memory as another tensor of the model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a layer holds a tensor: a slot of one of its modules.

    `local` is the slot's name within the layer. `is_kept` is whether checkpoints keep the tensor;
    non-persistent buffers they do not.
    """

    layer: int
    local: str
    module: nn.Module
    slot: str
    is_buffer: bool
    is_kept: bool = True

    @property
    def name(self) -> str:
        """Its own global name."""
        return global_name(self.layer, self.local)

    @property
    def tensor(self) -> torch.Tensor | None:
        """The tensor now; None in an empty slot."""
        slots = self.module._buffers if self.is_buffer else self.module._parameters  # noqa: SLF001 # see `places`
        return slots.get(self.slot)

    def name_by(self, tied: Mapping[str, str]) -> str:
        """Return the tensor's own name; a slot added later has that of its module."""
        home = home_of(self.name)
        own = f"{tied[home]}.{self.slot}" if home in tied else self.name
        return tied.get(self.name, own)

    def put(self, tensor: torch.Tensor) -> None:
        """Put another tensor there."""
        setattr(self.module, self.slot, tensor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A layer.

    The global names of its tied tensors, and of tensors that must not change, with the reason.
    """

    module: nn.Module
    tied: Mapping[str, str] = field(default_factory=dict)
    immutable: Mapping[str, str] = field(default_factory=dict)


def places(layer: int, module: nn.Module) -> Iterator[Place]:
    """Return all places of a layer, repeated ones too.

    Raises UserError for a module that keeps them from Python.
    """
    # named_parameters and named_buffers tell of no empty slots, nor of what is persistent.
    for prefix, inner in module.named_modules(remove_duplicate=False):
        if isinstance(inner, torch.jit.ScriptModule):
            raise UserError(
                "ScriptedLayer",
                f"spec.model.entrypoint: layer {layer}{prefix and ', '}{prefix} is compiled by torch.jit, which keeps"
                " tensors out of Python's sight: they cannot be tied, summed or saved; give the Python module",
            )
        path = f"{prefix}." if prefix else ""
        for slot in inner._parameters:  # noqa: SLF001 # as above
            yield Place(layer=layer, local=path + slot, module=inner, slot=slot, is_buffer=False)
        for slot in inner._buffers:  # noqa: SLF001 # as above
            is_kept = slot not in inner._non_persistent_buffers_set  # noqa: SLF001 # as above
            yield Place(layer=layer, local=path + slot, module=inner, slot=slot, is_buffer=True, is_kept=is_kept)


def global_name(layer: int, local: str) -> str:
    """Return the global name of a layer's tensor."""
    return f"layers.{layer}.{local}"


def home_of(name: str) -> str:
    """Return the module of a tensor: `layers.3.norm` for `layers.3.norm.weight`."""
    return name.rpartition(".")[0]


def layer_of(name: str) -> int:
    """Return the index of the layer in a global name."""
    return int(name.split(".", 2)[1])


def of_layer(layer: int, by_name: Mapping[str, str]) -> dict[str, str]:
    """Return the entries of one layer from a mapping by global names."""
    return {name: each for name, each in by_name.items() if layer_of(name) == layer}


def ties(layers: Iterable[tuple[int, nn.Module]]) -> dict[str, str]:
    """Map the name of each repeated tensor or module to that of its first place."""
    owners: dict[object, str] = {}
    own = ((name, owners.setdefault(identity, name)) for each in layers for name, identity in _identities(*each))
    return {name: owner for name, owner in own if name != owner}


def trained(layers: Iterable[tuple[int, nn.Module]], tied: Mapping[str, str]) -> dict[str, weakref.ref[torch.Tensor]]:
    """Return weak references to the trained parameters, by name."""
    found = (place for each in layers for place in places(*each) if _is_trained(place))
    return {place.name_by(tied): weakref.ref(place.tensor) for place in found if place.tensor is not None}


def immutable(layers: Iterable[tuple[int, nn.Module]], tied: Mapping[str, str]) -> dict[str, str]:
    """Return the tensors that must not change, and why: those that share memory with another.

    Raises UserError where one of them is trained.
    """
    found: dict[str, str] = {}
    for one, other in _overlaps(layers, tied):
        if _is_trained(one) or _is_trained(other):
            raise UserError("SharedMemory", _refusal(one, other))
        found |= {place.name_by(tied): LIES_TWICE for place in (one, other)}
    return found


def new_buffer(layer: int, module: nn.Module, name: str) -> Place:
    """Make an empty slot for a buffer.

    Raises UserError where a layer has no such module, or something else by that name.
    """
    path, _, slot = (local := name.split(".", 2)[2]).rpartition(".")
    inner = dict(module.named_modules()).get(path)
    if inner is None or hasattr(inner, slot):
        raise UserError(
            "CheckpointMismatch",
            f"the checkpoint has a buffer {name}, which the model has no room for: it is of another model; use another"
            " spec.checkpoint.path, or the model it was made with",
        )
    inner.register_buffer(slot, None)
    return Place(layer=layer, local=local, module=inner, slot=slot, is_buffer=True)


@torch.no_grad()
def fill(places: Sequence[Place], value: torch.Tensor) -> None:
    """Set all places of a tensor to a value, in place if possible."""
    tensor = places[0].tensor
    if tensor is None:
        device = next((each.device for each in places[0].module.parameters()), value.device)
    elif (tensor.shape, tensor.dtype) == (value.shape, value.dtype) and not repeats_itself(tensor):
        tensor.copy_(value)
        return
    else:
        device = tensor.device
    for place in places:
        place.put(value.to(device))


def memory_of(tensor: torch.Tensor) -> tuple[str, int]:
    """Return an id of the memory that a tensor uses.

    A tensor without memory (meta device) has its own.
    """
    start = _start(tensor)
    return ("object", id(tensor)) if start is None else (str(tensor.device), tensor.untyped_storage().data_ptr())


def repeats_itself(tensor: torch.Tensor) -> bool:
    """Return whether entries of a tensor share memory, as after `expand`.

    Such a tensor cannot be written to.
    """
    if tensor.layout is not torch.strided or is_lazy(tensor):
        return False
    return any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _identities(layer: int, module: nn.Module) -> Iterator[tuple[str, object]]:
    for path, inner in module.named_modules(remove_duplicate=False):
        yield global_name(layer, path).rstrip("."), id(inner)
    for place in places(layer, module):
        yield place.name, _identity(place)


def _identity(place: Place) -> object:
    tensor = place.tensor
    if tensor is None:
        return id(place.module), place.slot
    if not place.is_buffer:
        return id(tensor)
    return place.is_kept, _view(tensor) or id(tensor)


def _view(tensor: torch.Tensor) -> tuple[object, ...] | None:
    """Return what identifies a tensor's view of memory; None where it has none."""
    start = _start(tensor)
    if start is None:
        return None
    strides = tuple(stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1)
    return tensor.device, start, tensor.dtype, tensor.shape, strides, tensor.is_conj(), tensor.is_neg()


def _start(tensor: torch.Tensor) -> int | None:
    """Return the address of a tensor's first entry; None where there is none."""
    if is_lazy(tensor) or tensor.is_meta or tensor.layout is not torch.strided:
        return None
    try:
        return tensor.data_ptr() or None
    except RuntimeError:  # a subclass without memory of its own
        return None


@dataclass(frozen=True, slots=True)
class _Extent:
    """The addresses from a tensor's first byte to after its last."""

    place: Place
    tensor: torch.Tensor
    start: int
    end: int


def _overlaps(layers: Iterable[tuple[int, nn.Module]], tied: Mapping[str, str]) -> Iterator[tuple[Place, Place]]:
    """Return pairs of tensors that share memory; a tensor with itself where its entries do."""
    first: dict[str, Place] = {}
    for place in (place for each in layers for place in places(*each)):
        first.setdefault(place.name_by(tied), place)
    extents = sorted(_extents(first.values()), key=lambda each: (str(each.tensor.device), each.start))
    for _, of_device in groupby(extents, key=lambda each: str(each.tensor.device)):
        open_: list[_Extent] = []
        for extent in of_device:
            if repeats_itself(extent.tensor) and _is_trained(extent.place):
                yield extent.place, extent.place
            open_ = [each for each in open_ if each.end > extent.start]
            yield from ((each.place, extent.place) for each in open_ if _meet(each, extent))
            open_.append(extent)


def _extents(places: Iterable[Place]) -> Iterator[_Extent]:
    for place in places:
        tensor = place.tensor
        start = None if tensor is None else _start(tensor)
        if tensor is None or start is None:
            continue
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        yield _Extent(place, tensor, start, start + (last + 1) * tensor.itemsize)


def _meet(one: _Extent, other: _Extent) -> bool:
    """Return whether two overlapping extents share a byte.

    Two columns of one matrix, for example, do not.
    """
    if one.tensor.is_contiguous() and other.tensor.is_contiguous():
        return True
    origin = min(one.start, other.start)
    marks = torch.zeros(max(one.end, other.end) - origin, dtype=torch.bool)
    _bytes(one, marks, origin).fill_(True)  # a value
    return bool(_bytes(other, marks, origin).any())


def _bytes(extent: _Extent, marks: torch.Tensor, origin: int) -> torch.Tensor:
    tensor, size = extent.tensor, extent.tensor.itemsize
    return marks.as_strided(
        (*tensor.shape, size), (*(stride * size for stride in tensor.stride()), 1), extent.start - origin
    )


def _is_trained(place: Place) -> bool:
    tensor = place.tensor
    return not place.is_buffer and tensor is not None and tensor.requires_grad


def _refusal(one: Place, other: Place) -> str:
    if one is other:
        return (
            f"spec.model.entrypoint: layer {one.layer}: several entries of parameter {one.local} are one, so it cannot"
            " be stepped; give it memory of its own with clone(), or expand it in forward"
        )
    where = f"layer {one.layer}" if one.layer == other.layer else f"layers {one.layer} and {other.layer}"
    return (
        f"spec.model.entrypoint: {where}: {_described(one)} and {_described(other)} are two tensors on the same memory,"
        " at least one of them trained: a step would change it for both, on some ranks and not on others; let both"
        " layers hold one parameter (b.weight = a.weight, not b.weight.data = a.weight.data), or give each its own with"
        " clone()"
    )


def _described(place: Place) -> str:
    return f"{'buffer' if place.is_buffer else 'parameter'} {place.name}"
