"""State that forward passes change: buffers, and parameters that are not trained.

Each copy of a layer, in another replica or in the other direction of a bidirectional pipeline,
runs its own micro-batches, so copies of a batch norm's means, of a counter or of a moving average
drift apart. **The first copy counts**, that of the first replica and direction: at the end of each
step all others take over its values, bit for bit (DistributedDataParallel broadcasts its buffers
likewise). So every step starts the same, in a run that was resumed and in one that never stopped,
and a checkpoint holds what was trained with.

State that layers of several stages share, or may share unseen, cannot be kept equal by any order
of passes; it must not change, and the first step that changes it is refused before anything is
updated.

A change shows in torch's version count, or in the tensor being another object. Writes through
`.data` are not counted, so checksums are compared as well, after the first step and before each
checkpoint.
"""

import zlib
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import torch

from pipelinejob_trainer.base.errors import PeerLostError, UserError
from pipelinejob_trainer.communication.gang import Gang
from pipelinejob_trainer.models.identity import Place, home_of, layer_of, memory_of
from pipelinejob_trainer.runtime.rank import Rank
from pipelinejob_trainer.runtime.reduction import Ranks, SumOver

# Shape and type; None where there is no tensor.
Form = tuple[tuple[int, ...], torch.dtype] | None

_ACROSS_STAGES = "stands on several stages, which run different micro-batches at a time"


class UntrainedState:
    """A rank's buffers and untrained parameters.

    In each step every rank calls `find_changes` once its passes are done; if any rank found
    something new, all call `agree`; then all call `spread`.
    """

    def __init__(self, rank: Rank, sum_over: SumOver) -> None:
        self._rank = rank
        self._sum_over = sum_over
        self._trained = {name for name, each in rank.part.named_parameters().items() if each.requires_grad}
        self._trained |= rank.part.adapters.base  # they are not, but what changes them is refused: `adapters`
        self._immutable = _immutable(rank)
        self._holders = _holders(rank)
        modules = [inner for layer in rank.part.layers for inner in layer.module.modules()]
        self._slots = [inner._buffers for inner in modules]  # noqa: SLF001 # to see at a glance whether there are more
        self._num_slots = sum(map(len, self._slots))
        self._watched = {name: _Watched(places).recorded() for name, places in self._unwatched({})}
        self._built = {name: each.form for name, each in self._watched.items()}
        self._unkept: set[str] = set()
        self._agreed: dict[str, Form] = {}
        self._forms: dict[str, Form] = {}  # of what is spread, as the first copy has it
        self._spreads: dict[Ranks, list[str]] = {}

    def begin(self) -> None:
        """Record the state now, resumed or new.

        What differs from its initial value changed in an earlier process.
        """
        self._find()
        self._unkept |= {name for name, each in self._watched.items() if each.has_changed()}
        for each in self._watched.values():
            each.moves = each.has_new_checksum()

    def find_changes(self, *, thoroughly: bool) -> int:
        """Find what the step's passes changed; count changes that other ranks do not know of.

        Raises UserError for a change that another rank, or a run that is resumed, would not have.
        """
        if not (self._watched or any(self._slots)):
            return 0
        if sum(map(len, self._slots)) != self._num_slots:
            self._find()
        for name, each in self._watched.items():
            if each.has_changed() or (thoroughly and not each.moves and each.has_new_checksum()):
                self._check(name, each)
                each.moves = True
                self._unkept.add(name)
        moving = (name for name, each in self._watched.items() if each.moves and self._ranks_of(name))
        return sum(self._watched[name].form != self._agreed.get(name, ()) for name in moving)

    def check_finite(self) -> None:
        """Check what passes have changed in any step.

        Raises UserError for a value that is infinite or no number: who skips a step would keep it.
        """
        for name, each in self._watched.items():
            tensor = each.places[0].tensor
            if each.moves and tensor is not None and not _is_finite(tensor):
                raise UserError(
                    "LossNotFinite",
                    f"spec.training.onNotFinite: a step cannot be skipped, for its passes have left {name} infinite or"
                    " no number already; use RollBack",
                )

    def agree(self, gang: Gang) -> None:
        """Exchange with all ranks which tensors change; every rank calls it, at the same point."""
        mine = {name: each.form for name, each in self._watched.items() if each.moves}
        self._agreed |= mine
        told = gang.gather_values(mine)
        for name in sorted(set(chain.from_iterable(told))):
            if self._ranks_of(name):
                first = told[self._rank.layout.owner_of(name)]  # of replica 0, whose ranks come first
                self._forms[name] = first.get(name, self._built.get(name))
        self._spreads = _by_ranks((self._ranks_of(name), name) for name, form in self._forms.items() if form)

    def spread(self) -> None:
        """Set all copies to the first one's values.

        Every rank calls it, at the same point. Raises PeerLostError.
        """
        bits = {ranks: torch.cat([self._given(name) for name in names]) for ranks, names in self._spreads.items()}
        # A sum of whole numbers, of which all but one are zero: exact, and no other kind of group
        # is needed.
        under_way = [self._sum_over(ranks, flat) for ranks, flat in bits.items()]
        for each in under_way:
            each.wait()
        for ranks, names in self._spreads.items():
            pieces = torch.split(bits[ranks], [_num_bytes(self._forms[name]) for name in names])
            self._take(dict(zip(names, pieces, strict=True)))

    @property
    def is_spread(self) -> bool:
        """Whether any tensor has copies to be set."""
        return bool(self._spreads)

    def extra_buffers(self) -> dict[str, torch.Tensor]:
        """Return changed buffers, by name, that a layer would not keep but a resumed run needs."""
        found = {name: each.places[0] for name, each in self._watched.items() if name in self._unkept}
        return {name: place.tensor for name, place in found.items() if not place.is_kept and place.tensor is not None}

    def join(self, rank: Rank, sum_over: SumOver) -> None:
        """Go on in another gang, which has yet to agree on what changes; the rank has the same layers."""
        self._rank = rank
        self._sum_over = sum_over
        self._holders = _holders(rank)
        self._agreed.clear()
        self._forms.clear()
        self._spreads = {}

    def check_restored(self, names: Container[str]) -> None:
        """Check that an interrupted step has changed nothing but these, which are about to be restored.

        Raises PeerLostError, upon which the gang restarts from its last checkpoint.
        """
        for name, each in self._watched.items():
            if each.has_changed() and name not in names:
                raise PeerLostError(f"{name} was changed by the step that was interrupted, and no copy of it is kept")

    def _find(self) -> None:
        """Watch what a forward pass has registered, which counts as a change."""
        self._watched |= {name: _Watched(places) for name, places in self._unwatched(self._watched)}
        self._num_slots = sum(map(len, self._slots))

    def _unwatched(self, watched: Container[str]) -> Iterator[tuple[str, list[Place]]]:
        for name, places in self._rank.part.places().items():
            is_something = places[0].is_buffer or places[0].tensor is not None
            if is_something and name not in self._trained and name not in watched:
                yield name, places

    def _ranks_of(self, name: str) -> Ranks:
        """Return the ranks that hold copies of a tensor; none if this rank has the only one."""
        return self._holders.get(layer_of(name), ())

    def _given(self, name: str) -> torch.Tensor:
        """Return a tensor's bits if it is the first copy, otherwise zeros."""
        tensor = self._watched[name].places[0].tensor if self._rank.owns(name) else None
        if tensor is None:
            return torch.zeros(_num_bytes(self._forms[name]), dtype=torch.uint8, device=self._rank.device)
        return _bits(tensor).to(self._rank.device)

    def _take(self, bits: Mapping[str, torch.Tensor]) -> None:
        values = {name: _from_bits(each, self._forms[name]) for name, each in bits.items() if not self._rank.owns(name)}
        if not values:
            return
        self._rank.part.fill(values)
        self._find()
        for name in values:
            self._watched[name].has_changed()  # by this; the next find_changes reports what passes change

    def _check(self, name: str, watched: "_Watched") -> None:
        place = watched.places[0]
        what = f"spec.model.entrypoint: layer {place.layer}: {'buffer' if place.is_buffer else 'parameter'} {name}"
        why = self._immutable.get(name) or self._immutable.get(home_of(name))
        if why:
            raise UserError(
                "SharedBufferChanged",
                f"{what} was changed by a forward pass, but {why}; give each layer its own, make the"
                " module itself (no function) an element of the list, or put layers that share it on one stage"
                " (spec.partition.layers)",
            )
        if any(other.tensor is not place.tensor for other in watched.places):
            raise UserError(
                "SharedBufferReplaced",
                f"{what} stands in several places, of which a forward pass gave one another tensor; change it in place"
                " (self.x.copy_(new), not self.x = new)",
            )
        built = self._built.get(name)
        if place.is_kept and built is not None and watched.form != built:
            raise UserError(
                "BufferReshaped",
                f"{what} was made as {_described(built)} and is {_described(watched.form)} after a forward pass, so"
                " that no run could resume from its checkpoint; keep its shape and type, or register it with"
                " persistent=False",
            )


@dataclass(slots=True)
class _Watched:
    """A tensor, and what it was when it was last checked.

    It refers to the tensor, not to its address, which another tensor could get after this one is
    freed.
    """

    places: list[Place]
    moves: bool = False
    _seen: torch.Tensor | None = None
    _mark: object = None
    _print: int = 0

    def recorded(self) -> "_Watched":
        """Record object, version and checksum; return self."""
        self.has_changed()
        self.has_new_checksum()
        return self

    @property
    def form(self) -> Form:
        """Its shape and type."""
        tensor = self.places[0].tensor
        return None if tensor is None else (tuple(tensor.shape), tensor.dtype)

    def has_changed(self) -> bool:
        """Return whether it has changed since the last call, by object and version."""
        before, self._seen = self._seen, self.places[0].tensor
        mark, self._mark = self._mark, _mark(self._seen)
        is_another = any(place.tensor is not self._seen for place in self.places[1:])
        return self._seen is not before or self._mark != mark or is_another

    def has_new_checksum(self) -> bool:
        """Return whether its checksum has changed since the last call."""
        before, self._print = self._print, _checksum(self.places[0].tensor)
        return self._print != before


def _holders(rank: Rank) -> dict[int, Ranks]:
    """Return, for each of a rank's layers that others have as well, all that have it."""
    holders = {layer.index: rank.layout.ranks_of(layer.index) for layer in rank.part.layers}
    return {layer: ranks for layer, ranks in holders.items() if len(ranks) > 1}


def _immutable(rank: Rank) -> Mapping[str, str]:
    """Return what must not change, and why."""
    part, layout = rank.part, rank.layout
    across = (name for name, layers in part.shared.items() if layout.spans_stages(layers))
    return dict(part.immutable) | dict.fromkeys(across, _ACROSS_STAGES)


def _mark(tensor: torch.Tensor | None) -> object:
    if tensor is None or tensor.is_inference():
        return None
    return tensor._version, memory_of(tensor)  # noqa: SLF001 # as in saved.py


def _checksum(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None or _is_unreadable(tensor) else zlib.crc32(_bits(tensor).cpu().numpy().data)


def _is_finite(tensor: torch.Tensor) -> bool:
    is_number = tensor.is_floating_point() or tensor.is_complex()
    return not is_number or _is_unreadable(tensor) or bool(torch.isfinite(tensor).all())


def _is_unreadable(tensor: torch.Tensor) -> bool:
    return tensor.is_meta or tensor.layout is not torch.strided or torch.nn.parameter.is_lazy(tensor)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def _from_bits(bits: torch.Tensor, form: Form) -> torch.Tensor:
    assert form is not None, "there is something to spread"
    shape, dtype = form
    return bits.clone().view(dtype).view(shape)


def _by_ranks(names: Iterable[tuple[Ranks, str]]) -> dict[Ranks, list[str]]:
    """Group names by the ranks that have them, in the same order on all ranks."""
    found: dict[Ranks, list[str]] = {}
    for ranks, name in sorted(names):
        found.setdefault(ranks, []).append(name)
    return found


def _num_bytes(form: Form) -> int:
    if form is None:
        return 0
    shape, dtype = form
    return torch.Size(shape).numel() * dtype.itemsize


def _described(form: Form) -> str:
    return "nothing" if form is None else f"{tuple(form[0])} {str(form[1]).removeprefix('torch.')}"
