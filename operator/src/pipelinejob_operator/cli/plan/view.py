"""What planning answered, as it is shown: with the nodes that were looked at, and how far a search came."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipelinejob.contract.plan import CostSource
from pipelinejob.costs.layers import Profile
from pipelinejob.fabric.topology import Topology
from pipelinejob.search.found import Found
from pipelinejob.siting.request import DoesNotFit, Planned
from pipelinejob.spec.chosen import resolved
from pipelinejob.spec.job import Device, PipelineJobSpec
from pipelinejob_operator.cli.given.manifests import GivenJob
from pipelinejob_operator.cli.plan.inventory import NodesForJob
from pipelinejob_operator.report.numbers import seconds
from pipelinejob_operator.report.plan_view import PlanView

_ENDED = "; the search ended before all that could be better were planned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One job's plan as it is shown, and the costs that it was made with. The job's spec has what was chosen for it."""

    job: GivenJob
    view: PlanView
    costs: Profile


def shown(job: GivenJob, answer: Planned | DoesNotFit, nodes: NodesForJob | None, *, is_assumed: bool) -> Shown:
    """Return what is shown of an answer; `is_assumed` if nobody said what the devices are."""
    plan, costs = answer.plan, answer.costs
    notes = [*(nodes.site.topology.notes if nodes else ())]
    if is_assumed and job.spec.device is Device.GPU:
        device = plan.stages[0].device
        notes.append(f"reckoned with {device}, its memory without a bound; say what they are with --product")
    notes.extend(_notes_of_model(job.spec, costs))
    if isinstance(answer, Planned) and answer.found is not None:
        notes.extend(_notes(answer.found))
    view = PlanView(
        plan=plan,
        where=nodes.where if nodes else None,
        tree=_tree(nodes.site.topology) if nodes else None,
        shortfall=None if isinstance(answer, Planned) else answer.shortfall,
        device_memory=costs.memory_limits(len(plan.stages)),
        alternatives=answer.alternatives if isinstance(answer, Planned) else answer.ways,
        rejected=answer.rejected if isinstance(answer, Planned) else (),
        fabric=nodes.fabric(plan.placement) if nodes else None,
        notes=tuple(notes),
    )
    if isinstance(answer, Planned) and answer.chosen is not None:
        job = replace(job, spec=resolved(job.spec, answer.chosen))
    return Shown(job=job, view=view, costs=costs)


def _tree(topology: Topology) -> str:
    """Describe how the network is seen: the levels of its tree, and how many domains each has."""
    counts = [len({path[:depth] for path in topology.paths.values()}) for depth in range(1, len(topology.levels) + 1)]
    levels = " > ".join(f"{count} {level.name}" for count, level in zip(counts, topology.levels, strict=True))
    return f"{levels} (profile {topology.profile})"


def _notes_of_model(spec: PipelineJobSpec, costs: Profile) -> Iterator[str]:
    """Say what was assumed of layers that were counted, or what is missing for it."""
    decoder = spec.model.layer_sizes(spec.data.sequence_length)
    if costs.source is CostSource.ANALYTIC and decoder is not None and decoder.note is not None:
        yield decoder.note
    if costs.source is CostSource.EQUAL and spec.model.hugging_face is not None:
        yield (
            "nothing is known of the model but its number of layers; where its folder can be read, `pipelinejob "
            "validate --fill FILE` writes its sizes into the manifest"
        )


def _notes(found: Found) -> Iterator[str]:
    """Describe how far a search came, and what a schedule that was searched for is worth."""
    number = f"{found.num_options:,} configurations looked at"
    if found.num_searched:
        number = f"{number}, and a schedule searched for {found.num_searched} of them"
    yield f"{number}{': none is left that could be better' if found.is_complete else _ENDED}"
    best, named = found.best, found.best_named
    if best.is_searched and named is not None:
        yield (
            f"auto: {seconds(best.step_s)} a step by a schedule searched for these stages, the best named one takes"
            f" {named.step_s / best.step_s - 1:.1%} longer ({seconds(named.step_s)}: {named.title}), both predicted"
        )
