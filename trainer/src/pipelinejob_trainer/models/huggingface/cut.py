"""A model of transformers without values, of which one rank's layers are to be filled.

The whole model is made on the meta device, where it takes no memory. A rank's own layers get
values; the tensors of an embedding that is another rank's are zeros that take no memory either, so
that the model's own forward can make masks, positions and rotary tables from them. Buffers outside
the blocks are computed on every rank.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from pipelinejob_trainer.models.huggingface.anatomy import Anatomy, check_answers
from pipelinejob_trainer.models.huggingface.find import find_blocks, refused, skeleton
from pipelinejob_trainer.models.huggingface.names import Names
from pipelinejob_trainer.models.identity import Place, of_layer, places, ties
from pipelinejob_trainer.models.portions import Portion

CPU = torch.device("cpu")


class Folder(nn.Module):
    """Some children of a module, under their names; its own tensors are the module's, in the same slots."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.stands_for = (of,)  # in a tuple, so that it is no child

    def share_tensors(self) -> None:
        (of,) = self.stands_for
        for slots in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
            object.__setattr__(self, slots, getattr(of, slots))


class Outside(Folder):
    """What a model does before its blocks, or after them; its children are the modules that do it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A model on the meta device, seen as the trainer's global list.

    `layers` is the whole list: embedding, blocks, head. `own` are the indices of those that get
    values. `tied` maps global names of tied places to the names of the first.
    """

    config: Any
    model: nn.Module
    blocks: nn.ModuleList
    layers: Sequence[nn.Module]
    own: frozenset[int]
    names: Names
    anatomy: Anatomy
    tied: Mapping[str, str]
    trust_remote_code: bool
    first_values: dict[str, torch.Tensor] = field(default_factory=dict)  # of a constructor's, once they are asked for

    def layer_name(self, index: int) -> str:
        """Return what a layer is called in profiles and messages."""
        if index in (0, self.names.head_index):
            return "head" if index else "embedding"
        return f"block-{index - 1}"


def cut(config: Any, own: Iterable[int], anatomy: Anatomy, *, trust_remote_code: bool = False) -> Cut:
    """Make a model on the meta device, of which the layers `own` will be filled.

    Non-persistent buffers have their values already, where a stage needs them. Raises UserError
    for a model that cannot be cut.
    """
    model = skeleton(config, trust_remote_code=trust_remote_code)
    path, blocks = find_blocks(model, config)
    check_answers(anatomy, config, blocks)
    outside = {name for name, _ in model.named_parameters(remove_duplicate=False) if not name.startswith(f"{path}.")}
    head = _gathered(model, outside & (anatomy.head | anatomy.both), config)
    embedding = _gathered(model, outside - anatomy.head, config)
    layers = [embedding, *blocks, head]
    names = Names(blocks=path, num_blocks=len(blocks), head=anatomy.head)
    result = Cut(
        config=config,
        model=model,
        blocks=blocks,
        layers=layers,
        own=frozenset(own),
        names=names,
        anatomy=anatomy,
        tied=ties(enumerate(layers)),
        trust_remote_code=trust_remote_code,
    )
    _refuse_kept_buffers(result)
    _compute_buffers(result)
    if 0 not in result.own:
        _fill_with_nothing(result)
    return result


@torch.no_grad()
def materialise(cut: Cut, index: int, portions: Mapping[str, Portion] = MappingProxyType({})) -> nn.Module:
    """Give a layer's tensors memory, without values; those tied to an earlier layer stay on meta.

    Of tensors that are divided, by their full names, it is memory for this rank's portion.
    """
    layer = cut.layers[index]
    elsewhere = of_layer(index, cut.tied)
    made: dict[str, nn.Parameter] = {}
    for place in places(index, layer):
        name, tensor = place.name_by(elsewhere), place.tensor
        if tensor is None or not tensor.is_meta or not name.startswith(f"layers.{index}."):
            continue
        if place.is_buffer:
            place.put(torch.empty_like(tensor, device=CPU))
            continue
        if name not in made:
            portion = portions.get(cut.names.full(place.name))
            shape = tensor.shape if portion is None else portion.own_shape
            empty = torch.empty(shape, dtype=tensor.dtype, device=CPU)
            made[name] = nn.Parameter(empty, requires_grad=tensor.requires_grad)
        place.put(made[name])
    return layer


@torch.no_grad()
def initialise(cut: Cut, index: int) -> None:
    """Give a materialised layer the model's own random weights, from torch's present random state.

    What a family leaves as its constructor makes it gets that. Raises UserError where that is a
    matrix: who made it so meant it to be read from a file.
    """
    layer = cut.layers[index]
    own = {place.name: tensor for place in places(index, layer) if (tensor := _to_fill(place)) is not None}
    for tensor in own.values():
        tensor.fill_(torch.nan)
    owner = cut.model if index in (0, cut.names.head_index) else owner_of(cut.model, cut.names.blocks)
    _initialise(layer, owner)
    for name, tensor in own.items():
        if bool(tensor.isnan().any()):
            tensor.copy_(_first_value(cut, cut.names.full(name)))


def _to_fill(place: Place) -> torch.Tensor | None:
    tensor = None if place.is_buffer else place.tensor
    return tensor if tensor is not None and not tensor.is_meta and tensor.is_floating_point() else None


def _first_value(cut: Cut, name: str) -> torch.Tensor:
    """Return what the model's constructor makes of a vector or a number."""
    if not cut.first_values:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)  # on every rank
            _constructed(cut, cut.first_values)
    if name not in cut.first_values:
        raise refused(cut.config, f"nothing gives its parameter {name} a first value, and no weights are to be read")
    return cut.first_values[name]


def _initialise(module: nn.Module, owner: nn.Module) -> None:
    """Initialise children first, each submodel in its own way, as transformers does."""
    (real,) = module.stands_for if isinstance(module, Folder) else (module,)
    if hasattr(real, "_init_weights"):
        owner = real
    for child in module.children():
        _initialise(child, owner)
    if not isinstance(module, Folder) or module._parameters or module._buffers:  # noqa: SLF001 # its own tensors alone
        owner._init_weights(real)  # type: ignore[operator] # noqa: SLF001 # transformers has no public name for it


def owner_of(model: nn.Module, path: str) -> nn.Module:
    """Return the innermost model of transformers that holds a path."""
    owner, inner = model, model
    for name in path.split("."):
        inner = getattr(inner, name)
        owner = inner if hasattr(inner, "_init_weights") else owner
    return owner


def _gathered(model: nn.Module, wanted: set[str], config: Any) -> Outside:
    """Return the modules that hold these parameters."""
    root = Outside(model)
    _gather(model, root, "", wanted, config)
    return root


def _gather(module: nn.Module, folder: Folder, path: str, wanted: set[str], config: Any) -> None:
    direct = {f"{path}{name}" for name in module._parameters}  # noqa: SLF001 # empty slots too
    if direct & wanted:
        if not direct <= wanted:
            raise refused(config, f"of {path.rstrip('.') or 'the model'}'s parameters some are used before the blocks")
        folder.share_tensors()
    for name, child in module.named_children():
        inner = f"{path}{name}."
        held = {f"{inner}{each}" for each, _ in child.named_parameters(remove_duplicate=False)}
        if held and held <= wanted:
            folder.add_module(name, child)
        elif held & wanted:
            below = Folder(child)
            folder.add_module(name, below)
            _gather(child, below, inner, wanted, config)


def _refuse_kept_buffers(cut: Cut) -> None:
    """Raise UserError for buffers outside the blocks that files hold: no layer would read or write them."""
    held = {id(module._buffers) for layer in cut.layers for module in layer.modules()}  # noqa: SLF001 # folders share
    for name, module in cut.model.named_modules():
        kept = module._buffers.keys() - module._non_persistent_buffers_set  # noqa: SLF001 # nothing public tells
        if id(module._buffers) not in held and any(module._buffers[slot] is not None for slot in kept):  # noqa: SLF001
            raise refused(cut.config, f"it has the buffer {name}.{min(kept)} outside of its blocks, which files hold")


def _compute_buffers(cut: Cut) -> None:
    """Give buffers of own layers, and all outside the blocks, the values that the model computes."""
    others = {
        module
        for index, layer in enumerate(cut.layers)
        if 0 < index < cut.names.head_index and index not in cut.own
        for module in layer.modules()
    }
    modules = [(name, module) for name, module in cut.model.named_modules() if module not in others]
    slots = [
        (name, module, slot, tensor)
        for name, module in modules
        for slot, tensor in module._buffers.items()  # noqa: SLF001 # to see empty slots
        if tensor is not None and tensor.is_meta
    ]
    found = [_computed(cut, slots, start) for start in (0, 1)]
    constructed: Mapping[str, torch.Tensor] = {}
    for (name, module, slot, _), one, other in zip(slots, *found, strict=True):
        if torch.equal(one, other):
            module._buffers[slot] = one  # noqa: SLF001 # as above
            continue
        constructed = constructed or _constructed(cut)
        module._buffers[slot] = constructed[f"{name}.{slot}"].clone()  # noqa: SLF001 # as above
    for name, module in modules:
        for attribute, value in vars(module).items():
            if isinstance(value, torch.Tensor) and value.is_meta:
                raise refused(cut.config, f"{name}.{attribute} is a tensor that is neither a parameter nor a buffer")


@torch.no_grad()
def _computed(cut: Cut, slots: Sequence[tuple[str, nn.Module, str, torch.Tensor]], start: int) -> list[torch.Tensor]:
    """Return the buffers as the model sets them, over a value to start from."""
    for _, module, slot, tensor in slots:
        module._buffers[slot] = torch.full_like(tensor, start, device=CPU)  # noqa: SLF001 # as above
    for module, owner in _with_owners(cut.model, cut.model):
        if any(each is module for _, each, _, _ in slots):
            owner._init_weights(module)  # type: ignore[operator] # noqa: SLF001 # as above
    return [module._buffers[slot].clone() for _, module, slot, _ in slots]  # type: ignore[union-attr] # noqa: SLF001


def _constructed(cut: Cut, vectors: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Return all buffers as a model's constructor makes them; its parameters go as soon as they come.

    Those without a second dimension are kept in `vectors`, by their full names.
    """
    from transformers.initialization import no_init_weights  # noqa: PLC0415  # slow, and for such models alone

    register = nn.Module.register_parameter
    kept: dict[tuple[nn.Module, str], torch.Tensor] = {}

    def drop(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            if vectors is not None and parameter.ndim < 2:  # noqa: PLR2004 # no matrix
                kept[module, name] = parameter.detach()
            parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = drop  # type: ignore[assignment] # as accelerate's init_empty_weights does
    try:
        with no_init_weights():
            made = skeleton(cut.config, trust_remote_code=cut.trust_remote_code, device="cpu")
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign] # as above
    if vectors is not None:
        paths = {module: path for path, module in made.named_modules()}
        vectors |= {f"{paths[module]}.{name}": each for (module, name), each in kept.items() if module in paths}
    return dict(made.named_buffers(remove_duplicate=False))


def _with_owners(module: nn.Module, owner: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Return all modules, children first, each with the innermost model of transformers that holds it."""
    owner = module if hasattr(module, "_init_weights") else owner
    for child in module.children():
        yield from _with_owners(child, owner)
    yield module, owner


def _fill_with_nothing(cut: Cut) -> None:
    """Put zeros that take no memory into an embedding that is another rank's."""
    mine = {(id(place.module), place.slot) for index in cut.own for place in places(index, cut.layers[index])}
    for place in places(0, cut.layers[0]):
        tensor = place.tensor
        if tensor is None or place.is_buffer or (id(place.module), place.slot) in mine:
            continue
        nothing = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
        place.module._parameters[place.slot] = nn.Parameter(nothing, requires_grad=False)  # noqa: SLF001 # as above
