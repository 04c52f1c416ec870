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
from pipelinejob.costs.layers import LayerCost, Profile
from pipelinejob.costs.links import Links
from pipelinejob.costs.memory import StageBytes, ahead_bytes, peak_bytes, stage_bytes
from pipelinejob.schedules.actions import Route, Schedule
from pipelinejob.schedules.costs import Costs, Link
from pipelinejob.schedules.families import family
from pipelinejob.schedules.memory import live_versions
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.schedules.schedule import ScheduleSpec

Cuts = tuple[LayerRange, ...]  # of each stage of a route


@dataclass(frozen=True, kw_only=True)
class Division:
    """A model's layers, divided over the stages of a schedule's routes.

    `tied_bytes` is what the embedding and the head share where they stand on one rank, and hold twice where not.
    The optimiser's work and state are divided over so many `shards`, on as many ranks, and parameters over so many
    `weight_shards`, which passes gather layer by layer.
    """

    profile: Profile
    cuts: Cuts
    routes: tuple[Route, ...]
    schedule: ScheduleSpec
    tied_bytes: int = 0
    shards: int = 1
    weight_shards: int = 1
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
        return self._through(stage, [(layer, layer.forward_s) for layer in self.layers(stage)])

    def _input_s(self, stage: int) -> float:
        """Return the seconds of the way back through a stage; in the first one, to the output of its first layer."""
        layers = self.layers(stage)
        ways = [(layer, layer.backward_input_s) for layer in (layers if stage else layers[1:])]
        own_s = sum(seconds for _, seconds in ways)
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
        bandwidth, num_bytes = self.ring_bytes_per_s(stage), self._gathered_bytes(layer)
        if not bandwidth or not num_bytes:
            return 0.0
        hops = ceil(log2(self.weight_shards))
        share = (self.weight_shards - 1) / self.weight_shards
        return (share * num_bytes / bandwidth + hops * self.ring_latency_s(stage)) * self.speed(self.routes[0][stage])

    def _gathered_bytes(self, layer: LayerCost) -> int:
        """Return what is gathered of a layer: all that is trained, but a table that stands on two ranks."""
        is_end = layer is self.profile.layers[0] or layer is self.profile.layers[-1]
        return layer.parameter_bytes - (self._tied_trained if is_end and self.is_tied_apart else 0)

    def _rerun_s(self, stage: int) -> float:
        """Return the seconds in which a stage runs its layers again, for which it needs no gradient."""
        return self._forward_s(stage) if self._recomputing[stage] else 0.0

    def _weight_s(self, stage: int) -> float:
        layers = self.layers(stage)
        # A model's first layer has no input to give a gradient to; what was measured as one is done with its weights.
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
        return whole - (whole - self.parameter_bytes(rank)) // self.weight_shards

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
        return -(-(sum(layer.moment_bytes for layer in self.held_layers(rank)) - shared) // self.shards)

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
        return sum(layer.optimizer_s for layer in self.held_layers(rank)) / self.shards / self.speed(rank)

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

        Each row of `edges` is a partition: 0, the first layer of each further stage, the number of layers.
        """
        each = np.diff(self._summed_s[edges]) + np.diff(self._again_s[edges]) * self._recomputing
        busiest: npt.NDArray[np.float64] = (each @ self._work.T).max(axis=1)
        return busiest

    @cached_property
    def _summed_s(self) -> npt.NDArray[np.float64]:
        return np.array([0.0, *accumulate(layer.compute_s for layer in self.profile.layers)])

    @cached_property
    def _again_s(self) -> npt.NDArray[np.float64]:
        return np.array([0.0, *accumulate(layer.forward_s for layer in self.profile.layers)])

    @cached_property
    def _recomputing(self) -> npt.NDArray[np.bool_]:
        stages = range(len(self.cuts))
        return np.array([any(self.schedule.recomputes(route[stage]) for route in self.routes) for stage in stages])

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
        if self.schedule.recomputes(rank):  # one is there whole while its backward pass runs
            left, kept = left - kept, sum(self.input_bytes(stage) for stage in stages)
        return max(left / kept, 0.0) if kept else float("inf")

    def memory_bytes(self, schedule: Schedule, rank: int) -> int:
        """Predict the most that a rank holds at once."""
        actions, wiring = schedule.ranks[rank], schedule.wiring
        works = wiring.work_of[wiring.offsets[rank] : wiring.offsets[rank + 1]]
        stage_of = [work.stage for work in wiring.works]
        return (
            self._ahead_bytes(rank)
            + self.frozen_bytes(rank)
            + peak_bytes(
                zip(actions, (stage_of[work] for work in works), strict=True),
                self._split_bytes if schedule.is_split else self._whole_bytes,
                parameter_bytes=self.parameter_bytes(rank),
                weight_bytes=self.weight_bytes(rank) + self.gathered_bytes(rank),
                optimizer_bytes=self.moment_bytes(rank),
                num_versions=live_versions(actions),
                recomputes=self.schedule.recomputes(rank),
                is_asynchronous=schedule.is_asynchronous,
            )
        )

    @cached_property
    def _whole_bytes(self) -> tuple[StageBytes, ...]:
        return self._stage_bytes(is_split=False)

    @cached_property
    def _split_bytes(self) -> tuple[StageBytes, ...]:
        return self._stage_bytes(is_split=True)

    def _stage_bytes(self, *, is_split: bool) -> tuple[StageBytes, ...]:
        return tuple(
            stage_bytes(self.layers(stage), received=self.input_bytes(stage), is_split=is_split)
            for stage in range(len(self.cuts))
        )

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
        return tuple(sum(layer.activation_bytes for layer in self.layers(stage)) for stage in range(len(self.cuts)))
