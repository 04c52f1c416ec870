"""What a status tells of the ranks: their pods' state at once, their measurements as seldom as the settings say."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from pipelinejob.base import names
from pipelinejob.contract.plan import Assignment, Placement, Plan, ServedAt
from pipelinejob.contract.progress import ExitCode, Progress
from pipelinejob.planning.protection import protection
from pipelinejob.spec.reported.plan_summary import PlacementSummary, PlannedStage, PlanSummary, ServedSummary
from pipelinejob.spec.reported.stage_status import StageStatus
from pipelinejob.spec.status import PipelineJobStatus, decimal, percent
from pipelinejob_operator.objects.containers import Ending
from pipelinejob_operator.objects.job import Job, Rank, format_time, parse_time
from pipelinejob_operator.objects.pods import StagePod

MAX_STAGE_MESSAGE_LENGTH = 1000
_AFTER_A_CHECKPOINT = frozenset({ExitCode.OK, ExitCode.STOPPED})


def summarize(plan: Plan) -> PlanSummary:
    """Write the plan in short."""
    prediction = plan.prediction
    trains, is_absolute = plan.serving is None, prediction.is_absolute
    return PlanSummary(
        stages=tuple(
            PlannedStage(
                stage=stage.stage,
                layers=", ".join(f"{first}-{end - 1}" for first, end in stage.chunks),
                memory_bytes=stage.memory_bytes if prediction.is_absolute else None,
                bubble=percent(stage.bubble_ratio) if trains else None,
                recompute=stage.recompute_text if trains and stage.recompute else None,
            )
            for stage in plan.stages
        ),
        step_seconds=decimal(prediction.step_s) if is_absolute and trains else None,
        bubble=percent(prediction.bubble_ratio) if trains else None,
        tokens_per_second=decimal(prediction.tokens_per_s) if is_absolute and trains else None,
        source=prediction.source,
        protection=None if (found := protection(plan)) is None else found.text,
        serving=tuple(_served(each, is_absolute=is_absolute) for each in prediction.serving),
    )


def _served(found: ServedAt, *, is_absolute: bool) -> ServedSummary:
    return ServedSummary(
        requests=found.requests,
        tokens=found.tokens,
        first_token_seconds=decimal(found.first_token_s) if is_absolute else None,
        per_token_seconds=decimal(found.per_token_s) if is_absolute else None,
        tokens_per_second=decimal(found.tokens_per_s) if is_absolute else None,
        utilization=percent(sum(found.utilization) / len(found.utilization)),
    )


def summarize_placement(plan: Plan) -> PlacementSummary:
    """Write how good a placed plan's place is."""
    placement, prediction = plan.placement, plan.prediction
    assert placement is not None, "only placed plans are written"
    crossed = ", ".join(f"{level} {count}" for level, count in placement.crossings.items() if count)

    def share(seconds: float | None) -> str | None:
        if plan.serving is not None:  # makes no steps
            return None
        return None if seconds is None or not prediction.is_absolute else percent(seconds / prediction.step_s)

    return PlacementSummary(
        crossed=crossed or "none",
        penalty=share(plan.penalty_s),
        least_penalty=share(plan.least_penalty_s),
        room_left=placement.room_left or None,
    )


def summaries(plan: Plan, placement: Placement) -> dict[str, Any]:
    """Return what a status says of a plan for a place: what is expected there, and what the place costs."""
    placed = plan.model_copy(update={"placement": placement})
    return {"plan": summarize(placed), "placement": summarize_placement(placed)}


def with_plan(
    status: PipelineJobStatus, job: Job, plan: Plan, *, pods: Mapping[tuple[int, int], str] | None = None
) -> PipelineJobStatus:
    """Write where every rank goes; `pods` names its pod where the rank does not."""
    assert plan.placement is not None, "only placed plans are written"
    stages = tuple(
        StageStatus(
            replica=each.replica,
            stage=each.stage,
            pod=(pods or {}).get((each.replica, each.stage))
            or names.pod_name(job.key.name, replica=each.replica, stage=each.stage),
            node=each.node,
            path="/".join(each.path),
            restarts=_restarts(status, Rank(each.replica, each.stage)),
        )
        for each in sorted(plan.placement.assignments, key=lambda each: (each.replica, each.stage))
    )
    return status.model_copy(
        update={
            "plan": summarize(plan),
            "stages": stages,
            "stages_ready": f"0/{len(stages)}",
            "nodes": nodes_in_short(stages),
            "crossings": plan.placement.crossings,
            "placement": summarize_placement(plan),
            "steps": _steps(plan),
        }
    )


def with_pods_made(status: PipelineJobStatus, plan: Plan, pods: Mapping[Rank, str]) -> PipelineJobStatus:
    """Write what was planned, and the pods that are made for each rank before any has a node."""
    stages = tuple(
        StageStatus(replica=rank.replica, stage=rank.stage, pod=pod, restarts=_restarts(status, rank))
        for rank, pod in sorted(pods.items())
    )
    return without_nodes(
        status.model_copy(
            update={
                "plan": summarize(plan),
                "stages": stages,
                "steps": _steps(plan),
            }
        )
    )


def _steps(plan: Plan) -> int | None:
    return plan.training.steps if plan.serving is None else None


def without_nodes(
    status: PipelineJobStatus, *, failed: Rank | None = None, comes_back: bool = False
) -> PipelineJobStatus:
    """Take every rank's node back; what is known of the ranks' ends stays readable, and where it is to come back to."""
    stages = tuple(
        stage.model_copy(
            update={
                "node": None,
                "path": None,
                "last_node": stage.node if comes_back else None,
                "ready": False,
                "restarts": stage.restarts + (failed == (stage.replica, stage.stage)),
            }
        )
        for stage in status.stages
    )
    return status.model_copy(
        update={
            "stages": stages,
            "stages_ready": f"0/{len(stages)}" if stages else None,
            "nodes": None,
            "crossings": None,
            "placement": None,
        }
    )


def placement_of(status: PipelineJobStatus) -> Placement:
    """Read back where every rank goes."""
    assignments = tuple(
        Assignment(
            replica=each.replica,
            stage=each.stage,
            node=each.node or "",
            path=tuple(each.path.split("/")) if each.path else (),
        )
        for each in status.stages
    )
    return Placement(assignments=assignments, crossings=status.crossings or {})


def speeds_of(job: Job) -> tuple[float, ...] | None:
    """Return how fast the stages were measured to be, if the layers are divided by that."""
    speeds = job.status.recovery.speeds if job.status.recovery else None
    is_of_these = speeds and job.spec is not None and len(speeds) == job.spec.parallelism.pipeline
    return tuple(map(float, speeds)) if speeds and is_of_these else None


def with_pods(status: PipelineJobStatus, pods: Mapping[Rank, StagePod]) -> PipelineJobStatus:
    """Write which ranks are up, which are stuck and how they ended."""
    stages = tuple(_stage_with_pod(stage, pods.get(Rank(stage.replica, stage.stage))) for stage in status.stages)
    num_ready = sum(stage.ready for stage in stages)
    return status.model_copy(update={"stages": stages, "stages_ready": f"{num_ready}/{len(stages)}"})


def is_due(status: PipelineJobStatus, *, now: datetime, interval_s: float) -> bool:
    """Tell whether newer measurements may be written."""
    return status.progress_time is None or (now - parse_time(status.progress_time)).total_seconds() >= interval_s


def with_progress(status: PipelineJobStatus, reports: Iterable[Progress], *, now: datetime) -> PipelineJobStatus:
    """Write what the trainers of this attempt say of themselves; nothing changes if they say what they said before."""
    reports = tuple(reports)
    batch = next((each for each in reports if each.attempt == status.attempt and each.requests), None)
    if batch is not None:
        return _with_answers(status, batch, now=now)
    # One that has yet to join the others has done no step, and knows nothing of theirs.
    told = (each for each in reports if each.attempt == status.attempt and (each.incarnation or each.step))
    current = {Rank(each.replica, each.stage): each for each in told}
    if not current:
        return status
    measured = status.model_copy(
        update={
            "stages": tuple(_stage_with_progress(stage, current) for stage in status.stages),
            **_totals(status, tuple(current.values())),
        }
    )
    if measured == status:
        return status
    return measured.model_copy(update={"progress_time": format_time(now)})


def _with_answers(status: PipelineJobStatus, batch: Progress, *, now: datetime) -> PipelineJobStatus:
    """Write how many requests of a batch have an answer; they are no steps."""
    progress = progress_share(batch.answered or 0, batch.requests)
    if progress == status.progress:
        return status
    return status.model_copy(update={"progress": progress, "progress_time": format_time(now)})


def with_last_words(status: PipelineJobStatus, endings: Iterable[Ending]) -> PipelineJobStatus:
    """Write the checkpoint that the stages made on their way out, told by their last words."""
    saved = [each.step for each in endings if each.step is not None and each.exit_code in _AFTER_A_CHECKPOINT]
    if not saved or min(saved) <= (status.last_checkpoint_step or 0):
        return status
    step = min(saved)
    return status.model_copy(
        update={"last_checkpoint_step": step, "step": step, "progress": progress_share(step, status.steps)}
    )


def _restarts(status: PipelineJobStatus, rank: Rank) -> int:
    return next((each.restarts for each in status.stages if (each.replica, each.stage) == rank), 0)


def nodes_in_short(stages: tuple[StageStatus, ...]) -> str:
    """Name the nodes of these ranks, as many as fit a column."""
    nodes = sorted({stage.node for stage in stages if stage.node})
    shown = ", ".join(nodes[:3])
    return f"{len(nodes)}: {shown}" + (", ..." if len(nodes) > 3 else "")  # noqa: PLR2004  # as many as fit a column


def _stage_with_pod(stage: StageStatus, pod: StagePod | None) -> StageStatus:
    if pod is None:
        return stage.model_copy(update={"ready": False})
    ending = pod.ending
    if pod.stuck and pod.stuck[0] == stage.reason:
        return stage  # worded differently each time, the same nevertheless
    reason, message = _why(pod)
    return stage.model_copy(
        update={
            "ready": pod.is_ready and not pod.is_terminating and pod.outcome is None,
            "exit_code": ending.exit_code if ending else None,
            "reason": reason,
            "message": message[:MAX_STAGE_MESSAGE_LENGTH] if message else None,
            "step": ending.step if ending and ending.step is not None else stage.step,
        }
    )


def _why(pod: StagePod) -> tuple[str, str] | tuple[None, None]:
    ended = pod.disruption or (pod.ending and (pod.ending.reason, pod.ending.message))
    return pod.stuck or ended or pod.beside or (None, None)


def _stage_with_progress(stage: StageStatus, reports: Mapping[Rank, Progress]) -> StageStatus:
    report = reports.get(Rank(stage.replica, stage.stage))
    if report is None:
        return stage
    return stage.model_copy(
        update={
            "step": report.step,
            "utilization": None if report.utilization_ratio is None else percent(report.utilization_ratio),
            "bubble": None if report.bubble_ratio is None else percent(report.bubble_ratio),
            "memory_bytes": report.memory_bytes,
        }
    )


def _totals(status: PipelineJobStatus, reports: tuple[Progress, ...]) -> dict[str, Any]:
    step = min(report.step for report in reports)  # the job has done what its last stage has done
    losses = [report.loss for report in reports if report.loss is not None]
    rates = [report.tokens_per_s for report in reports if report.tokens_per_s is not None]
    bubbles = [report.bubble_ratio for report in reports if report.bubble_ratio is not None]
    saved = [report.checkpoint_step for report in reports if report.checkpoint_step is not None]
    return {
        "step": step,
        "progress": progress_share(step, status.steps),
        "loss": decimal(losses[0]) if losses else status.loss,
        "tokens_per_second": decimal(rates[0]) if rates else status.tokens_per_second,
        "bubble": percent(sum(bubbles) / len(bubbles)) if bubbles else status.bubble,
        "last_checkpoint_step": min(saved) if saved else status.last_checkpoint_step,
        "skipped_steps": max(report.not_finite_steps for report in reports) or status.skipped_steps,
        "roll_backs": max(report.roll_backs for report in reports) or status.roll_backs,
        "failed_checkpoints": max(report.failed_checkpoints for report in reports) or status.failed_checkpoints,
    }


def progress_share(step: int, steps: int | None) -> str | None:
    """Write the share of the steps done; never 100% before the last."""
    if not steps:
        return None
    return "100%" if step >= steps else f"{min(99, 100 * step // steps)}%"
