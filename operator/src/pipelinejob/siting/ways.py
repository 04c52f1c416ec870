"""What a job that does not fit now could ask for instead, so that it would: each tried out, and priced."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pipelinejob.base.errors import NoPlacementError, SpecError
from pipelinejob.contract.plan import Plan
from pipelinejob.fabric.topology import Topology
from pipelinejob.siting.alternatives import About, Alternative, priced
from pipelinejob.spec.job import PipelineJobSpec

MakePlan = Callable[[], Plan]
Place = Callable[[PipelineJobSpec], MakePlan]  # raises NoPlacementError or SpecError; the plan is made on demand

_PIPELINE, _DATA, _SCOPE = "spec.parallelism.pipeline", "spec.parallelism.data", "spec.topology.pipeline"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """A changed spec: what it says for people, and which fields of the manifest say it."""

    what: str
    spec: PipelineJobSpec
    fields: dict[str, object]


def ways_to_fit(plan: Plan, spec: PipelineJobSpec, topology: Topology, place: Place) -> tuple[Alternative, ...]:
    """Try looser levels, then fewer stages, then fewer replicas; return those that fit now, the cheapest first."""
    found = [
        priced(plan, make_plan(), about=About.TO_FIT, what=way.what, fields=way.fields)
        for way, make_plan in _fitting(spec, topology, place)
    ]
    return tuple(sorted(found, key=lambda each: each.price or 0.0))


def _fitting(spec: PipelineJobSpec, topology: Topology, place: Place) -> Iterator[tuple[_Way, MakePlan]]:
    looser = next(filter(None, (_tried(way, place) for way in _looser(spec, topology))), None)
    if looser:
        yield looser
    yield from filter(None, (_most(spec, place, _with_stages), _most(spec, place, _with_replicas)))


def _looser(spec: PipelineJobSpec, topology: Topology) -> Iterator[_Way]:
    """Loosen the required level: to those above it, the closest first, and at last to none at all."""
    required = spec.topology.pipeline.required
    if required is None:
        return
    depth = next((index for index, level in enumerate(topology.levels) if level.is_called(required)), None)
    above = [level.name for level in topology.levels[:depth]][::-1] if depth is not None else []
    for name in above:
        what = f"require only one {name} ({required} preferred)"
        yield _Way(what=what, spec=_scoped(spec, name, required), fields=_scope_fields(name, required))
    what = f"{required} preferred instead of required"
    yield _Way(what=what, spec=_scoped(spec, None, required), fields=_scope_fields(None, required))


def _scoped(spec: PipelineJobSpec, required: str | None, preferred: str) -> PipelineJobSpec:
    scope = spec.topology.pipeline.model_copy(update={"required": required, "preferred": preferred})
    return spec.model_copy(update={"topology": spec.topology.model_copy(update={"pipeline": scope})})


def _scope_fields(required: str | None, preferred: str) -> dict[str, object]:
    return {f"{_SCOPE}.required": required, f"{_SCOPE}.preferred": preferred}


def _most(
    spec: PipelineJobSpec, place: Place, change: Callable[[PipelineJobSpec, int], _Way | None]
) -> tuple[_Way, MakePlan] | None:
    """Find the largest smaller number that fits: what holds many ranks holds fewer."""
    low, high, best = 1, 2**11, None
    while low <= high:
        middle = (low + high) // 2
        way = change(spec, middle)
        if way is None:  # not fewer than the job has
            high = middle - 1
            continue
        tried = _tried(way, place)
        if tried is None:
            high = middle - 1
        else:
            low, best = middle + 1, tried
    return best


def _tried(way: _Way, place: Place) -> tuple[_Way, MakePlan] | None:
    try:
        return way, place(way.spec)
    except (NoPlacementError, SpecError):
        return None


def _with_stages(spec: PipelineJobSpec, count: int) -> _Way | None:
    if count >= spec.parallelism.pipeline:
        return None
    changes: dict[str, Any] = {
        "parallelism": spec.parallelism.model_copy(update={"pipeline": count}),
        "partition": spec.partition.model_copy(update={"layers": None}),
        "stage_templates": tuple(each for each in spec.stage_templates if each.stage < count),
    }
    return _Way(what=f"pipeline: {count}", spec=spec.model_copy(update=changes), fields={_PIPELINE: count})


def _with_replicas(spec: PipelineJobSpec, count: int) -> _Way | None:
    if count >= spec.parallelism.data:
        return None
    changed = spec.parallelism.model_copy(update={"data": count})
    return _Way(
        what=f"data: {count}, which trains on {count}/{spec.parallelism.data} of the sequences a step",
        spec=spec.model_copy(update={"parallelism": changed}),
        fields={_DATA: count},
    )
