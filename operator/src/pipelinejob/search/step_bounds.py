"""Lower bounds of an option's step and memory: cheap to compute, and never too high.

A search may leave out what these bounds already rule out. They know no links and no bookkeeping,
and let the layers be divided at will; costs of all micro-batches on a rank, what comes before its
first and after its last action, and the sums over replicas they do know.
"""

from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt

from pipelinejob.costs.layers import Profile, kept_bytes
from pipelinejob.fabric.hardware import LinkKind
from pipelinejob.schedules.families import described
from pipelinejob.schedules.family import RouteShape, Share, Sizes
from pipelinejob.search.space import Layout, Option, Recompute

Floats = npt.NDArray[np.float64]

_MANY_CHUNKS = 4
_RECEIVED = 0.1  # of a stage's activations, what it receives
_MAX_LAYERS = 300  # of more, pairs of their ends are too many to look at each


@dataclass(frozen=True, kw_only=True)
class Table:
    """The costs of a model's layers for one size of micro-batches and one tensor degree, summed from the first on."""

    profile: Profile
    tied_bytes: int = 0  # what embedding and head share
    tied_frozen_bytes: int = 0  # the same, where it is not trained

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
        """The seconds of the layer that takes longest, there and back."""
        return max(layer.compute_s for layer in self.profile.layers)

    @cached_property
    def compute_s(self) -> float:
        """The seconds of all layers, there and back."""
        return float(self.forward_s[-1] + self.backward_s[-1])

    def forward_shares(self, *, recomputes: bool) -> tuple[float, float]:
        """Return the least and the largest share that a layer's forward has of its time, there and back."""
        return self._shares_recomputing if recomputes else self._shares

    @cached_property
    def _shares(self) -> tuple[float, float]:
        shares = [layer.forward_s / layer.compute_s for layer in self.profile.layers if layer.compute_s]
        return (min(shares), max(shares)) if shares else (0.0, 1.0)

    @cached_property
    def _shares_recomputing(self) -> tuple[float, float]:
        shares = [
            layer.forward_s / (layer.compute_s + layer.forward_s) for layer in self.profile.layers if layer.compute_s
        ]
        return (min(shares), max(shares)) if shares else (0.0, 1.0)

    @cached_property
    def optimizer_s(self) -> float:
        return sum(layer.optimizer_s for layer in self.profile.layers)

    @cached_property
    def state_bytes(self) -> int:
        """The bytes of weights and optimiser on all stages together; a tied table counts once."""
        shared = (2 + self.profile.table_moments) * self.tied_bytes + self.tied_frozen_bytes
        return sum(layer.state_bytes for layer in self.profile.layers) - shared

    @cached_property
    def held_bytes(self) -> int:
        """The least bytes of all stages together, each at its fullest.

        One micro-batch is there whole, by then perhaps without the gradients, which come with the
        way back.
        """
        gradients = sum(layer.parameter_bytes for layer in self.profile.layers) - self.tied_bytes
        activations = kept_bytes(self.profile.layers)
        return self.state_bytes + max(activations - gradients, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """What joins neighbouring stages at worst, and the replicas of a stage at best.

    None where there are none.
    """

    hop: LinkKind | None
    ring: LinkKind | None


def _summed(values: list[float] | list[int]) -> Floats:
    return np.concatenate(([0.0], np.cumsum(np.asarray(values, dtype=np.float64))))


def layout_floor_s(layout: Layout, table: Table, speeds: tuple[float, ...]) -> float:
    """Return the lower bound of a layout's step under any schedule: the mean rank's work, and the longest layer's."""
    total_speed = sum(speeds)
    pace_s = max(table.compute_s / total_speed, table.longest_s / max(speeds))
    return layout.micro_batches * pace_s + table.optimizer_s / total_speed + table.profile.step_overhead_s


def held_share(table: Table, limits: tuple[float, ...], *, copies: int = 1) -> float:
    """Return which part of all devices' memory the stages need at least; above 1 nothing fits."""
    needed = table.held_bytes + (copies - 1) * table.state_bytes
    return needed / sum(limits)


def has_room(option: Option, table: Table, limits: tuple[float, ...]) -> bool:
    """Return whether the blocks may fit, given how many micro-batches each rank keeps at least."""
    layers = table.profile.layers[1:-1]
    if option.recompute is not Recompute.NONE or not layers:
        return True
    state = min(layer.state_bytes for layer in layers)
    kept = min(layer.own_bytes for layer in layers)
    held = partial(described(option.schedule).held, _sizes(option))
    each = (state + (held(rank) or 0.0) * kept for rank in range(len(limits)))
    return sum(limit / max(taken, 1) for limit, taken in zip(limits, each, strict=True)) >= len(layers)


def _sizes(option: Option) -> Sizes:
    chunks = option.virtual_stages or described(option.schedule).usual_chunks
    return Sizes(option.layout.pipeline, option.layout.micro_batches, chunks)


def _ahead(option: Option) -> list[float]:
    """Return how many forwards each rank of a straight route runs before its first full backward, at most."""
    held, count = partial(described(option.schedule).held, _sizes(option)), option.layout.micro_batches
    return [count if (own := held(rank)) is None else own for rank in range(option.layout.pipeline)]


def option_floor_s(option: Option, table: Table, speeds: tuple[float, ...], joined: Joined) -> float:
    """Return the lower bound of an option's step, in closed form.

    A rank r that takes w_r for a micro-batch, x for which stand before it and y after it on the
    chain, is done after

        1F1B, GPipe   x + y + w_r (m - (k-1) f)   k = p - r or m micro-batches ahead, f the forward's share, at most
        split         f x + m w_r                 f the forward's share, at least

    at the earliest. Recomputation needs no gradient, so that a rank can do it while it waits for
    one: it counts in neither x nor y, and in w_r not for the first micro-batch.

    All w add up to the work, which gives the least time at which all ranks can be done. Where
    ranks hold several stages, at least one layer for each earlier rank stands before a rank's
    first stage.
    """
    floor_s = layout_floor_s(option.layout, table, speeds) + _recompute_s(option, table) / sum(speeds)
    if table.profile.concurrency is not None or len(speeds) == 1:
        return floor_s
    after_s = table.optimizer_s / sum(speeds) + table.profile.step_overhead_s
    if described(option.schedule).is_straight:  # a rank's gradients are summed after all of its work
        floor_s += _summing_s(option.layout, table, joined) / len(speeds)
    return max(floor_s, _filled_s(option, table, speeds) + after_s)


def _summing_s(layout: Layout, table: Table, joined: Joined) -> float:
    """Return what summing the gradients of all stages over the replicas takes at least, one after the other."""
    if joined.ring is None:
        return 0.0
    return 2 * (layout.data - 1) / layout.data * float(table.parameter_bytes[-1]) / joined.ring.bytes_per_s


def chain_floor_s(option: Option, table: Table, speeds: tuple[float, ...], joined: Joined) -> float:
    """Return a closer bound, over all partitions of the layers into a straight route's stages.

    0 for other routes.
    """
    is_bounded = described(option.schedule).is_straight and table.profile.concurrency is None
    if not is_bounded or len(table.forward_s) > _MAX_LAYERS:
        return 0.0
    chain_s = _Chain(option, table, speeds, joined).least_s()
    return chain_s + table.optimizer_s / sum(speeds) + table.profile.step_overhead_s


def _recompute_s(option: Option, table: Table) -> float:
    """Return the seconds that recomputation adds to all ranks together."""
    return float(table.forward_s[-1]) * option.layout.micro_batches if option.recompute is Recompute.ALL else 0.0


def _filled_s(option: Option, table: Table, speeds: tuple[float, ...]) -> float:
    count, num_ranks, fastest = option.layout.micro_batches, len(speeds), max(speeds)
    recomputes = option.recompute is Recompute.ALL
    work_s = table.compute_s + (float(table.forward_s[-1]) if recomputes else 0.0)
    least, most = table.forward_shares(recomputes=recomputes)
    family = described(option.schedule)
    if family.is_asynchronous or family.route in {RouteShape.BOTH_WAYS, RouteShape.OPEN}:
        return 0.0
    if family.is_straight and family.is_split:
        unshared = 1.0
        for speed in speeds:  # what of f x + m w_r <= T is not yet shared out, in units of T / f
            unshared *= 1 - min(1.0, least * speed / fastest / count)
        return least * work_s / fastest / (1 - unshared) if unshared < 1 else 0.0
    if family.is_straight:
        rates = 0.0
        for ahead, speed in zip(_ahead(option), speeds, strict=True):
            own = count - 1 - (ahead - 1) * most
            if own <= 0:
                return table.compute_s / fastest
            rates += speed / own
        return table.compute_s / fastest + work_s / rates
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
        self._recompute_s = table.forward_s if option.recompute is Recompute.ALL else np.zeros_like(table.forward_s)
        share = _summing_s(option.layout, table, joined) / max(1.0, float(table.parameter_bytes[-1]))
        self._ahead = _ahead(option)
        self._ring_s = share * _spans(table.parameter_bytes)

    def least_s(self) -> float:
        """Return the least that the rank which ends last can take, over all partitions."""
        best = self._rank_s(0)[0]
        for rank in range(1, len(self._speeds)):
            best = np.maximum(best[:, np.newaxis], self._rank_s(rank)).min(axis=0)
        return float(best[-1])

    def _rank_s(self, rank: int) -> Floats:
        """Return when a rank that holds the layers [a, e) is done.

        Infinite where e is not beyond a.
        """
        count, speed = self._option.layout.micro_batches, self._speeds[rank]
        spans = (_spans(sums) / speed for sums in (self._forward_s, self._backward_s, self._recompute_s))
        forward_s, backward_s, recompute_s = spans
        before_s = self._forward_s[:, np.newaxis] / self._fast
        if described(self._option.schedule).is_split:
            done = before_s + count * (forward_s + backward_s + recompute_s) + self._ring_s
        else:
            ahead = self._ahead[rank]
            both = self._forward_s + self._backward_s
            beyond_s = (both[-1] - both[np.newaxis, :]) / self._fast
            turned_s = np.maximum(ahead * forward_s + recompute_s, forward_s + beyond_s)
            rest_s = (count - ahead) * forward_s + count * backward_s + (count - 1) * recompute_s
            after_s = np.maximum(self._backward_s[:, np.newaxis] / self._fast, self._ring_s)
            done = before_s + turned_s + rest_s + after_s
        edges = np.arange(len(self._forward_s))
        return np.where(edges[np.newaxis, :] > edges[:, np.newaxis], done, np.inf)


def _spans(sums: Floats) -> Floats:
    """Return the sums between each two edges, from prefix sums."""
    return np.maximum(sums[np.newaxis, :] - sums[:, np.newaxis], 0.0)


def guess_layout_s(layout: Layout, table: Table, speeds: tuple[float, ...], joined: Joined) -> float:
    """Guess the step of a layout under a good schedule: filling and draining, and summing at the end, single layers."""
    layers = len(table.profile.layers)
    fill_s = (layout.pipeline - 1) * table.compute_s / layers / max(speeds)
    hops_s = 2 * layout.micro_batches * _hop_s(table, joined) * min(layers // layout.pipeline, _MANY_CHUNKS)
    return layout_floor_s(layout, table, speeds) + fill_s + hops_s + _summing_s(layout, table, joined) / layers


def guess_s(option: Option, table: Table, speeds: tuple[float, ...], joined: Joined) -> float:
    """Guess the step, were all stages equal: the order in which options are looked at, and nothing else."""
    layout, share = option.layout, 1 / sum(speeds)
    recompute_s = float(table.forward_s[-1]) if option.recompute is Recompute.ALL else 0.0
    forward_s = float(table.forward_s[-1]) * share
    both_s = forward_s + (float(table.backward_s[-1]) + recompute_s) * share
    chunks = _sizes(option).chunks
    hops_s = 2 * _hop_s(table, joined) * (layout.micro_batches * chunks + layout.pipeline)
    fill_s = (layout.pipeline - 1) * described(option.schedule).filling(Share(forward_s, both_s), chunks)
    summing_s = _summing_s(layout, table, joined) / layout.pipeline / chunks
    after_s = table.optimizer_s * share + table.profile.step_overhead_s
    return layout.micro_batches * both_s + fill_s + hops_s + summing_s + after_s


def guess_share(option: Option, table: Table, limits: tuple[float, ...]) -> float:
    """Guess which part of the devices' memory an option fills, were all stages equal: what is above 1 is tried last."""
    family = described(option.schedule)
    kept = kept_bytes(table.profile.layers)
    held = min(option.layout.micro_batches, family.peak(_sizes(option)))
    if option.recompute is not Recompute.NONE:
        held = 1 + held * _RECEIVED
    return (family.copies * table.state_bytes + held * kept) / sum(limits)


def _hop_s(table: Table, joined: Joined) -> float:
    layers = table.profile.layers
    return joined.hop.seconds(layers[len(layers) // 2].output_bytes) if joined.hop is not None else 0.0
