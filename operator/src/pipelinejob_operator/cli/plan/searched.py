"""Configurations for a job: what is chosen where its manifest leaves something open, and what else there would be."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pipelinejob.cost import Profile
from pipelinejob.hardware import Hardware
from pipelinejob.pool import Pool
from pipelinejob.schedules.names import ASYNCHRONOUS, ScheduleName
from pipelinejob.search.best import search
from pipelinejob.search.found import Candidate, Found
from pipelinejob.spec import Parallelism, Partition, PipelineJobSpec
from pipelinejob_operator.report.numbers import seconds
from pipelinejob_operator.report.plan_view import About, Alternative, Rejected

_BRIEF = 150_000  # actions played to find alternatives to what a manifest fixes: some seconds
_ENDED = "; the search ended before all that could be better were planned"
_UNRUNNABLE = "; the trainer cannot run it yet"
_CHOSEN = {
    "pipeline": "spec.parallelism.pipeline",
    "data": "spec.parallelism.data",
    "tensor": "spec.parallelism.tensor",
    "schedule": "spec.schedule.name",
    "virtual_stages": "spec.schedule.virtualStages",
    "micro_batches": "spec.schedule.microBatches",
    "micro_batch_size": "spec.schedule.microBatchSize",
    "batch_size": "spec.schedule.batchSize",
    "recompute": "spec.schedule.recompute",
    "recompute_stages": "spec.schedule.recomputeStages",
}


def for_gpus(spec: PipelineJobSpec, gpus: int) -> PipelineJobSpec:
    """Plan for so many GPUs instead: with degrees that a manifest leaves open, as it does; else with all open."""
    if not spec.parallelism.is_open:
        return opened(spec, gpus)
    return spec.model_copy(update={"parallelism": spec.parallelism.model_copy(update={"gpus": gpus})})


def opened(spec: PipelineJobSpec, gpus: int) -> PipelineJobSpec:
    """Leave degrees, schedule and micro-batches open, over so many GPUs and the same sequences in a step."""
    schedule = spec.schedule
    total = schedule.global_batch_size or (spec.parallelism.data or 1) * schedule.sequences
    others: dict[str, Any] = {"name": ScheduleName.AUTO, "global_batch_size": total}
    return spec.model_copy(
        update={
            "parallelism": Parallelism.model_validate({"gpus": gpus}),
            "schedule": type(schedule).model_validate(others),
            "partition": Partition(),
            "stage_templates": (),
        }
    )


def runnable(spec: PipelineJobSpec) -> PipelineJobSpec:
    """Leave to be chosen only what the trainer can run, as the operator does: no tensor parallelism."""
    if spec.parallelism.tensor is not None:
        return spec
    parallelism = spec.parallelism.model_copy(update={"tensor": 1})
    return spec.model_copy(update={"parallelism": parallelism})


def others_than(spec: PipelineJobSpec, pool: Pool, *, hardware: Hardware, profile: Profile | None) -> Found | None:
    """Look for other configurations of a decided spec, on as many devices of a pool; None where there is no choice.

    A schedule that trains otherwise (asynchronous, or of the user's own making) is left to its user, and costs that
    were measured hold for one size of micro-batches only.
    """
    if spec.schedule.name in {*ASYNCHRONOUS, ScheduleName.CUSTOM} or profile is not None:
        return None
    wanted = opened(spec, num_gpus(spec))
    if spec.parallelism.tensor == 1:
        wanted = runnable(wanted)
    return search(wanted, pool, hardware=hardware, effort=_BRIEF)


def in_turn(found: Found) -> tuple[Candidate, ...]:
    """Give the candidates worth telling of: the best of each degrees, then the best of further schedules for those."""
    by_schedule = _firsts(found.candidates, _schedule)
    further = [each for each in by_schedule if not any(each is other for other in found.alternatives)]
    return (*found.alternatives, *further)


def _firsts(candidates: Sequence[Candidate], key: Callable[[Candidate], object]) -> list[Candidate]:
    firsts: dict[object, Candidate] = {}
    for each in candidates:
        firsts.setdefault(key(each), each)
    return list(firsts.values())


def _schedule(candidate: Candidate) -> tuple[int, int, int, str]:
    chosen = candidate.chosen
    return chosen.pipeline, chosen.data, chosen.tensor, chosen.schedule


def num_gpus(spec: PipelineJobSpec) -> int:
    """Count the devices of a decided spec."""
    return spec.parallelism.pipeline * spec.parallelism.data * spec.parallelism.tensor


def named(candidate: Candidate) -> str:
    """Name a candidate for people; one that can be planned, but not yet be run, says so."""
    return candidate.title + _UNRUNNABLE * (candidate.chosen.tensor > 1)


def fields_of(candidate: Candidate) -> dict[str, object]:
    """Give what would stand in the manifest, by path."""
    chosen = candidate.chosen.model_dump(mode="json")
    return {path: chosen[key] for key, path in _CHOSEN.items() if chosen[key] is not None}


def is_of(candidate: Candidate, spec: PipelineJobSpec) -> bool:
    """Say whether a candidate is what a decided spec says anyhow."""
    own, other = spec.parallelism, candidate.spec.parallelism
    schedule, its = spec.schedule, candidate.spec.schedule
    return (own.pipeline, own.data, own.tensor) == (other.pipeline, other.data, other.tensor) and (
        schedule.name,
        schedule.virtual_stages,
        schedule.micro_batches,
        schedule.micro_batch_size,
    ) == (its.name, its.virtual_stages, its.micro_batches, its.micro_batch_size)


def unplaced(best: Candidate, found: Found, *, most: int) -> tuple[Alternative, ...]:
    """Give the best candidates of other degrees than the one that is planned, with their price against it."""
    others = [each for each in in_turn(found) if not is_of(each, best.spec)]
    return tuple(
        Alternative(
            about=About.CONFIGURATION,
            what=named(each),
            step_s=each.step_s,
            price=best.tokens_per_s / each.tokens_per_s - 1,
            bubble_ratio=each.bubble_ratio,
            memory_bytes=max(each.memory_bytes),
            fields=fields_of(each),
        )
        for each in others[:most]
    )


def rejected_of(found: Found) -> tuple[Rejected, ...]:
    """Give what was looked at and is not among the candidates."""
    return tuple(Rejected(what=each.what, why=each.why) for each in found.rejected)


def notes_of(found: Found) -> Sequence[str]:
    """Say how far a search came, and what a schedule that was searched for is worth."""
    number = f"{found.num_options:,} configurations looked at"
    if found.num_searched:
        number = f"{number}, and a schedule searched for {found.num_searched} of them"
    end = ": none is left that could be better" if found.is_complete else _ENDED
    return (f"{number}{end}", *_worth(found))


def _worth(found: Found) -> Iterator[str]:
    best, named = found.best, found.best_named
    if best.is_searched and named is not None:
        yield (
            f"auto: {seconds(best.step_s)} a step by a schedule searched for these stages, the best named one takes"
            f" {named.step_s / best.step_s - 1:.1%} longer ({seconds(named.step_s)}: {named.title}), both predicted"
        )
