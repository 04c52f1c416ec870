"""A job planned without nodes: as its manifest has it, or for so many devices of one kind."""

from pipelinejob.errors import SpecError
from pipelinejob.planner import assembled, check_covers, counted, make_plan, on_devices
from pipelinejob.pool import Pool
from pipelinejob.search.best import search
from pipelinejob.search.found import Candidate, Found
from pipelinejob.spec import Device
from pipelinejob_operator.cli.plan.made import Made, Wanted
from pipelinejob_operator.cli.plan.searched import notes_of, num_gpus, others_than, rejected_of, unplaced
from pipelinejob_operator.report.plan_view import PlanView


def plan_as_it_is(wanted: Wanted) -> Made:
    """Plan what a manifest fixes, where nothing is said of devices.

    Raises SpecError.
    """
    job, spec = wanted.job, wanted.spec
    costs = wanted.measured or counted(spec, None, wanted.hardware)
    plan = make_plan(namespace=job.namespace, name=job.name, spec=spec, profile=costs, hardware=wanted.hardware)
    return Made(view=PlanView(plan=plan, device_memory=costs.memory_limits(len(plan.stages))), costs=costs)


def plan_for_devices(wanted: Wanted) -> Made:
    """Plan for devices of one kind, eight in a node, and choose for them what is open.

    Raises SpecError.
    """
    spec = wanted.spec
    device = wanted.hardware.reckoned_as(spec.device, wanted.product or "")
    pool = Pool.alike(device, spec.parallelism.gpus or num_gpus(spec))
    found = search(spec, pool, hardware=wanted.hardware, profile=wanted.measured)
    beside = found if spec.is_open else _others(wanted, pool)
    best = found.best
    made = _assembled(wanted, best)
    notes = list(notes_of(beside)) if beside else []
    if wanted.product is None and spec.device is Device.GPU:
        notes.insert(0, f"reckoned with {device.name}, its memory without a bound; say what they are with --product")
    view = PlanView(
        plan=made.plan,
        device_memory=made.view.device_memory,
        alternatives=unplaced(best, beside, most=wanted.most) if beside else (),
        rejected=rejected_of(beside) if beside else (),
        notes=tuple(notes),
    )
    return Made(view=view, costs=made.costs)


def _others(wanted: Wanted, pool: Pool) -> Found | None:
    if not wanted.has_alternatives:
        return None
    try:
        return others_than(wanted.spec, pool, hardware=wanted.hardware, profile=wanted.measured)
    except SpecError:  # nothing else can be planned
        return None


def _assembled(wanted: Wanted, best: Candidate) -> Made:
    """Make a candidate's plan: what the search chose, with the devices and links that it was found with."""
    costs = wanted.measured or counted(best.spec, best.devices, wanted.hardware)
    costs = on_devices(costs, best.spec, best.devices, wanted.hardware)
    check_covers(costs, best.spec)
    plan = assembled(
        best.choice,
        namespace=wanted.job.namespace,
        name=wanted.job.name,
        spec=best.spec,
        devices=best.devices,
    )
    return Made(view=PlanView(plan=plan, device_memory=costs.memory_limits(len(plan.stages))), costs=costs)
