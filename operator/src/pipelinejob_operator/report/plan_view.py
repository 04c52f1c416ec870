"""What terminal, JSON and page show of a plan: one value, so that their numbers agree. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from pipelinejob.contract.plan import CostSource, Placement, Plan, StagePlan
from pipelinejob.planning.protection import protection
from pipelinejob.search.reasons import Rejected
from pipelinejob.serving.scheduler import Limits
from pipelinejob.siting.alternatives import Alternative
from pipelinejob.spec.job import Serving, Sharding
from pipelinejob_operator.report.fabric_view import FabricView
from pipelinejob_operator.report.numbers import gib, seconds

SOURCES = {
    CostSource.PROFILED: "measured costs",
    CostSource.ANALYTIC: "counted operations, not a measurement",
    CostSource.EQUAL: "the number of layers alone; with `--profile` it says more",
}


# What replicas divide among them.
SHARDED = {
    Sharding.NONE: "",
    Sharding.OPTIMIZER: ", which share the optimizer's state",
    Sharding.FULL: ", which share parameters and the optimizer's state",
}

_UNBOUNDED = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryParts:
    """What the predicted peak of a stage's memory consists of, in bytes."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int  # and what passes work with: bf16 copies, messages and layers fetched ahead, weight versions

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.parameters + self.gradients + self.optimizer + self.activations


def cache_bytes(stage: StagePlan) -> int:
    """Return what keys and values take of the memory of a stage that serves."""
    return max(stage.memory_bytes - stage.parameter_bytes, 0)


def memory_parts(stage: StagePlan) -> MemoryParts:
    """Split a stage's peak into fp32 parameters, gradients, the optimiser's state, and the rest."""
    gradients = stage.parameter_bytes if stage.gradient_bytes is None else stage.gradient_bytes
    own = stage.parameter_bytes
    if stage.weight_bytes is not None:
        own += stage.weight_bytes - gradients
    optimizer = 2 * gradients if stage.optimizer_bytes is None else stage.optimizer_bytes
    rest = max(stage.memory_bytes - own - gradients - optimizer, 0)
    return MemoryParts(parameters=own, gradients=gradients, optimizer=optimizer, activations=rest)


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
        """The job's full name."""
        return f"{self.plan.namespace}/{self.plan.name}"

    @property
    def fits(self) -> bool | None:
        """Whether the job fits on the nodes given; None if no nodes were given."""
        if self.shortfall is not None:
            return False
        return True if self.plan.placement is not None else None

    @property
    def serves(self) -> bool:
        """Whether the model answers requests, and no step is made."""
        return self.plan.serving is not None

    @property
    def recomputes(self) -> bool:
        """Whether any stage computes activations again."""
        return not self.serves and any(stage.recompute for stage in self.plan.stages)

    @property
    def is_absolute(self) -> bool:
        """Whether the costs are in seconds and bytes, rather than only in proportion."""
        return self.plan.prediction.is_absolute

    @property
    def placement(self) -> Placement | None:
        """The nodes that the job would get."""
        return self.plan.placement

    @cached_property
    def ranks(self) -> tuple[RankView, ...]:
        """All ranks, replica by replica, stage by stage."""
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
        """Return the bytes of memory of a stage's device; None if they are no limit."""
        known = self.device_memory[stage] if self.device_memory else _UNBOUNDED
        return known if known < _UNBOUNDED else None

    def of_stage(self, stage: int) -> tuple[RankView, ...]:
        """Return a stage's ranks, one for each replica."""
        return tuple(rank for rank in self.ranks if rank.index == stage)

    def places_of(self, stage: int) -> tuple[tuple[str, int], ...]:
        """Return the paths of a stage's nodes, and how many of its replicas each node holds."""
        counts = Counter("/".join(rank.path) for rank in self.of_stage(stage))
        return tuple(counts.items())

    @property
    def penalty_ratio(self) -> float | None:
        """The share of a step that the placement's crossings cost."""
        return self._share(self.plan.penalty_s)

    @property
    def least_penalty_ratio(self) -> float | None:
        """A lower bound on that share over all places that are free."""
        return self._share(self.plan.least_penalty_s)

    def _share(self, penalty_s: float | None) -> float | None:
        if self.serves:  # makes no steps
            return None
        return None if penalty_s is None or not self.is_absolute else penalty_s / self.plan.prediction.step_s

    @property
    def shape_line(self) -> str:
        """How the work is divided."""
        if self.plan.serving is not None:
            return _serving_shape(self.plan.serving, self.plan.parallelism.pipeline)
        parallelism, schedule = self.plan.parallelism, self.plan.schedule
        replicas = f" x {parallelism.data} replicas" if parallelism.data > 1 else ""
        tensor = f" x {parallelism.tensor} GPUs a stage" if parallelism.tensor > 1 else ""
        of_all = f", {schedule.batch_size} sequences in all" if schedule.batch_size is not None else ""
        shared = SHARDED[parallelism.sharding] if parallelism.data > 1 else ""
        if parallelism.expert > 1:
            shared += f", of which each {parallelism.expert} divide experts"
        return (
            f"{parallelism.pipeline} stages{replicas}{tensor}{shared}, {schedule.name}, "
            f"{schedule.micro_batches} micro-batches of {schedule.micro_batch_size}{of_all}"
        )

    @property
    def devices_line(self) -> str | None:
        """The devices that the stages compute on, if known."""
        kinds = Counter(stage.device for stage in self.plan.stages if stage.device is not None)
        if not kinds or not self.is_absolute:
            return None
        if len(kinds) == 1:
            return f"devices: {next(iter(kinds))}"
        return "devices: " + ", ".join(f"{count} stages on {kind}" for kind, count in kinds.items())

    @property
    def prediction_line(self) -> str:
        """What is predicted, and from which costs."""
        prediction = self.plan.prediction
        if self.serves:
            (tokens,) = {each.tokens for each in prediction.serving}
            return (
                f"predicted, for prompts of {tokens} tokens and answers of {tokens}, each stage alone on its processor"
                f" (from {SOURCES[prediction.source]}):"
            )
        times = f"{seconds(prediction.step_s)} a step, {prediction.tokens_per_s:,.0f} tokens/s, "
        return (
            f"predicted: {times if self.is_absolute else ''}bubble {prediction.bubble_ratio:.1%} "
            f"(from {SOURCES[prediction.source]})"
        )

    @property
    def memory_line(self) -> str | None:
        """What the memory of the fullest stage consists of, and how much its device has."""
        if not self.is_absolute:
            return None
        stage = max(self.plan.stages, key=lambda stage: stage.memory_bytes)
        if self.serves:
            return (
                f"memory: at most {gib(stage.memory_bytes)}, on stage {stage.stage}:"
                f" parameters {gib(stage.parameter_bytes)}, keys and values {gib(cache_bytes(stage))}"
            )
        parts = memory_parts(stage)
        known = self.memory_of_device(stage.stage)
        limit = f" of {gib(known)}" if known else ""
        return (
            f"memory: at most {gib(parts.total)}{limit}, on stage {stage.stage}: parameters {gib(parts.parameters)}, "
            f"gradients {gib(parts.gradients)}, optimizer {gib(parts.optimizer)}, "
            f"activations and work space {gib(parts.activations)}"
        )

    @property
    def protection_line(self) -> str | None:
        """What recovery in place costs while nothing fails, and what a lost stage costs."""
        found = protection(self.plan)
        return None if found is None else f"recovery: {found.text}"

    @property
    def placement_line(self) -> str | None:
        """How many nodes the job would get, and what crossing between them costs."""
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
        """What was gained by choosing a step longer than the shortest."""
        trade = self.placement.trade if self.placement else None
        return trade and f"traded: {trade}"

    @property
    def room_line(self) -> str | None:
        """How much room is left for further stages like these."""
        left = self.placement.room_left if self.placement else None
        if not left:
            return None
        return "room left for stages like these: " + ", ".join(
            f"{count} in one {level}" for level, count in left.items()
        )


def _serving_shape(serving: Serving, stages: int) -> str:
    groups = Limits.of(serving, num_stages=stages).groups
    return (
        f"{stages} stages, {groups} groups of {serving.group_size} answers at most, prompts in chunks of"
        f" {serving.chunk_tokens} tokens"
    )


def utilization_text(utilization: Sequence[float]) -> str:
    """Write how busy stages are: `85%`, or the least and the most of them, `71% to 96%`."""
    least, most = (f"{each:.0%}" for each in (min(utilization), max(utilization)))
    return least if least == most else f"{least} to {most}"


def rate_text(per_second: float) -> str:
    """Write tokens a second with three digits, or whole."""
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"  # noqa: PLR2004  # three digits either way


def crossings_text(crossings: dict[str, int]) -> str:
    """Write how many boundaries cross which level; those that none crosses go without saying."""
    return ", ".join(f"{count} cross a {level}" for level, count in crossings.items() if count)


def counts_text(counts: dict[str, int] | None) -> str:
    """Write the counts of levels; those that are 0 go without saying."""
    return ", ".join(f"{level} {count}" for level, count in (counts or {}).items() if count) or "–"


def price_text(price: float | None) -> str:
    """Write what an alternative costs: `+3.1 %` is a longer step, `-2.0 %` a shorter one."""
    return "–" if price is None else f"{price:+.1%}"
