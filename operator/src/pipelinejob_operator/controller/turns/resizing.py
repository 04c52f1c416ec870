"""Another shape for a job that runs: asked for by `kubectl scale`, an autoscaler, or a changed manifest.

The new shape is planned, and has room, before anything stops. Where it can be, it is then taken
over from memory (`moving`). Else the stages write a checkpoint, and the next attempt has the new
shape. The sequences of a step, and their order, stay the same.
"""

from collections.abc import Iterator
from dataclasses import replace

from pipelinejob.search.found import schedule_title
from pipelinejob.spec.chosen import Chosen
from pipelinejob.spec.reported.conditions import ConditionStatus, ConditionType, State
from pipelinejob_operator.controller.turns import shapes
from pipelinejob_operator.controller.turns.transitions import AS_WANTED, Turn, give_up
from pipelinejob_operator.objects.conditions import Fact
from pipelinejob_operator.objects.job import Job, condition

CANNOT_BE_PLANNED = "CannotBePlanned"
BY_KUEUE = "QueueDecides"


def may_shrink(job: Job) -> bool:
    """Tell whether a job runs with fewer replicas than it wants rather than wait."""
    return job.spec is not None and job.spec.scheduling.min_replicas is not None and job.queue is None


def with_replicas(written: Job, *, above: int = 0) -> Iterator[Job]:
    """Return the job with each number of replicas that it may have, most first; with more than `above` only.

    `written` is the job as its spec says, with nothing chosen.
    """
    assert written.spec is not None, "only readable jobs have a shape"
    wanted, batch = written.spec.parallelism.data, written.spec.schedule.global_batch_size
    yield written
    if not may_shrink(written) or batch is None:
        return
    for data in range(wanted - 1, max(above, (written.spec.scheduling.min_replicas or 1) - 1), -1):
        if batch % data == 0:
            parallelism = written.spec.parallelism.model_copy(update={"data": data})
            yield replace(written, spec=written.spec.model_copy(update={"parallelism": parallelism}))


def is_asked(job: Job) -> bool:
    """Tell whether a job that holds nodes is to have other replicas, stages, layers or another schedule."""
    if job.spec is None or job.spec.suspend or job.is_finished or job.is_deleting:
        return False
    return job.has_begun and is_another(job) and not _is_under_way(job)


def is_another(job: Job) -> bool:
    """Tell whether the spec asks for another shape than the job has."""
    return job.is_resized or shapes.is_asked(job)


def is_withdrawn(job: Job) -> bool:
    """Tell whether the spec asks again for what the job has, after it asked for something else."""
    last = condition(job.status, ConditionType.RESIZED)
    if _is_under_way(job):
        return False
    return job.has_begun and not is_another(job) and last is not None and last.status is ConditionStatus.FALSE


def begin(turn: Turn, chosen: Chosen, *, why: str = "") -> Turn:
    """End the present attempt for one with other degrees; what the stages have done is in their checkpoint.

    `why` says what keeps it from memory.
    """
    before = turn.job.status.chosen
    assert before is not None, "only what was chosen is chosen anew"
    cannot = f" (not from memory: {why})" if why else ""
    layers = shapes.kept_layers(turn.status), (turn.job.written and turn.job.written.partition.layers) or ()
    change = shapes.described(before, chosen, layers)
    message = f"goes {change}{cannot}; the stages write a checkpoint and stop"
    turn = give_up(
        turn,
        state=State.RESTARTING,
        reason="Resizing",
        message=message,
        backoff_s=0.0,
        comes_back=True,
    ).having(chosen=chosen)
    resizing = {ConditionType.RESIZED: Fact(False, "Resizing", message)}
    return turn.finding(State.RESTARTING, resizing).told("Resizing", f"G{message[1:]}, and go on from it")


def hold(turn: Turn, reason: str, why: str) -> Turn:
    """Go on with what there is, and say what keeps the rest away."""
    before, last = turn.job.status.chosen, condition(turn.status, ConditionType.RESIZED)
    message = f"stays {_as_it_is(turn.job, before)}: {why}"
    is_news = last is None or last.status is not ConditionStatus.FALSE or last.reason != reason
    turn = turn.finding(_state(turn), {ConditionType.RESIZED: Fact(False, reason, message)})
    return turn.told("ResizeWaits", f"S{message[1:]}", warning=True) if is_news else turn


def settle(turn: Turn) -> Turn:
    """Say that the job has what its spec asks for."""
    return turn.finding(_state(turn), {ConditionType.RESIZED: AS_WANTED})


def _as_it_is(job: Job, before: Chosen | None) -> str:
    if before is None or job.is_resized or not shapes.is_asked(job):
        return f"at {before.data if before else 1} of the {job.wanted_replicas} replicas that are asked for"
    return f"with {shapes.counted(before.pipeline, 'stage')} and {schedule_title(before)}, though others are asked for"


def _is_under_way(job: Job) -> bool:
    return job.status.recovery is not None and job.status.recovery.resizing is not None


def _state(turn: Turn) -> State:
    return turn.status.state or State.PENDING
