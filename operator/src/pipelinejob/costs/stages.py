"""What the stages of a route, and the ranks that hold them, cost and take under a partition."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise, zip_longest
from math import ceil, log2
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from pipelinejob.contract.plan import LayerRange
from pipelinejob.costs.layers import LayerCost, Profile, kept_bytes
from pipelinejob.costs.links import Links
from pipelinejob.costs.memory import StageBytes, ahead_bytes, peak_bytes, stage_bytes
from pipelinejob.costs.shares import from_others, holders, mean_share, share
from pipelinejob.schedules.actions import Route, Schedule
from pipelinejob.schedules.costs import Costs, Link
from pipelinejob.schedules.families import family
from pipelinejob.schedules.memory import live_versions
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.recomputation import spread
from pipelinejob.spec.schedules.schedule import ScheduleSpec

Cuts = tuple[LayerRange, ...]  # of each stage of a route


@dataclass(frozen=True, kw_only=True)
class Division:
    """A model's layers, divided over the stages of a schedule's routes.

    `tied_bytes` is what the embedding and the head share where they stand on one rank, and hold
    twice where not. The optimiser's work and state are divided over so many `shards`, on as many
    ranks, and parameters over so many `weight_shards`, which passes gather layer by layer. Each
    `expert` replicas divide experts.
    """

    profile: Profile
    cuts: Cuts
    routes: tuple[Route, ...]
    schedule: ScheduleSpec
    tied_bytes: int = 0
    shards: int = 1
    weight_shards: int = 1
    expert: int = 1
    links: Links | None = None  # those that are known; the others are as the profile says

    @property
    def num_ranks(self) -> int:
        return len(set(self.routes[0]))

    def layers(self, stage: int) -> tuple[LayerCost, ...]:
        """Return the layers of a stage of the route."""
        first, end = self.cuts[stage]
        return self.profile.layers[first:end]

    @cached_property
    def costs(self) -> Costs:
        """Return what the simulator, and schedules that look at costs, reckon with."""
        stages = range(len(self.cuts))
        return Costs(
            forward_s=tuple(map(self._forward_s, stages)),
            input_s=tuple(self._input_s(stage) for stage in stages),
            weight_s=tuple(self._weight_s(stage) for stage in stages),
            ahead_s=tuple(map(self._rerun_s, stages)),
            action_s=self.profile.action_s,
            speeds=self.profile.stage_speeds,
            link=Link(latency_s=self.profile.link_s),
            links=MappingProxyType(self._links()),
        )

    def _forward_s(self, stage: int) -> float:
        layers = self.layers(stage)
        return self._through(stage, [(layer, layer.forward_s) for layer in layers]) + self._exchange_s(
            stage, layers, is_announced=True
        )

    def _exchange_s(self, stage: int, layers: Sequence[LayerCost], *, is_announced: bool = False) -> float:
        """Return the seconds, at the speed of the costs, in which a pass's tokens travel to their experts, and back.

        The replicas of a stage send one another as much, each over its own link, of which the
        slowest counts.
        """
        sent = [layer for layer in layers if layer.exchanged_bytes]
        bandwidth = self.ring_bytes_per_s(stage)
        if not sent or not bandwidth:
            return 0.0
        exchanges = 3 if is_announced else 2
        num_bytes = sum(2 * layer.exchanged_bytes + layer.announced_bytes * is_announced for layer in sent)
        seconds = num_bytes / bandwidth + exchanges * len(sent) * self.ring_latency_s(stage)
        return seconds * self.speed(self.routes[0][stage])

    def exchanged_bytes(self, rank: int) -> int:
        """The bytes that a rank sends of a micro-batch, there and back, to other replicas, for their experts."""
        total = 0
        for stage, on in enumerate(self.routes[0]):
            if on == rank:
                layers = self.layers(stage)
                forward = (*layers, *layers[: self.recomputed(rank, stage)])
                total += sum(2 * layer.exchanged_bytes + layer.announced_bytes for layer in forward)
                total += sum(2 * layer.exchanged_bytes for layer in layers)
        return total

    def _input_s(self, stage: int) -> float:
        """Return the seconds of the way back through a stage; in the first one, to the output of its first layer."""
        layers = self.layers(stage)
        ways = [(layer, layer.backward_input_s) for layer in (layers if stage else layers[1:])]
        own_s = sum(seconds for _, seconds in ways) + self._exchange_s(stage, layers)
        if self.weight_shards == 1:
            return own_s + self._rerun_s(stage)
        if self._gathers_twice:
            return self._through(stage, ways[::-1]) + self._rerun_s(stage)
        # Both halves are one pass, in which each layer is gathered once.
        whole = [(layer, layer.backward_s) for layer in reversed(layers)]
        awaited_s = self._through(stage, whole) - sum(seconds for _, seconds in whole)
        return own_s + awaited_s + self._rerun_s(stage)

    @cached_property
    def _gathers_twice(self) -> bool:
        """Tell whether halves of backward passes come apart, and each gathers its layers."""
        return self.schedule.name is ScheduleName.CUSTOM or family(self.schedule.name).is_split

    def _through(self, stage: int, layers: Sequence[tuple[LayerCost, float]]) -> float:
        """Return the seconds of a pass through layers, each gathered while the one before it works."""
        if self.weight_shards == 1:
            return sum(seconds for _, seconds in layers)
        gathers = [self._gather_s(stage, layer) for layer, _ in layers]
        works = zip_longest((seconds for _, seconds in layers), gathers[1:], fillvalue=0.0)
        return sum(gathers[:1]) + sum(max(seconds, then) for seconds, then in works)

    def _gather_s(self, stage: int, layer: LayerCost) -> float:
        """Return the seconds, at the speed of the costs, in which the replicas of a stage gather a layer."""
        bandwidth, of_experts = self.ring_bytes_per_s(stage), self._gathered_experts(layer)
        alike = self._gathered_bytes(layer) - of_experts
        if not bandwidth or not alike + of_experts:
            return 0.0
        hops = ceil(log2(self.weight_shards))
        come = from_others(alike, of_experts, shards=self.weight_shards, expert=self.expert)
        return (come / bandwidth + hops * self.ring_latency_s(stage)) * self.speed(self.routes[0][stage])

    def _gathered_bytes(self, layer: LayerCost) -> int:
        """Return what is gathered of a layer: what is trained, but a table on two ranks, and experts on one replica."""
        is_end = layer is self.profile.layers[0] or layer is self.profile.layers[-1]
        always_whole = layer.expert_bytes - self._gathered_experts(layer)
        return layer.parameter_bytes - always_whole - (self._tied_trained if is_end and self.is_tied_apart else 0)

    def _gathered_experts(self, layer: LayerCost) -> int:
        """Return what is gathered of a layer's divided experts."""
        return layer.expert_bytes if holders(self.weight_shards, self.expert) > 1 else 0

    def _rerun_s(self, stage: int) -> float:
        """Return the seconds in which a stage runs layers again, for which it needs no gradient."""
        layers = self.layers(stage)[: max(self.recomputed(route[stage], stage) for route in self.routes)]
        run_s = self._through(stage, [(layer, layer.forward_s) for layer in layers])
        return run_s + self._exchange_s(stage, layers, is_announced=True)

    def _weight_s(self, stage: int) -> float:
        layers = self.layers(stage)
        # A model's first layer has no input to give a gradient to; what was measured as one is
        # done with its weights.
        rest = layers[0].backward_input_s if stage == 0 else 0.0
        halves = [(layer, layer.backward_weight_s) for layer in layers]
        return (self._through(stage, halves) if self._gathers_twice else sum(each for _, each in halves)) + rest

    def _links(self) -> dict[tuple[int, int], Link]:
        longest: dict[tuple[int, int], int] = {}
        for route in self.routes:
            for stage, ends in enumerate(pairwise(route)):
                for pair in (ends, ends[::-1]):
                    longest[pair] = max(self.output_bytes(stage), longest.get(pair, 0))
        return {pair: self._link(pair, num_bytes) for pair, num_bytes in longest.items() if pair[0] != pair[1]}

    def _link(self, pair: tuple[int, int], num_bytes: int) -> Link:
        known = self.links.hop(*pair) if self.links else None
        if known is not None:
            return Link(latency_s=known.latency_s, message_s=num_bytes / known.bytes_per_s)
        bandwidth = self.profile.link_bytes_per_s
        return Link(latency_s=self.profile.link_s, message_s=num_bytes / bandwidth if bandwidth else 0.0)

    def ring_bytes_per_s(self, stage: int) -> float | None:
        """Return the bandwidth of the slowest link over which a stage's gradients are summed; None: as good as any."""
        known = self.links.ring(route[stage] for route in self.routes) if self.links else None
        return known.bytes_per_s if known is not None else self.profile.link_bytes_per_s

    def ring_latency_s(self, stage: int) -> float:
        """Return the seconds until the first byte of a message on that link has arrived."""
        known = self.links.ring(route[stage] for route in self.routes) if self.links else None
        return known.latency_s if known is not None else self.profile.link_s

    def output_bytes(self, stage: int) -> int:
        """Return what a stage hands to the next one, each micro-batch; nothing if it is the last."""
        return 0 if stage == len(self.cuts) - 1 else self.layers(stage)[-1].output_bytes

    def input_bytes(self, stage: int) -> int:
        """Return what a stage receives; the first one tokens, which are as good as nothing."""
        return self.output_bytes(stage - 1) if stage else 0

    def held(self, rank: int) -> tuple[LayerRange, ...]:
        """Return the ranges of layers that a rank holds, in the order of `Schedule.held_by`, each once."""
        stages = (stage for route in self.routes for stage, on in enumerate(route) if on == rank)
        return tuple(dict.fromkeys(self.cuts[stage] for stage in stages))

    def recomputed(self, rank: int, stage: int) -> int:
        """Return how many first layers of a stage are computed again on a rank that holds it."""
        if not self.schedule.recompute and self.schedule.recompute_layers is None:
            return 0
        return self._recomputed[rank, self.cuts[stage]]

    @cached_property
    def _recomputed(self) -> dict[tuple[int, LayerRange], int]:
        held: dict[int, dict[LayerRange, None]] = {}
        for route in self.routes:
            for rank, cut in zip(route, self.cuts, strict=True):
                held.setdefault(rank, {})[cut] = None
        found: dict[tuple[int, LayerRange], int] = {}
        for rank, cuts in held.items():
            again = spread(tuple(cuts), self.schedule.recomputed_layers(rank))
            found |= {(rank, cut): layers for cut, layers in zip(cuts, again, strict=True)}
        return found

    def recomputed_by(self, rank: int) -> tuple[int, ...]:
        """Return how many first layers of each range that a rank holds are computed again."""
        return spread(self.held(rank), self.schedule.recomputed_layers(rank))

    def held_layers(self, rank: int) -> tuple[LayerCost, ...]:
        """Return the layers that a rank holds."""
        return tuple(layer for first, end in self.held(rank) for layer in self.profile.layers[first:end])

    def parameter_bytes(self, rank: int) -> int:
        """The bytes of a rank's trained parameters; of a tied table that stands there as embedding and head, once."""
        tied = self._tied_trained * self._holds_ends(rank)
        return sum(layer.parameter_bytes for layer in self.held_layers(rank)) - tied

    def weight_bytes(self, rank: int) -> int:
        """The bytes that a rank holds of its trained parameters between passes: its share, and a table on two ranks."""
        is_end = any(rank in (route[0], route[-1]) for route in self.routes)
        whole = self._tied_trained if is_end and self.is_tied_apart else 0
        of_experts = sum(layer.expert_bytes for layer in self.held_layers(rank))
        alike = self.parameter_bytes(rank) - whole - of_experts
        return whole + share(alike, of_experts, shards=self.weight_shards, expert=self.expert)

    def gathered_bytes(self, rank: int) -> int:
        """The most bytes that are gathered at a time of a rank's layers: of one that works, and of the next."""
        if self.weight_shards == 1:
            return 0
        chunks = (self.profile.layers[first:end] for first, end in self.held(rank))
        sizes = ([0, *map(self._gathered_bytes, layers)] for layers in chunks)
        return max(one + other for of_chunk in sizes for one, other in pairwise(of_chunk))

    def frozen_bytes(self, rank: int) -> int:
        """The bytes of a rank's parameters that are not trained; a tied table once, as above."""
        tied = (self.tied_bytes - self._tied_trained) * self._holds_ends(rank)
        return sum(layer.frozen_bytes for layer in self.held_layers(rank)) - tied

    def moment_bytes(self, rank: int) -> int:
        """The bytes of the optimiser's state of a rank's parameters."""
        shared = self.profile.table_moments * self._tied_trained * self._holds_ends(rank)
        layers = self.held_layers(rank)
        of_experts = round(sum(layer.moment_bytes * layer.expert_share for layer in layers))
        alike = sum(layer.moment_bytes for layer in layers) - shared - of_experts
        return share(alike, of_experts, shards=self.shards, expert=self.expert)

    @property
    def _tied_trained(self) -> int:
        """Return the tied table's bytes, if it is trained."""
        ends = (self.profile.layers[0], self.profile.layers[-1])
        return self.tied_bytes if all(each.parameter_bytes >= self.tied_bytes for each in ends) else 0

    def _holds_ends(self, rank: int) -> bool:
        held = self.held(rank)
        return any(first == 0 for first, _ in held) and any(end == len(self.profile.layers) for _, end in held)

    @property
    def is_tied_apart(self) -> bool:
        """Tell whether a tied table that is trained stands on two ranks."""
        return self._tied_trained > 0 and not all(
            self._holds_ends(rank) for route in self.routes for rank in (route[0], route[-1])
        )

    def optimizer_s(self, rank: int) -> float:
        """Return the seconds of a rank's update."""
        seconds = (
            layer.optimizer_s * mean_share(layer.expert_share, shards=self.shards, expert=self.expert)
            for layer in self.held_layers(rank)
        )
        return sum(seconds) / self.speed(rank)

    def speed(self, rank: int) -> float:
        """Return a rank's speed, 1 being the device of the costs."""
        return self.profile.stage_speeds[rank] if self.profile.stage_speeds else 1.0

    def mean_share(self, rank: int, seconds: tuple[float, ...]) -> float:
        """Return what a micro-batch takes a rank, from seconds by stage; on several routes, the mean of them.

        Schedules that run from both ends send half of the micro-batches each way.
        """
        routes = (zip(route, seconds, strict=True) for route in self.routes)
        total = sum(of_stage for route in routes for on, of_stage in route if on == rank)
        return total / len(self.routes) / self.speed(rank)

    def sent_bytes(self, rank: int) -> int:
        """Return what a rank sends to others on the way forward, each micro-batch; on several routes, the most."""
        return max(
            sum(self.output_bytes(stage) for stage, (on, after) in enumerate(pairwise(route)) if on == rank != after)
            for route in self.routes
        )

    def state_bytes(self, rank: int, *, num_versions: int = 1) -> int:
        """Return what a rank holds whatever is in flight: parameters, gradients and the optimiser's state, in fp32.

        Each further weight version is one more parameter; a frozen one is only itself.
        """
        weights = self.weight_bytes(rank) + self.gathered_bytes(rank)
        return self.parameter_bytes(rank) + num_versions * weights + self.moment_bytes(rank) + self.frozen_bytes(rank)

    def busiest_s(self, edges: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return the seconds of a micro-batch on the rank that takes longest, the pipeline's pace, if it were cut so.

        Each row of `edges` is a partition: 0, the first layer of each further stage, the number of
        layers.
        """
        each = np.diff(self._summed_s[edges]) + np.diff(self._again_s[edges]) * self._again_shares
        busiest: npt.NDArray[np.float64] = (each @ self._work.T).max(axis=1)
        return busiest

    @cached_property
    def _summed_s(self) -> npt.NDArray[np.float64]:
        return np.array([0.0, *accumulate(layer.compute_s for layer in self.profile.layers)])

    @cached_property
    def _again_s(self) -> npt.NDArray[np.float64]:
        return np.array([0.0, *accumulate(layer.forward_s for layer in self.profile.layers)])

    @cached_property
    def _again_shares(self) -> npt.NDArray[np.float64]:
        """Give, by stage, the share of its forward pass that is played again."""
        stages = range(len(self.cuts))
        forward_s = [sum(layer.forward_s for layer in self.layers(stage)) for stage in stages]
        return np.array([self._rerun_s(stage) / forward_s[stage] if forward_s[stage] else 0.0 for stage in stages])

    @cached_property
    def _work(self) -> npt.NDArray[np.float64]:
        """Give, by rank and stage, the share of a micro-batch's time in the stage that the rank works for."""
        work = np.zeros((self.num_ranks, len(self.cuts)))
        for route in self.routes:
            for stage, rank in enumerate(route):
                work[rank, stage] += 1 / len(self.routes) / self.speed(rank)
        return work

    def room_for(self, rank: int, limit: float) -> float:
        """Return how many micro-batches' activations a rank has room for, in shares, within a limit of bytes."""
        stages = [stage for stage, on in enumerate(self.routes[0]) if on == rank]
        kept = sum(self.kept_bytes[stage] for stage in stages)
        left = limit - self.state_bytes(rank)
        for stage in stages:  # of what is computed again, one is there whole while its backward pass runs
            again = kept_bytes(self.layers(stage)[: self.recomputed(rank, stage)])
            left -= again
            kept += self.input_bytes(stage) * bool(self.recomputed(rank, stage)) - again
        return max(left / kept, 0.0) if kept else float("inf")

    def memory_bytes(self, schedule: Schedule, rank: int) -> int:
        """Predict the most that a rank holds at once."""
        actions, wiring = schedule.ranks[rank], schedule.wiring
        works = wiring.work_of[wiring.offsets[rank] : wiring.offsets[rank + 1]]
        stage_of = [work.stage for work in wiring.works]
        each = ((action, stage_of[work]) for action, work in zip(actions, works, strict=True))
        passes = [(action, stage) for action, stage in each if stage >= 0]  # all but updates
        sizes = {stage: self._stage_bytes(rank, stage, is_split=schedule.is_split) for stage in {s for _, s in passes}}
        return (
            self._ahead_bytes(rank)
            + self.frozen_bytes(rank)
            + peak_bytes(
                passes,
                sizes,
                parameter_bytes=self.parameter_bytes(rank),
                weight_bytes=self.weight_bytes(rank) + self.gathered_bytes(rank),
                optimizer_bytes=self.moment_bytes(rank),
                num_versions=live_versions(actions),
                is_asynchronous=schedule.is_asynchronous,
            )
        )

    def _stage_bytes(self, rank: int, stage: int, *, is_split: bool) -> StageBytes:
        again = self.recomputed(rank, stage)
        return stage_bytes(self.layers(stage), received=self.input_bytes(stage), is_split=is_split, recomputed=again)

    def _ahead_bytes(self, rank: int) -> int:
        """Return what receives posted ahead take; activations that come are as large as the gradients that go."""
        largest: dict[int, int] = {}
        for route in self.routes:
            for stage, ends in enumerate(pairwise(route)):
                if rank in ends and ends[0] != ends[1]:
                    other = ends[0] if ends[1] == rank else ends[1]
                    largest[other] = max(largest.get(other, 0), self.output_bytes(stage))
        num_messages = self.schedule.micro_batches
        return sum(ahead_bytes(num_bytes, num_messages) for num_bytes in largest.values())

    @cached_property
    def kept_bytes(self) -> tuple[int, ...]:
        """Return what each stage computes for its backward pass, of one micro-batch."""
        return tuple(kept_bytes(self.layers(stage)) for stage in range(len(self.cuts)))
