"""Other configurations of a job: what its manifest leaves open, or could leave open, and which are worth a look."""

from collections.abc import Callable
from typing import Any

from pipelinejob.costs.layers import Profile
from pipelinejob.fabric.hardware import Hardware
from pipelinejob.fabric.pool import Pool
from pipelinejob.schedules.families import ASYNCHRONOUS
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.search.best import search
from pipelinejob.search.found import Candidate, Found
from pipelinejob.spec.chosen import Chosen
from pipelinejob.spec.job import Device, Model, Parallelism, Partition, PipelineJobSpec

_BRIEF = 150_000  # actions simulated to find alternatives to what a manifest fixes: some seconds
_UNRUNNABLE = "; the trainer cannot run it yet"
_FIELDS = {
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
    "recompute_layers": "spec.schedule.recomputeLayers",
}


def over_gpus(spec: PipelineJobSpec, gpus: int) -> PipelineJobSpec:
    """Return the spec for so many GPUs: degrees that a manifest fixes are opened, open ones stay bounded by it."""
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
            "parallelism": Parallelism.model_validate({"gpus": gpus, "sharding": spec.parallelism.sharding}),
            "schedule": type(schedule).model_validate(others),
            "partition": Partition(),
            "stage_templates": (),
        }
    )


def runnable(spec: PipelineJobSpec) -> PipelineJobSpec:
    """Leave open only what the trainer can run: no tensor parallelism, unless the manifest itself asks for it."""
    if spec.parallelism.tensor is not None:
        return spec
    return spec.model_copy(update={"parallelism": spec.parallelism.model_copy(update={"tensor": 1})})


def why_no_others(spec: PipelineJobSpec, measured: Profile | None) -> str | None:
    """Return why a decided spec's configuration is compared with no other; None if it is."""
    if spec.device is Device.CPU:
        return "stages on processors share them"
    if spec.schedule.name in {*ASYNCHRONOUS, ScheduleName.CUSTOM}:
        return f"{spec.schedule.name} trains otherwise than any other schedule"
    if spec.parallelism.expert > 1:
        return "a search does not look at divided experts yet"
    if measured is not None:
        return "costs that were measured hold for one size of micro-batches"
    return None if spec.model.is_counted else _why_uncounted(spec.model)


def _why_uncounted(model: Model) -> str:
    if model.hugging_face is not None:
        return (
            "spec.model.config is not there, so the layers cannot be counted (`pipelinejob validate --fill` writes it)"
        )
    return "layers of one's own cannot be counted"


def others_than(spec: PipelineJobSpec, pool: Pool, *, hardware: Hardware, measured: Profile | None) -> Found | None:
    """Search for other configurations of a decided spec, on as many devices; None where there is no choice.

    Raises SpecError if nothing else can be planned.
    """
    if why_no_others(spec, measured) is not None:
        return None
    wanted = opened(spec, num_gpus(spec))
    if spec.parallelism.tensor == 1:
        wanted = runnable(wanted)
    return search(wanted, pool, hardware=hardware, effort=_BRIEF)


def in_turn(found: Found) -> tuple[Candidate, ...]:
    """Return the candidates worth placing: the best of each degrees, then the best of further schedules for those."""
    by_schedule = _firsts(found.candidates, _schedule)
    further = [each for each in by_schedule if not any(each is other for other in found.alternatives)]
    return (*found.alternatives, *further)


def _firsts(candidates: tuple[Candidate, ...], key: Callable[[Candidate], object]) -> list[Candidate]:
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
    return candidate.title + _UNRUNNABLE * (candidate.chosen.tensor > 1 and candidate.spec.model.built_in is None)


def fields_of(chosen: Chosen) -> dict[str, object]:
    """Return what would stand in the manifest, by path."""
    values = chosen.model_dump(mode="json")
    if chosen.recompute_layers is not None:  # which says all of it
        values["recompute"] = None
    return {path: values[key] for key, path in _FIELDS.items() if values[key] is not None}


def is_of(candidate: Candidate, spec: PipelineJobSpec) -> bool:
    """Tell whether a candidate is what a decided spec fixes already."""
    own, other = spec.parallelism, candidate.spec.parallelism
    schedule, its = spec.schedule, candidate.spec.schedule
    return (own.pipeline, own.data, own.tensor) == (other.pipeline, other.data, other.tensor) and (
        schedule.name,
        schedule.virtual_stages,
        schedule.micro_batches,
        schedule.micro_batch_size,
    ) == (its.name, its.virtual_stages, its.micro_batches, its.micro_batch_size)
