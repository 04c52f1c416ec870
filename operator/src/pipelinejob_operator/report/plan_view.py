"""What is told of a plan, in a terminal, as JSON and on a page alike: so that none says another number. Pure."""

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from pipelinejob.plan import CostSource, Placement, Plan, StagePlan
from pipelinejob_operator.report.fabric_view import FabricView
from pipelinejob_operator.report.numbers import seconds

SOURCES = {
    CostSource.PROFILED: "measured costs",
    CostSource.ANALYTIC: "counted operations, not a measurement",
    CostSource.EQUAL: "the number of layers alone; with `--profile` it says more",
}


_UNBOUNDED = 2**62


class About(StrEnum):
    """What an alternative changes."""

    CONFIGURATION = "configuration"  # degrees, schedule, micro-batches
    PLACEMENT = "placement"  # the nodes, of the same configuration
    TO_FIT = "to-fit"  # what the job asks for, so that it fits now


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """Something else that could be done, and its price: what a step would take then. A prediction."""

    about: About
    what: str
    step_s: float | None  # None where seconds mean nothing
    price: float | None  # of a step, against the plan's own: 0.031 is 3.1 % longer
    bubble_ratio: float | None = None
    memory_bytes: int | None = None  # of the fullest stage
    crossings: dict[str, int] | None = None
    room_left: dict[str, int] | None = None
    fields: dict[str, object] | None = None  # of the manifest, by path, that would say so


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """Something that was looked at and cannot be, or need not be looked at closer."""

    what: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryParts:
    """What the predicted peak of a stage's memory consists of, in bytes."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int  # and what passes work with: copies in bf16, messages received ahead, further weight versions

    @property
    def total(self) -> int:
        """Give their sum."""
        return self.parameters + self.gradients + self.optimizer + self.activations


def memory_parts(stage: StagePlan) -> MemoryParts:
    """Take a stage's peak apart: fp32 parameters and gradients, AdamW's two moments, and the rest."""
    own = stage.parameter_bytes
    return MemoryParts(
        parameters=own, gradients=own, optimizer=2 * own, activations=max(stage.memory_bytes - 4 * own, 0)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RankView:
    """One rank: stage `index` of a replica, and the node it would get."""

    index: int
    replica: int
    node: str | None
    path: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PlanView:
    """A plan, where it would stand, and what else could be done."""

    plan: Plan
    where: str | None = None  # what it was placed on, for people; None: nobody asked
    tree: str | None = None  # how the network of those nodes is seen
    shortfall: str | None = None  # why it does not fit
    device_memory: tuple[int, ...] | None = None  # of each stage's device, in bytes; None: no bound
    alternatives: tuple[Alternative, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    fabric: FabricView | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Give the job's full name."""
        return f"{self.plan.namespace}/{self.plan.name}"

    @property
    def fits(self) -> bool | None:
        """Say whether there is room; None if nobody asked."""
        if self.shortfall is not None:
            return False
        return True if self.plan.placement is not None else None

    @property
    def is_absolute(self) -> bool:
        """Say whether seconds and bytes mean anything."""
        return self.plan.prediction.is_absolute

    @property
    def placement(self) -> Placement | None:
        """Give where it would stand."""
        return self.plan.placement

    @cached_property
    def ranks(self) -> tuple[RankView, ...]:
        """Give every rank, replica by replica, stage by stage."""
        placed = {(each.replica, each.stage): each for each in self.placement.assignments} if self.placement else {}
        parallelism = self.plan.parallelism
        return tuple(
            RankView(
                index=stage,
                replica=replica,
                node=given.node if given else None,
                path=given.path if given else (),
            )
            for replica in range(parallelism.data)
            for stage in range(parallelism.pipeline)
            for given in (placed.get((replica, stage)),)
        )

    def memory_of_device(self, stage: int) -> int | None:
        """Give the bytes that a stage's device has; None where they are no bound."""
        known = self.device_memory[stage] if self.device_memory else _UNBOUNDED
        return known if known < _UNBOUNDED else None

    def of_stage(self, stage: int) -> tuple[RankView, ...]:
        """Give a stage's ranks, one a replica."""
        return tuple(rank for rank in self.ranks if rank.index == stage)

    def places_of(self, stage: int) -> tuple[tuple[str, int], ...]:
        """Give the paths of the nodes that a stage stands on, and how many of its replicas each holds."""
        counts = Counter("/".join(rank.path) for rank in self.of_stage(stage))
        return tuple(counts.items())

    @property
    def penalty_ratio(self) -> float | None:
        """Give the share of a step that the placement's crossings cost."""
        return self._share(self.plan.penalty_s)

    @property
    def least_penalty_ratio(self) -> float | None:
        """Give a bound for the least that any place would have cost with what is free."""
        return self._share(self.plan.least_penalty_s)

    def _share(self, penalty_s: float | None) -> float | None:
        return None if penalty_s is None or not self.is_absolute else penalty_s / self.plan.prediction.step_s

    @property
    def shape_line(self) -> str:
        """Say how the work is divided."""
        parallelism, schedule = self.plan.parallelism, self.plan.schedule
        replicas = f" x {parallelism.data} replicas" if parallelism.data > 1 else ""
        tensor = f" x {parallelism.tensor} GPUs a stage" if parallelism.tensor > 1 else ""
        of_all = f", {schedule.batch_size} sequences in all" if schedule.batch_size is not None else ""
        return (
            f"{parallelism.pipeline} stages{replicas}{tensor}, {schedule.name}, "
            f"{schedule.micro_batches} micro-batches of {schedule.micro_batch_size}{of_all}"
        )

    @property
    def devices_line(self) -> str | None:
        """Say on which devices the stages compute, where that is known."""
        kinds = Counter(stage.device for stage in self.plan.stages if stage.device is not None)
        if not kinds or not self.is_absolute:
            return None
        if len(kinds) == 1:
            return f"devices: {next(iter(kinds))}"
        return "devices: " + ", ".join(f"{count} stages on {kind}" for kind, count in kinds.items())

    @property
    def prediction_line(self) -> str:
        """Say what is expected, and from which costs."""
        prediction = self.plan.prediction
        times = f"{seconds(prediction.step_s)} a step, {prediction.tokens_per_s:,.0f} tokens/s, "
        return (
            f"predicted: {times if self.is_absolute else ''}bubble {prediction.bubble_ratio:.1%} "
            f"(from {SOURCES[prediction.source]})"
        )

    @property
    def memory_line(self) -> str | None:
        """Say what the fullest stage's memory consists of, and how much a device has."""
        if not self.is_absolute:
            return None
        stage = max(self.plan.stages, key=lambda stage: stage.memory_bytes)
        parts = memory_parts(stage)
        known = self.memory_of_device(stage.stage)
        limit = f" of {gib(known)}" if known else ""
        return (
            f"memory: at most {gib(parts.total)}{limit}, on stage {stage.stage}: parameters {gib(parts.parameters)}, "
            f"gradients {gib(parts.gradients)}, optimizer {gib(parts.optimizer)}, "
            f"activations and work space {gib(parts.activations)}"
        )

    @property
    def placement_line(self) -> str | None:
        """Say where it would stand, and what that costs."""
        placement = self.placement
        if placement is None:
            return None
        number = len({each.node for each in placement.assignments})
        crossings = crossings_text(placement.crossings)
        parts = [f"{number} node{'s' * (number != 1)}"]
        if crossings:
            parts.append(f"of the stage boundaries {crossings}")
        if self.penalty_ratio is not None:
            least = self.least_penalty_ratio
            best = "" if least is None else f" (at least {least:.2%} anywhere with what is free)"
            parts.append(f"predicted to cost {self.penalty_ratio:.2%} of a step{best}")
        return f"placement: {'; '.join(parts)}"

    @property
    def trade_line(self) -> str | None:
        """Say what a step longer than the least was taken for."""
        trade = self.placement.trade if self.placement else None
        return trade and f"traded: {trade}"

    @property
    def room_line(self) -> str | None:
        """Say what is left for the next job."""
        left = self.placement.room_left if self.placement else None
        if not left:
            return None
        return "room left for stages like these: " + ", ".join(
            f"{count} in one {level}" for level, count in left.items()
        )


def crossings_text(crossings: dict[str, int]) -> str:
    """Write how many boundaries cross which level; those that none crosses go without saying."""
    return ", ".join(f"{count} cross a {level}" for level, count in crossings.items() if count)


def gib(size: int) -> str:
    """Write a size of memory so that a person can compare it."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"


def price_text(price: float | None) -> str:
    """Write what an alternative costs: `+3.1 %` is a longer step, `-2.0 %` a shorter one."""
    return "–" if price is None else f"{price:+.1%}"
