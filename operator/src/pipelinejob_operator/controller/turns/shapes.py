"""What a job trains with, and what its spec asks for now: degrees, layers, schedule; and whether memory can do that."""

import re
from collections.abc import Sequence

from pipelinejob.schedules.families import FAMILIES
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.search.found import schedule_title
from pipelinejob.spec.chosen import Chosen, decided
from pipelinejob.spec.job import PipelineJobSpec
from pipelinejob.spec.reported.conditions import UP
from pipelinejob.spec.status import PipelineJobStatus
from pipelinejob.spec.training import Compile
from pipelinejob_operator.controller.turns.failing import replacing
from pipelinejob_operator.objects.job import Job, Rank

Layers = tuple[int, ...]
_CHUNK = re.compile(r"(\d+)-(\d+)")
_ORDERED_OTHERWISE = frozenset({ScheduleName.AUTO, ScheduleName.CUSTOM})


def present(job: Job) -> Chosen | None:
    """Return what a job trains with, as its status says, or its spec where that leaves nothing open."""
    if job.status.chosen is not None or job.spec is None or job.spec.is_open:
        return job.status.chosen
    return decided(job.spec)


def alike(before: Chosen, data: int) -> Chosen | None:
    """Return the same with so many replicas, which share the same micro-batches; None where they cannot equally."""
    of_all = before.micro_batches * before.data
    if before.batch_size is not None or of_all % data:
        return None
    return before.model_copy(update={"data": data, "micro_batches": of_all // data})


def reshaped(job: Job) -> Chosen | None:
    """Return what the spec asks for with other stages or another schedule, with the present replicas; else None.

    Micro-batches stay what they are: their sums then have the same order.
    """
    before, written = job.status.chosen, job.written
    if before is None or written is None or not job.leaves_open or not _may_reshape(written):
        return None
    pipeline = written.parallelism.pipeline or before.pipeline
    name = before.schedule if written.schedule.name is ScheduleName.AUTO else written.schedule.name
    is_same = name is before.schedule
    virtual = written.schedule.virtual_stages or (before.virtual_stages if is_same else None)
    if (pipeline, name, virtual) == (before.pipeline, before.schedule, before.virtual_stages):
        return None
    schedule = written.schedule
    changes = {
        "pipeline": pipeline,
        "schedule": name,
        "virtual_stages": virtual,
        "recompute": bool(schedule.recompute) if schedule.recompute is not None else before.recompute,
        "recompute_stages": schedule.recompute_stages,
        "recompute_layers": None,
    }
    return before.model_copy(update=changes)


def asks_for_layers(job: Job) -> bool:
    """Tell whether the spec divides the layers otherwise than they are; where it does not say, they are well so."""
    written, now = job.written, kept_layers(job.status)
    layers = written.partition.layers if written is not None and _may_reshape(written) else None
    return job.leaves_open and bool(now) and layers is not None and layers != now


def is_asked(job: Job) -> bool:
    """Tell whether the spec asks for other stages, layers or another schedule than the job trains with."""
    return reshaped(job) is not None or asks_for_layers(job)


def in_short(job: Job) -> str:
    """Write what the spec says of stages, layers and schedule, to see whether it still says so."""
    written = job.written
    if written is None:
        return ""
    partition = ",".join(map(str, written.partition.layers or ()))
    schedule = written.schedule
    return f"{written.parallelism.pipeline}/{schedule.name}/{schedule.virtual_stages}/{partition}"[:1024]


def described(before: Chosen, after: Chosen, layers: tuple[Layers, Layers] | None = None) -> str:
    """Say from what to what a job goes: `from 2 to 3 stages`; `layers` are those before and after."""
    words = []
    if after.data != before.data:
        words.append(f"from {before.data} to {counted(after.data, 'replica')}")
    if after.pipeline != before.pipeline:
        words.append(f"from {before.pipeline} to {counted(after.pipeline, 'stage')}")
    if schedule_title(after) != schedule_title(before):
        words.append(f"from {schedule_title(before)} to {schedule_title(after)}")
    if not words and layers is not None:
        words.append(f"from {listed(layers[0])} to {listed(layers[1])} layers")
    return " and ".join(words) or f"from {before.data} to {counted(after.data, 'replica')}"


def counted(number: int, noun: str) -> str:
    """Write a number of things."""
    return f"{number} {noun}{'s' * (number != 1)}"


def listed(layers: Sequence[int]) -> str:
    """Write the layers of each stretch."""
    return "/".join(map(str, layers))


def why_not(job: Job, chosen: Chosen) -> str:
    """Say why a job that runs cannot go over to this from memory; '' if it can, as far as its status tells."""
    status, before = job.status, present(job)
    recovery = replacing.recovery_of(status)
    keeps_order = before is not None and _is_ordered_alike(before, chosen)
    others = [each.schedule for each in (chosen, *([before] if before else ())) if not _follows_from_name(each)]
    compiles = job.spec is not None and job.spec.training.compile is Compile.LAYERS
    reasons = {
        "its stages are not all up and training": (
            status.state not in UP or not recovery.incarnation or recovery.since is not None
        ),
        f"the order of {others[0] if others else ''} follows from more than its name": bool(others),
        "the status does not say which layers its stages have": not kept_layers(status),
        "spec.training.compile: layers that move would be compiled anew, while all wait": compiles and not keeps_order,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def kept_layers(status: PipelineJobStatus) -> Layers:
    """Return the layers of each stretch as the gang runs now, first to last; none where the status does not say."""
    held = [each.layers for each in (status.plan.stages if status.plan else ())]
    stretches = sorted({(int(first), int(last) + 1) for each in held for first, last in _CHUNK.findall(each)})
    is_whole = [first for first, _ in stretches] == [0, *(end for _, end in stretches[:-1])]
    return tuple(end - first for first, end in stretches) if is_whole else ()


def undivided(status: PipelineJobStatus) -> PipelineJobStatus:
    """Return the status without the layers that the gang keeps, so that they are divided as the spec says."""
    recovery = status.recovery and status.recovery.model_copy(update={"layers": None})
    return status.model_copy(update={"recovery": recovery})


def new_ranks(job: Job, chosen: Chosen) -> list[Rank]:
    """Return the ranks that these degrees have and the job has not."""
    have = set(job.ranks)
    ranks = (Rank(replica, stage) for replica in range(chosen.data) for stage in range(chosen.pipeline))
    return [rank for rank in ranks if rank not in have]


def _may_reshape(written: PipelineJobSpec) -> bool:
    return written.recovery.in_place and written.schedule.global_batch_size is not None


def _follows_from_name(chosen: Chosen) -> bool:
    return chosen.schedule not in _ORDERED_OTHERWISE and not FAMILIES[chosen.schedule].is_asynchronous


def _is_ordered_alike(before: Chosen, after: Chosen) -> bool:
    return (before.pipeline, schedule_title(before)) == (after.pipeline, schedule_title(after))
