"""The results of a run, predicted and measured, for summary.json, final table and report. Pure."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import mean, median

from pipelinejob.base.timeline import COMPUTE, WAITING, SpanKind, StageTimeline, Timeline, bubble_ratio
from pipelinejob.base.values import Value
from pipelinejob.contract.plan import CostSource, LayerRange, Plan, StagePlan
from pipelinejob.contract.progress import StepRecord
from pipelinejob.spec.job import ScheduleName
from pipelinejob.spec.status import PipelineJobStatus

_SETTLING_STEPS = 2  # the first steps of an attempt allocate memory and open connections


class Pair(Value):
    """One quantity, as predicted before the run and as measured in it."""

    predicted: float | None = None
    measured: float | None = None


class StageSummary(Value):
    """One rank. Ratios are of the steps whose timeline was kept: the last ones."""

    replica: int
    stage: int
    chunks: tuple[LayerRange, ...]  # of layers, [first, end)
    parameters: int | None  # None: nothing was known of the layers before the run
    utilization_ratio: Pair  # compute / the step's wall time
    bubble_ratio: Pair  # timeline.bubble_ratio
    tensor_bytes: int | None  # predicted: parameters, gradients, optimiser state, activations
    memory_bytes: Pair  # of the process at its peak, or what a GPU's holds for it
    restarts: int = 0
    seconds: dict[str, float]  # of a mean step, measured: a span kind, or `cause` of a wait


class RunSummary(Value):
    """All of a run in one value."""

    namespace: str
    name: str
    state: str
    reason: str
    message: str
    schedule: ScheduleName
    micro_batches: int
    micro_batch_size: int
    steps: int
    steps_wanted: int
    loss_first: float | None = None
    loss_last: float | None = None
    training_s: float = 0.0  # the sum of all steps
    step_s: Pair
    tokens_per_s: Pair
    bubble_ratio: Pair
    cost_source: CostSource
    concurrency: int | None = None  # ranks that truly compute at once, where the machine is shared
    restarts: int = 0
    attempts: int = 1
    stages: tuple[StageSummary, ...]

    @property
    def off_plan(self) -> float | None:
        """How much longer a step took than predicted, as a share; None if either is unknown.

        Below 0 if it took less.
        """
        if self.step_s.predicted is None or self.step_s.measured is None:
            return None
        return self.step_s.measured / self.step_s.predicted - 1

    @property
    def crowding(self) -> str | None:
        """A sentence on what shared processors add to the bubble; None if stages share none."""
        if self.concurrency is None or self.concurrency >= len(self.stages):
            return None
        return (
            f"{len(self.stages)} stages shared {self.concurrency} processors: what a stage waits for one is part of "
            f"its bubble, planned and measured."
        )


def summarise(
    plan: Plan,
    *,
    status: PipelineJobStatus,
    steps: Sequence[StepRecord],
    predicted: Timeline,
    measured: Timeline,
    process_bytes: int | None = None,
) -> RunSummary:
    """Compare what a run measured with what its plan predicted.

    `process_bytes` is what a process takes before it holds a layer (`Profile`); None: not known,
    nor then its peak.
    """
    summary = next((each for each in status.conditions if each.type == "Succeeded"), None)
    stages = tuple(
        _stage(plan, stage, replica, status=status, predicted=predicted, measured=measured, beside=process_bytes)
        for replica in range(plan.parallelism.data)
        for stage in plan.stages
    )
    step_s, prediction = _typical_step_s(steps), plan.prediction
    tokens = tokens_per_step(plan)
    bubbles = [stage.bubble_ratio.measured for stage in stages if stage.bubble_ratio.measured is not None]
    return RunSummary(
        namespace=plan.namespace,
        name=plan.name,
        state=str(status.state or "Pending"),
        reason=summary.reason if summary else "",
        message=summary.message if summary else "",
        schedule=plan.schedule.name,
        micro_batches=plan.schedule.micro_batches,
        micro_batch_size=plan.schedule.micro_batch_size,
        steps=steps[-1].step if steps else 0,
        steps_wanted=plan.training.steps,
        loss_first=steps[0].loss if steps else None,
        loss_last=steps[-1].loss if steps else None,
        training_s=sum(step.step_s for step in steps),
        step_s=Pair(predicted=prediction.step_s if prediction.is_absolute else None, measured=step_s),
        tokens_per_s=Pair(
            predicted=prediction.tokens_per_s if prediction.is_absolute else None,
            measured=tokens / step_s if step_s else None,
        ),
        bubble_ratio=Pair(predicted=plan.prediction.bubble_ratio, measured=mean(bubbles) if bubbles else None),
        cost_source=plan.prediction.source,
        concurrency=plan.prediction.concurrency,
        restarts=status.restarts,
        attempts=status.attempt,
        stages=stages,
    )


def tokens_per_step(plan: Plan) -> int:
    """Return the number of tokens in one optimiser step."""
    return plan.schedule.sequences * plan.parallelism.data * plan.data.sequence_length


def seconds_by_cause(timelines: Sequence[StageTimeline]) -> dict[str, float]:
    """Return a mean step's seconds by span kind; a wait is named by its cause if it has one."""
    total: defaultdict[str, float] = defaultdict(float)
    for timeline in timelines:
        for span in timeline.spans:
            total[_name(span.kind, span.cause)] += span.end_s - span.start_s
    return {name: seconds / len(timelines) for name, seconds in total.items()}


def _name(kind: SpanKind, cause: str | None) -> str:
    return cause if cause and kind in WAITING else kind.value


def _stage(
    plan: Plan,
    stage: StagePlan,
    replica: int,
    *,
    status: PipelineJobStatus,
    predicted: Timeline,
    measured: Timeline,
    beside: int | None,
) -> StageSummary:
    seen = tuple(each for each in measured.stages if (each.replica, each.stage) == (replica, stage.stage))
    planned = next((each for each in predicted.stages if each.stage == stage.stage), None)
    said = next((each for each in status.stages if (each.replica, each.stage) == (replica, stage.stage)), None)
    tensors = stage.memory_bytes if plan.prediction.is_absolute else None
    return StageSummary(
        replica=replica,
        stage=stage.stage,
        chunks=stage.chunks,
        parameters=stage.parameter_bytes // 4 if plan.prediction.is_absolute else None,
        utilization_ratio=Pair(
            predicted=_compute_s(planned) / plan.prediction.step_s if planned else None,
            measured=_utilization(seen),
        ),
        bubble_ratio=Pair(
            predicted=stage.bubble_ratio,
            measured=bubble_ratio(tuple(span for each in seen for span in each.spans)) if seen else None,
        ),
        tensor_bytes=tensors,
        memory_bytes=Pair(
            predicted=None if tensors is None or beside is None else beside + tensors,
            measured=said.memory_bytes if said else None,
        ),
        restarts=said.restarts if said else 0,
        seconds=seconds_by_cause(seen) if seen else {},
    )


def _utilization(timelines: Sequence[StageTimeline]) -> float | None:
    wall = sum(each.spans[-1].end_s - each.spans[0].start_s for each in timelines if each.spans)
    return sum(_compute_s(each) for each in timelines) / wall if wall else None


def _compute_s(timeline: StageTimeline) -> float:
    return sum(span.end_s - span.start_s for span in timeline.spans if span.kind in COMPUTE)


def _typical_step_s(steps: Sequence[StepRecord]) -> float | None:
    """Return the median step of the last attempt, without its first steps."""
    if not steps:
        return None
    last = [step.step_s for step in steps if step.attempt == steps[-1].attempt]
    return median(last[_SETTLING_STEPS:] or last)
