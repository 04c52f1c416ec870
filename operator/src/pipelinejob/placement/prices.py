"""The price of distance between ranks, in seconds of a step, by which placements are compared.

A price is what the step gets longer by, in seconds, if one boundary between stages, or one ring
that sums a stage's gradients over replicas, uses a slower link than the closest there is. It is
found by playing the plan's schedule with that one link slower, so that what hides behind computing
costs nothing, what lengthens fill and drain counts once, and what slows the pace counts for every
micro-batch: in 1F1B a boundary near the end, with few micro-batches in flight behind it, costs
several times one near the beginning.

Prices add up along a chain. That is exact for one slow boundary and for what fill and drain cost,
and an upper bound where several slow the pace, which only the worst of them sets. Replicas wait
for each other, and rings run side by side on different ranks, so of those the dearest counts.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import pairwise
from types import MappingProxyType

from pipelinejob.contract.plan import Plan
from pipelinejob.costs.layers import Profile
from pipelinejob.costs.stages import Division
from pipelinejob.fabric.hardware import LinkKind
from pipelinejob.fabric.network import Network, common_depth
from pipelinejob.planning.planner import division_of
from pipelinejob.planning.playing import schedule_of, setting_of
from pipelinejob.planning.step_prediction import Length, simulated, summing_s, whole
from pipelinejob.scheduler.catalogue import build
from pipelinejob.schedules.actions import Schedule
from pipelinejob.schedules.costs import Costs, Link
from pipelinejob.simulation.result import Simulation
from pipelinejob.simulation.simulate import reduced_s

Path = tuple[str, ...]
ByDepth = tuple[float, ...]  # what it costs if the closest common domain has depth 0, 1, ...; never more with depth

_EFFORT = 400_000  # actions played to price a plan: about half a second
_FEWEST_PRICED = 3  # boundaries


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Seconds that a step gets longer, by the depth of the closest common domain, over the closest link there is."""

    step_s: float | None  # with all on the closest links; None where prices only count crossings
    chain: tuple[ByDepth, ...]  # of boundary b, between stages b and b + 1
    ring: tuple[ByDepth, ...]  # of stage s: the copies in all replicas that sum its gradients
    wrap: ByDepth  # of the last stage with the first, which some schedules let talk

    @property
    def num_stages(self) -> int:
        return len(self.ring)

    @property
    def num_depths(self) -> int:
        return len(self.wrap)

    def chain_s(self, paths: Sequence[Path]) -> float:
        """Price one replica's chain, by its nodes' paths in order."""
        boundaries = zip(self.chain, pairwise(paths), strict=True)
        total = sum(price[common_depth(*ends)] for price, ends in boundaries)
        return total + (self.wrap[common_depth(paths[-1], paths[0])] if len(paths) > 1 else 0.0)

    def ring_s(self, replicas: Sequence[Sequence[Path]]) -> float:
        """Price the rings of a whole job, by the paths of each replica's chain."""
        if len(replicas) == 1:
            return 0.0
        members = zip(*replicas, strict=True)
        return max(price[ring_depth(each)] for price, each in zip(self.ring, members, strict=True))

    def penalty_s(self, replicas: Sequence[Sequence[Path]]) -> float:
        """Price a whole job: its dearest chain, and its dearest ring."""
        return max(map(self.chain_s, replicas)) + self.ring_s(replicas)


def ring_depth(members: Sequence[Path]) -> int:
    """Return the depth of the closest domain that holds all; a ring is as slow as its slowest link."""
    return common_depth(min(members), max(members))  # of sorted paths the ends share least


def crossing_prices(num_stages: int, num_levels: int) -> Prices:
    """Count crossings instead of seconds, where no costs are known.

    One at a coarser level is worse than any number at finer ones; rings count for nothing.
    """
    base = max(2, num_stages)
    costs = [sum(base ** (num_levels - 1 - level) for level in range(depth, num_levels)) for depth in range(num_levels)]
    free = (0.0,) * (num_levels + 1)
    return Prices(
        step_s=None,
        chain=((*map(float, costs), 0.0),) * (num_stages - 1),
        ring=(free,) * num_stages,
        wrap=free,
    )


def prices_of(plan: Plan, profile: Profile, network: Network) -> Prices:
    """Price every way to place a plan's ranks in a network, with costs as the plan was made with."""
    return _Pricing(plan, profile, network).prices()


class _Pricing:
    def __init__(self, plan: Plan, profile: Profile, network: Network) -> None:
        self._plan = plan
        self._profile = profile
        self._network = network
        self._length = _length(plan)
        lengths = dict.fromkeys((self._length.short, self._length.long))
        self._played = {each: _Played(plan, profile, _schedule(plan, each), network.links[-1]) for each in lengths}

    def prices(self) -> Prices:
        last, priced = self._plan.parallelism.pipeline - 1, self._boundaries()
        at = {each: self._by_depth(pair=(each, each + 1)) for each in priced}
        return Prices(
            step_s=self._step_s(),
            chain=tuple(_between(at, boundary) for boundary in range(last)),
            ring=tuple(self._by_depth(ring=rank) for rank in range(last + 1)),
            wrap=self._by_depth(pair=(last, 0)) if last > 1 else (0.0,) * len(self._network.links),
        )

    def _boundaries(self) -> Sequence[int]:
        """Choose the boundaries to simulate: all, or so many that the rest can be interpolated.

        They stand closer towards the end, where prices change fastest.
        """
        num = self._plan.parallelism.pipeline - 1
        actions = sum(len(rank) for played in self._played.values() for rank in played.schedule.ranks)
        prices_each = max(1, len(set(self._network.links)) - 1)
        affordable = max(_FEWEST_PRICED, _EFFORT // (actions * prices_each))
        if affordable >= num:
            return range(num)
        ratio = num ** (1 / (affordable - 1))
        return sorted({max(0, round(num - ratio**step)) for step in range(affordable)} | {0, num - 1})

    def _by_depth(self, *, pair: tuple[int, int] | None = None, ring: int | None = None) -> ByDepth:
        base_s, known = self._step_s(), {self._network.links[-1]: 0.0}
        for link in self._network.links:
            if link not in known:
                known[link] = max(0.0, self._step_s(pair=pair, ring=ring, link=link) - base_s)
        prices, least = [], 0.0
        for link in reversed(self._network.links):  # a wider domain is never the better one, whatever its links
            least = max(least, known[link])
            prices.append(least)
        return tuple(reversed(prices))

    def _step_s(
        self, *, pair: tuple[int, int] | None = None, ring: int | None = None, link: LinkKind | None = None
    ) -> float:
        """Predict the whole step's seconds."""
        (seconds,) = self._length.values(lambda count: (self._played[count].step_s(pair=pair, ring=ring, link=link),))
        return seconds


def _between(at: Mapping[int, ByDepth], boundary: int) -> ByDepth:
    """Interpolate a boundary's prices between those of its neighbours."""
    if boundary in at:
        return at[boundary]
    before = max(each for each in at if each < boundary)
    after = min(each for each in at if each > boundary)
    share = (boundary - before) / (after - before)
    return tuple(one + (other - one) * share for one, other in zip(at[before], at[after], strict=True))


def _length(plan: Plan) -> Length:
    """Choose how much of a step is simulated: of a long one that follows from its name, two shorter ones."""
    count, period = plan.schedule.micro_batches, 2 * plan.parallelism.pipeline * (plan.schedule.update_interval or 1)
    if plan.schedule_actions is not None or count <= 3 * period:
        return whole(plan.schedule)
    return Length(num_micro_batches=count, short=period + count % period, long=2 * period + count % period)


def _schedule(plan: Plan, num_micro_batches: int) -> Schedule:
    if num_micro_batches == plan.schedule.micro_batches:
        return schedule_of(plan)
    setting = setting_of(plan.schedule, plan.parallelism.pipeline)
    return build(plan.schedule.name, replace(setting, num_micro_batches=num_micro_batches))


class _Played:
    """Simulates a schedule with all ranks on the closest link, but for one pair or one ring."""

    def __init__(self, plan: Plan, profile: Profile, schedule: Schedule, closest: LinkKind) -> None:
        self.schedule = schedule
        self._plan = plan
        self._stages = replace(division_of(plan, profile), routes=schedule.routes)
        self._over = cache(self._divided)
        self._reductions_over = cache(self._reduced)
        self._closest = closest
        self._division = self._over(closest)

    def step_s(
        self, *, pair: tuple[int, int] | None = None, ring: int | None = None, link: LinkKind | None = None
    ) -> float:
        """Predict the step's seconds with one slow pair or ring; with none, those of the closest links."""
        if link is None or (pair is not None and pair not in self._division.costs.links):
            return self._base.step_s
        if pair is not None:
            slow_pair = self._with_slow(pair, self._over(link).costs.links)
            return self._simulated(replace(self._division.costs, links=slow_pair), self._reductions).step_s
        assert ring is not None, "a link is slow for a pair or for a ring"
        return self._with_slow_ring(ring, link)

    def _divided(self, link: LinkKind) -> Division:
        """Return the plan's stages with all links of one kind."""
        linked = {"link_s": link.latency_s, "link_bytes_per_s": link.bytes_per_s}
        return replace(self._stages, profile=self._stages.profile.model_copy(update=linked), links=None)

    @cached_property
    def _base(self) -> Simulation:
        return self._simulated(self._division.costs, self._reductions)

    @property
    def _reductions(self) -> tuple[float, ...]:
        return self._reductions_over(self._closest)

    def _reduced(self, link: LinkKind) -> tuple[float, ...]:
        """Return the seconds that each stage's gradients take to be summed, with all rings of one kind."""
        division = self._over(link)
        return tuple(summing_s(division, stage, self._plan.parallelism.data) for stage in range(len(division.cuts)))

    def _with_slow(
        self, pair: tuple[int, int], links: Mapping[tuple[int, int], Link]
    ) -> Mapping[tuple[int, int], Link]:
        both = {ends: links[ends] for ends in (pair, pair[::-1]) if ends in links}
        return MappingProxyType({**self._division.costs.links, **both})

    def _with_slow_ring(self, rank: int, link: LinkKind) -> float:
        slow = self._reductions_over(link)
        held = {stage for _, stage in self.schedule.held_by(rank)}
        reductions = [slow[stage] if stage in held else own for stage, own in enumerate(self._reductions)]
        if self.schedule.is_asynchronous:
            return self._simulated(self._division.costs, reductions).step_s
        if self._division.weight_shards > 1 or self._division.expert > 1:  # passes take the ring, too
            return self._simulated(self._with_slow_passes(held, link), reductions).step_s
        ended = reduced_s(self.schedule, rank, self._base.ended_s[rank], reductions)
        before = max(self._base.makespan_s, *self._base.reduced_s)
        return self._base.step_s + max(0.0, ended - before)

    def _with_slow_passes(self, held: Collection[int], link: LinkKind) -> Costs:
        """Return the costs where some stages' passes gather layers, or exchange tokens, over a link of another kind."""
        own, slow = self._division.costs, self._over(link).costs

        def mixed(usual: Sequence[float], slower: Sequence[float]) -> tuple[float, ...]:
            pairs = zip(usual, slower, strict=True)
            return tuple(others if stage in held else mine for stage, (mine, others) in enumerate(pairs))

        return replace(
            own,
            forward_s=mixed(own.forward_s, slow.forward_s),
            input_s=mixed(own.input_s, slow.input_s),
            weight_s=mixed(own.weight_s, slow.weight_s),
            ahead_s=mixed(own.ahead_s or (), slow.ahead_s or ()),
        )

    def _simulated(self, costs: Costs, reductions: Sequence[float]) -> Simulation:
        return simulated(
            self._division,
            self.schedule,
            replicas=self._plan.parallelism.data,
            costs=costs,
            reduction_s=reductions,
        )
