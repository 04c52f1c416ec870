"""All of a rank's state as one value: what a resumed run needs to equal an unbroken one.

Random numbers are not part of it: they are functions of seed and step (`stage.randomness`), so the
step number is their state. The position in the text, a count of samples, is stored separately
(`data.position`). Tensors have global names, so a snapshot can be restored under any schedule, by
any number of ranks. A tensor on several ranks, equal on all, is saved by one of them.
Non-persistent buffers are included if they have changed, since a run that never stopped has them
too. Parameters that low-rank adapters stand beside are not: they come from where they came from.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.checkpoint.pieces import Piece, piece_of
from pipelinejob_trainer.models.identity import layer_of
from pipelinejob_trainer.models.part import Part
from pipelinejob_trainer.models.portions import Portion
from pipelinejob_trainer.optimizers.optimizer import Optimizer

_PARAMETER = "parameter"
_BUFFER = "buffer"
OF_THE_MODEL = (_PARAMETER, _BUFFER)  # kinds, beside those of an optimiser
_COUNT = "updates"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharded:
    """What of parameters a rank has, where the ranks that hold the same layers shard them, by global name.

    `stretches` are elements [first, end) of flattened parameters, of which the optimiser's state
    is. Of some it has no more than that itself, which `parameters` are.
    """

    stretches: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    parameters: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def first_of(self, name: str) -> int | None:
        """Return where a tensor's stretch begins, given its kind and name; None if the rank has all of it."""
        kind, _, of = name.partition("/")
        is_whole = of not in self.stretches or not (_is_state(kind) or (kind == _PARAMETER and of in self.parameters))
        return None if is_whole else self.stretches[of][0]


NOTHING = Sharded()


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """State after `step` steps, of which the last had this learning rate.

    Tensors by kind and global name, `parameter/layers.3.qkv.weight`; `pieces` says of which wholes
    some are parts.
    """

    step: int
    loss: float | None
    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    rate: float | None = None
    pieces: Mapping[str, Piece] = field(default_factory=dict)


def take(
    part: Part,
    optimizer: Optimizer | None,
    *,
    step: int,
    loss: float | None = None,
    rate: float | None = None,
    extra_buffers: Mapping[str, torch.Tensor] | None = None,
    is_mine: Callable[[str], bool] = lambda _: True,
    sharded: Sharded = NOTHING,
) -> Snapshot:
    """Return the state of a rank, without copying it: valid until the next step.

    `extra_buffers` are buffers that layers would not keep. `is_mine` tells whether this rank saves
    a global name. Of what is `sharded`, it is the rank's own stretches.
    """
    all_ = _tensors(part, optimizer) | dict(_named(_BUFFER, (extra_buffers or {}).items()))
    all_ |= dict(_named(_PARAMETER, sharded.parameters.items()))
    pieces = {name: piece for name in all_ if (piece := _piece(part, name, sharded)) is not None}
    mine = {}
    for name, tensor in all_.items():
        piece = pieces.get(name)
        if _is_anothers(part, name):
            continue
        is_shard = piece is not None and piece.first is not None
        if tensor.numel() if is_shard else is_mine(name.partition("/")[2]):
            mine[name] = tensor.detach()
    kept = {name: piece for name, piece in pieces.items() if name in mine}
    return Snapshot(step=step, loss=loss, rate=rate, tensors=mine, pieces=kept)


@torch.no_grad()
def restore(
    part: Part, optimizer: Optimizer | None, tensors: Mapping[str, torch.Tensor], *, sharded: Sharded = NOTHING
) -> tuple[str, ...]:
    """Put tensors back where `take` found them.

    All that are `wanted` must be given, in the right shape. Returns the parameters whose optimiser
    state begins anew, as they were not trained when the checkpoint was written. Raises UserError
    where it was written with another optimiser.
    """
    parameters: dict[str, torch.Tensor] = dict(_named(_PARAMETER, part.kept_parameters().items()))
    parameters |= dict(_named(_PARAMETER, sharded.parameters.items()))
    buffers = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{_BUFFER}/")}
    part.fill({name.partition("/")[2]: tensor for name, tensor in buffers.items()})
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])
    return () if optimizer is None else tuple(_restored(optimizer, tensors))


def wanted(part: Part) -> dict[str, torch.Size]:
    """Return the names of the tensors that `restore` needs, and the shapes of the wholes that they are parts of."""
    portions = part.portions
    shapes = {name: tensor.shape for name, tensor in _tensors(part, None).items()}
    return {
        name: torch.Size(portions[of].shape) if (of := name.partition("/")[2]) in portions else shape
        for name, shape in shapes.items()
    }


def parts(part: Part, *, sharded: Sharded = NOTHING) -> Callable[[str, torch.Tensor], torch.Tensor]:
    """Return a function that cuts from a whole tensor, given its name, what this rank holds of it."""

    def part_of(name: str, whole: torch.Tensor) -> torch.Tensor:
        of = name.partition("/")[2]
        portion = part.portions.get(of)
        mine = portion.of(whole) if portion is not None and whole.shape == portion.shape else whole
        if sharded.first_of(name) is None:
            return mine
        first, end = sharded.stretches[of]
        return mine.flatten()[first:end].clone()

    return part_of


def may_hold(part: Part, optimizer: Optimizer | None = None) -> Callable[[str], bool]:
    """Return a test of a tensor's name: whether `restore` takes it besides those that it needs."""
    layers = {layer.index for layer in part.layers}
    state = {} if optimizer is None else _state(optimizer)

    def takes(name: str) -> bool:
        kind, _, name_of_tensor = name.partition("/")
        return name in state or (kind == _BUFFER and layer_of(name_of_tensor) in layers)

    return takes


def _piece(part: Part, name: str, sharded: Sharded) -> Piece | None:
    kind, _, of = name.partition("/")
    portion, first = part.portions.get(of), sharded.first_of(name)
    if kind == _COUNT or (portion is None and first is None):
        return None
    whole = Portion(tuple(part.named_parameters()[of].shape), ()) if portion is None else portion
    return piece_of(whole, first)


def _is_anothers(part: Part, name: str) -> bool:
    """Return whether this rank has a tensor as all of a group have it, of whom the first saves it."""
    kind, _, of = name.partition("/")
    holders = [part.tensor_group, part.expert_group] if part.is_divided(of, part.expert_group) else [part.tensor_group]
    return any(group.rank and (kind == _COUNT or not part.is_divided(of, group)) for group in holders)


def _is_state(kind: str) -> bool:
    """Return whether tensors of a kind are an optimiser's, of the shape of their parameters."""
    return kind not in {*OF_THE_MODEL, _COUNT}


def _restored(optimizer: Optimizer, tensors: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """Put an optimiser's state back; return the parameters without one."""
    for name in optimizer.parameters:
        if f"{_COUNT}/{name}" not in tensors:
            yield name
            continue
        for kind, states in optimizer.states.items():
            if name in states:
                found = tensors.get(f"{kind}/{name}")
                if found is None or found.shape != states[name].shape:
                    raise UserError(
                        "OptimizerChanged",
                        f"spec.training.optimizer: it keeps a {kind.replace('_', ' ')} of {name}, and the checkpoint"
                        f" has {'none' if found is None else f'one of shape {tuple(found.shape)}'}: it was written with"
                        " another optimizer, or other settings; put back what it was",
                    )
                states[name].copy_(found)
        optimizer.counts[name].copy_(tensors[f"{_COUNT}/{name}"])


def _tensors(part: Part, optimizer: Optimizer | None) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = dict(_named(_PARAMETER, part.kept_parameters().items()))
    tensors |= dict(_named(_BUFFER, part.named_buffers().items()))
    return tensors if optimizer is None else tensors | _state(optimizer)


def _state(optimizer: Optimizer) -> dict[str, torch.Tensor]:
    tensors = {f"{kind}/{name}": tensor for kind, of in optimizer.states.items() for name, tensor in of.items()}
    return tensors | dict(_named(_COUNT, optimizer.counts.items()))


def _named(kind: str, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterable[tuple[str, torch.Tensor]]:
    return ((f"{kind}/{name}", tensor) for name, tensor in tensors)
