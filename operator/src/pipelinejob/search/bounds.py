"""What no step of an option can be shorter than, and what its stages must hold at least: cheap, and never too high.

A search may leave out what these bounds already rule out. They know no links and no bookkeeping, and let the layers be
divided at will; costs of all micro-batches on a rank, what comes before its first and after its last action, and the
sums over replicas they do know.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pipelinejob.cost import Profile
from pipelinejob.hardware import LinkKind
from pipelinejob.schedules.catalogue import FAMILIES
from pipelinejob.schedules.names import ASYNCHRONOUS, ScheduleName
from pipelinejob.search.space import Layout, Option, Recompute

Floats = npt.NDArray[np.float64]

_MANY_CHUNKS = 4
_RECEIVED = 0.1  # of a stage's activations, what it receives
_MAX_LAYERS = 300  # of more, pairs of their ends are too many to look at each
_COPIES = {ScheduleName.DUALPIPE: 2, ScheduleName.CHIMERA: 2}
_STRAIGHT = frozenset({
    ScheduleName.GPIPE,
    ScheduleName.ONE_F_ONE_B,
    ScheduleName.ZB_H1,
    ScheduleName.ZB_H2,
    ScheduleName.ZB_1P,
    ScheduleName.ZB_2P,
})  # fmt: skip  # one stage on each rank, on the straight route


@dataclass(frozen=True, kw_only=True)
class Table:
    """The costs of a model's layers for one size of micro-batches and one tensor degree, summed from the first on."""

    profile: Profile
    tied_bytes: int = 0  # what embedding and head share

    @cached_property
    def forward_s(self) -> Floats:
        return _summed([layer.forward_s for layer in self.profile.layers])

    @cached_property
    def backward_s(self) -> Floats:
        return _summed([layer.backward_s for layer in self.profile.layers])

    @cached_property
    def parameter_bytes(self) -> Floats:
        return _summed([layer.parameter_bytes for layer in self.profile.layers])

    @cached_property
    def longest_s(self) -> float:
        """Give the seconds of the layer that takes longest, there and back."""
        return max(layer.compute_s for layer in self.profile.layers)

    @cached_property
    def compute_s(self) -> float:
        """Give the seconds of all layers, there and back."""
        return float(self.forward_s[-1] + self.backward_s[-1])

    def forward_shares(self, *, recomputes: bool) -> tuple[float, float]:
        """Give the least and the largest share that a layer's forward has of its time, there and back."""
        return self._shares_again if recomputes else self._shares

    @cached_property
    def _shares(self) -> tuple[float, float]:
        shares = [layer.forward_s / layer.compute_s for layer in self.profile.layers if layer.compute_s]
        return (min(shares), max(shares)) if shares else (0.0, 1.0)

    @cached_property
    def _shares_again(self) -> tuple[float, float]:
        shares = [
            layer.forward_s / (layer.compute_s + layer.forward_s) for layer in self.profile.layers if layer.compute_s
        ]
        return (min(shares), max(shares)) if shares else (0.0, 1.0)

    @cached_property
    def optimizer_s(self) -> float:
        return sum(layer.optimizer_s for layer in self.profile.layers)

    @cached_property
    def state_bytes(self) -> int:
        """Give what all stages hold together whatever is in flight; a tied table stands on one of them at least."""
        return sum(layer.state_bytes for layer in self.profile.layers) - 4 * self.tied_bytes

    @cached_property
    def held_bytes(self) -> int:
        """Give what all stages hold together at least, each at its fullest.

        One micro-batch is there whole, by then perhaps without the gradients, which come with the way back.
        """
        gradients = sum(layer.parameter_bytes for layer in self.profile.layers) - self.tied_bytes
        activations = sum(layer.activation_bytes for layer in self.profile.layers)
        return self.state_bytes + max(activations - gradients, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """What joins neighbouring stages at worst, and the replicas of a stage at best; None where there are none."""

    hop: LinkKind | None
    ring: LinkKind | None


def _summed(values: list[float] | list[int]) -> Floats:
    return np.concatenate(([0.0], np.cumsum(np.asarray(values, dtype=np.float64))))


def layout_floor_s(layout: Layout, table: Table, speeds: tuple[float, ...]) -> float:
    """Give what no schedule's step can be shorter than: the mean rank's work, and the longest layer's."""
    together = sum(speeds)
    pace_s = max(table.compute_s / together, table.longest_s / max(speeds))
    return layout.micro_batches * pace_s + table.optimizer_s / together + table.profile.step_overhead_s


def held_share(table: Table, limits: tuple[float, ...], *, copies: int = 1) -> float:
    """Give which part of all devices' memory the stages need at least; above 1 nothing fits."""
    needed = table.held_bytes + (copies - 1) * table.state_bytes
    return needed / sum(limits)


def has_room(option: Option, table: Table, limits: tuple[float, ...]) -> bool:
    """Say whether the blocks might find room: each rank keeps so many micro-batches of each that it holds."""
    layers = table.profile.layers[1:-1]
    if option.recompute is not Recompute.NONE or not layers:
        return True
    state = min(layer.state_bytes for layer in layers)
    kept = min(layer.activation_bytes for layer in layers)
    each = (state + _in_flight(option, rank) * kept for rank in range(len(limits)))
    return sum(limit / max(taken, 1) for limit, taken in zip(limits, each, strict=True)) >= len(layers)


def _in_flight(option: Option, rank: int) -> float:
    """Give how many micro-batches a rank keeps at its fullest, at least."""
    count, ranks, chunks = option.layout.micro_batches, option.layout.pipeline, option.virtual_stages or 1
    match option.schedule:
        case ScheduleName.GPIPE:
            return count
        case ScheduleName.ONE_F_ONE_B:
            return min(count, ranks - rank)
        case ScheduleName.INTERLEAVED if count % ranks == 0:
            return min(count, ((chunks - 1) * ranks + 2 * (ranks - 1 - rank) + 1) / chunks)
        case _:
            return 0.0


def option_floor_s(option: Option, table: Table, speeds: tuple[float, ...], joined: Joined) -> float:
    """Give what the option's step cannot be shorter than, in closed form.

    A rank r that takes w_r for a micro-batch, x for which stand before it and y after it on the chain, is done after

        1F1B, GPipe   x + y + w_r (m - (k-1) f)   k = p - r or m micro-batches ahead, f the forward's share, at most
        split         f x + m w_r                 f the forward's share, at least

    at the earliest. Layers can be run again before the gradient is there, while a rank waits for it: that counts in
    neither x nor y, and in w_r not for the first micro-batch.

    All w add up to the work, which gives the least time at which all ranks can be done. Of schedules
    that give a rank several stages, what stands before its first is at least one layer for each rank there.
    """
    floor_s = layout_floor_s(option.layout, table, speeds) + _again_s(option, table) / sum(speeds)
    if table.profile.concurrency is not None or len(speeds) == 1:
        return floor_s
    after_s = table.optimizer_s / sum(speeds) + table.profile.step_overhead_s
    if option.schedule in _STRAIGHT:  # a rank's gradients are summed after all of its work
        floor_s += _summing_s(option.layout, table, joined) / len(speeds)
    return max(floor_s, _filled_s(option, table, speeds) + after_s)


def _summing_s(layout: Layout, table: Table, joined: Joined) -> float:
    """Give what summing the gradients of all stages over the replicas takes at least, one after the other."""
    if joined.ring is None:
        return 0.0
    return 2 * (layout.data - 1) / layout.data * float(table.parameter_bytes[-1]) / joined.ring.bytes_per_s


def chain_floor_s(option: Option, table: Table, speeds: tuple[float, ...], joined: Joined) -> float:
    """Give a closer bound, over all partitions of the layers into a straight route's stages; 0 for other routes."""
    is_straight = option.schedule in _STRAIGHT and table.profile.concurrency is None
    if not is_straight or len(table.forward_s) > _MAX_LAYERS:
        return 0.0
    chain_s = _Chain(option, table, speeds, joined).least_s()
    return chain_s + table.optimizer_s / sum(speeds) + table.profile.step_overhead_s


def _again_s(option: Option, table: Table) -> float:
    """Give what recomputation adds to a step of all ranks together."""
    return float(table.forward_s[-1]) * option.layout.micro_batches if option.recompute is Recompute.ALL else 0.0


def _filled_s(option: Option, table: Table, speeds: tuple[float, ...]) -> float:
    count, num_ranks, fastest = option.layout.micro_batches, len(speeds), max(speeds)
    recomputes = option.recompute is Recompute.ALL
    work_s = table.compute_s + (float(table.forward_s[-1]) if recomputes else 0.0)
    least, most = table.forward_shares(recomputes=recomputes)
    family = FAMILIES.get(option.schedule)
    if family is None or option.schedule in ASYNCHRONOUS:
        return 0.0
    if option.schedule in _STRAIGHT and family.is_split:
        left = 1.0
        for speed in speeds:  # what of f x + m w_r <= T is not yet shared out, in units of T / f
            left *= 1 - min(1.0, least * speed / fastest / count)
        return least * work_s / fastest / (1 - left) if left < 1 else 0.0
    if option.schedule in _STRAIGHT:
        rates = 0.0
        for rank, speed in enumerate(speeds):
            ahead = count if option.schedule is ScheduleName.GPIPE else min(count, num_ranks - rank)
            own = count - 1 - (ahead - 1) * most
            if own <= 0:
                return table.compute_s / fastest
            rates += speed / own
        return table.compute_s / fastest + work_s / rates
    if copies_of(option.schedule) > 1 or option.schedule is ScheduleName.AUTO:  # which may take such a route too
        return 0.0
    first_s = table.forward_s if family.is_split else table.forward_s + table.backward_s
    before_s = float(first_s[:num_ranks].mean()) / fastest
    return before_s * min(speeds) * num_ranks / sum(speeds) + count * work_s / sum(speeds)


class _Chain:
    """The stages of a straight route, as runs of layers [a, e): rows are a, columns e."""

    def __init__(self, option: Option, table: Table, speeds: tuple[float, ...], joined: Joined) -> None:
        self._option = option
        self._speeds = speeds
        self._fast = max(speeds)
        self._forward_s, self._backward_s = table.forward_s, table.backward_s
        self._again_s = table.forward_s if option.recompute is Recompute.ALL else np.zeros_like(table.forward_s)
        share = _summing_s(option.layout, table, joined) / max(1.0, float(table.parameter_bytes[-1]))
        self._ring_s = share * _spans(table.parameter_bytes)

    def least_s(self) -> float:
        """Give the least that the rank which ends last can take, over all partitions."""
        best = self._rank_s(0)[0]
        for rank in range(1, len(self._speeds)):
            best = np.maximum(best[:, np.newaxis], self._rank_s(rank)).min(axis=0)
        return float(best[-1])

    def _rank_s(self, rank: int) -> Floats:
        """Give when a rank that holds the layers [a, e) is done; infinite where e is not beyond a."""
        count, speed = self._option.layout.micro_batches, self._speeds[rank]
        spans = (_spans(sums) / speed for sums in (self._forward_s, self._backward_s, self._again_s))
        forward_s, backward_s, again_s = spans
        before_s = self._forward_s[:, np.newaxis] / self._fast
        if FAMILIES[self._option.schedule].is_split:
            done = before_s + count * (forward_s + backward_s + again_s) + self._ring_s
        else:
            ahead = count if self._option.schedule is ScheduleName.GPIPE else min(count, len(self._speeds) - rank)
            both = self._forward_s + self._backward_s
            beyond_s = (both[-1] - both[np.newaxis, :]) / self._fast
            turned_s = np.maximum(ahead * forward_s + again_s, forward_s + beyond_s)
            rest_s = (count - ahead) * forward_s + count * backward_s + (count - 1) * again_s
            after_s = np.maximum(self._backward_s[:, np.newaxis] / self._fast, self._ring_s)
            done = before_s + turned_s + rest_s + after_s
        edges = np.arange(len(self._forward_s))
        return np.where(edges[np.newaxis, :] > edges[:, np.newaxis], done, np.inf)


def _spans(sums: Floats) -> Floats:
    """Give what lies between two edges, from prefix sums."""
    return np.maximum(sums[np.newaxis, :] - sums[:, np.newaxis], 0.0)


def copies_of(schedule: ScheduleName) -> int:
    """Give on how many ranks each stage stands."""
    return _COPIES.get(schedule, 1)


def guess_layout_s(layout: Layout, table: Table, speeds: tuple[float, ...], joined: Joined) -> float:
    """Guess the step of a layout under a good schedule: filling and draining, and summing at the end, single layers."""
    layers = len(table.profile.layers)
    fill_s = (layout.pipeline - 1) * table.compute_s / layers / max(speeds)
    hops_s = 2 * layout.micro_batches * _hop_s(table, joined) * min(layers // layout.pipeline, _MANY_CHUNKS)
    return layout_floor_s(layout, table, speeds) + fill_s + hops_s + _summing_s(layout, table, joined) / layers


def guess_s(option: Option, table: Table, speeds: tuple[float, ...], joined: Joined) -> float:
    """Guess the step, were all stages equal: the order in which options are looked at, and nothing else."""
    layout, share = option.layout, 1 / sum(speeds)
    again_s = float(table.forward_s[-1]) if option.recompute is Recompute.ALL else 0.0
    forward_s = float(table.forward_s[-1]) * share
    both_s = forward_s + (float(table.backward_s[-1]) + again_s) * share
    chunks = option.virtual_stages or (FAMILIES[option.schedule].usual_chunks if option.schedule in FAMILIES else 1)
    hops_s = 2 * _hop_s(table, joined) * (layout.micro_batches * chunks + layout.pipeline)
    fill_s = (layout.pipeline - 1) * _waits_s(option.schedule, forward_s, both_s, chunks)
    summing_s = _summing_s(layout, table, joined) / layout.pipeline / chunks
    after_s = table.optimizer_s * share + table.profile.step_overhead_s
    return layout.micro_batches * both_s + fill_s + hops_s + summing_s + after_s


def guess_share(option: Option, table: Table, limits: tuple[float, ...]) -> float:
    """Guess which part of the devices' memory an option fills, were all stages equal: what is above 1 is tried last."""
    count, ranks, chunks = option.layout.micro_batches, option.layout.pipeline, option.virtual_stages or 1
    kept = sum(layer.activation_bytes for layer in table.profile.layers)
    held = min(count, _usual_in_flight(option.schedule, count, ranks, chunks))
    if option.recompute is not Recompute.NONE:
        held = 1 + held * _RECEIVED
    return (copies_of(option.schedule) * table.state_bytes + held * kept) / sum(limits)


def _usual_in_flight(schedule: ScheduleName, count: int, ranks: int, chunks: int) -> float:
    """Give how many micro-batches the fullest rank keeps, as docs/schedules.md has it."""
    match schedule:
        case ScheduleName.GPIPE | ScheduleName.LOOPED_BFS:
            return count
        case ScheduleName.INTERLEAVED:
            return ranks + (ranks - 1) / chunks
        case ScheduleName.ZB_H2 | ScheduleName.ZB_2P:
            return 2 * ranks - 1
        case ScheduleName.V_HALF:
            return ranks / 2 + 1
        case ScheduleName.V_MIN:
            return ranks / 3 + 4 / 3
        case _:
            return ranks


def _hop_s(table: Table, joined: Joined) -> float:
    layers = table.profile.layers
    return joined.hop.seconds(layers[len(layers) // 2].output_bytes) if joined.hop is not None else 0.0


def _waits_s(schedule: ScheduleName, forward_s: float, both_s: float, chunks: int) -> float:
    """Give the bubble of a step for each further stage, as the papers have it for F = B = W."""
    match schedule:
        case ScheduleName.ZB_H1 | ScheduleName.ZB_H2 | ScheduleName.ZB_1P | ScheduleName.ZB_2P:
            return forward_s
        case ScheduleName.ZB_V:
            return forward_s / 2
        case ScheduleName.DUALPIPE | ScheduleName.DUALPIPE_V:
            return both_s / 4
        case ScheduleName.V_HALF | ScheduleName.CHIMERA:
            return both_s / 2
        case ScheduleName.V_MIN:
            return both_s * 2 / 3
        case _:
            return both_s / chunks
