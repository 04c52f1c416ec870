"""Makes the plan: partition, then schedule, then simulation, from a spec and the costs of its layers.

Made again once the stages have places, it reckons with what stands there: the speed and the memory
of each stage's device, and the links that its messages take.
"""

from collections.abc import Sequence
from dataclasses import replace

from pipelinejob.base.errors import SpecError
from pipelinejob.base.timeline import Timeline
from pipelinejob.contract.plan import CostSource, Placement, Plan, Prediction, StagePlan
from pipelinejob.costs import links as all_links
from pipelinejob.costs.layers import Profile, analytic_profile, layer_names
from pipelinejob.costs.links import Links
from pipelinejob.costs.stages import Division
from pipelinejob.fabric import hardware as hardware_data
from pipelinejob.fabric.hardware import DeviceKind, Hardware
from pipelinejob.fabric.network import Network
from pipelinejob.planning.choice import Choice
from pipelinejob.planning.dimensions import shards, undividable, unrunnable, weight_shards
from pipelinejob.planning.experts import EXPERT, expert_ranks, undividable_experts
from pipelinejob.planning.playing import packed, schedule_of
from pipelinejob.planning.protection import chosen_interval
from pipelinejob.planning.recomputing import choose
from pipelinejob.planning.serving import as_served, foretold, held_bytes
from pipelinejob.planning.step_prediction import StepPrediction, predict_step, simulated
from pipelinejob.spec.job import Optimizer, PipelineJobSpec
from pipelinejob.spec.training import Compile

MAX_PLAN_BYTES = 2**20 - 2**14  # of the 1 MiB of a config map, less its metadata
_ASSIGNMENT_BYTES = 256  # what a rank's place will take


def make_plan(
    *,
    namespace: str,
    name: str,
    spec: PipelineJobSpec,
    profile: Profile | None = None,
    placement: Placement | None = None,
    network: Network | None = None,
    devices: Sequence[DeviceKind] | None = None,
    hardware: Hardware | None = None,
    links: Links | None = None,
    speeds: Sequence[float] | None = None,
) -> Plan:
    """Choose the partition of layers and the schedule, and predict a step.

    Without a profile the costs are derived from the model's sizes (`cost.analytic_profile`).
    `devices` are those of each stage, of its replicas' the slowest. With a placement, `network`
    says what joins its nodes; without, `links` are those to be expected. `speeds` are what the
    stages were measured to do of what they should. Raises SpecError if something is still open,
    the stages cannot share the layers, or the schedule cannot be made for them.
    """
    _check_decided(spec)
    profile = profile or counted(spec, devices, hardware)
    check_covers(profile, spec)
    if devices is not None:
        profile = on_devices(profile, spec, devices, hardware)
    profile = slowed(profile, speeds)
    if spec.serving is not None:
        profile = as_served(spec.serving, profile)
    links = _links(placement, network, profile) or links
    return assembled(
        choose(spec, profile, links=links),
        namespace=namespace,
        name=name,
        spec=spec,
        devices=devices,
        placement=placement,
        closest=all_links.closest(links, network),
    )


def assembled(
    choice: Choice,
    *,
    namespace: str,
    name: str,
    spec: PipelineJobSpec,
    devices: Sequence[DeviceKind] | None = None,
    placement: Placement | None = None,
    closest: Links | None = None,
) -> Plan:
    """Return the plan of a choice; `closest` are the links of the best possible place.

    Raises SpecError if it would not fit into a config map.
    """
    division, profile, replicas = choice.division, choice.division.profile, spec.parallelism.data
    promised = predict_step(division, choice.schedule_for, choice.length, replicas=replicas)
    near = (
        None
        if closest is None
        else predict_step(replace(division, links=closest), choice.schedule_for, choice.length, replicas=replicas)
    )
    stages = _stages(spec, choice, promised, devices)
    prediction = _prediction(spec, profile, promised, near)
    if spec.serving is not None:
        prediction = prediction.model_copy(update={"serving": foretold(spec, stages, profile)})
        stages = tuple(each.model_copy(update={"memory_bytes": held_bytes(spec, each)}) for each in stages)
    plan = Plan(
        namespace=namespace,
        name=name,
        model=spec.model,
        data=spec.data,
        parallelism=spec.parallelism,
        schedule=division.schedule.model_copy(update={"actions": None}),  # they stand in schedule_actions
        training=spec.training,
        evaluation=spec.evaluation,
        serving=spec.serving,
        checkpoint=spec.checkpoint,
        recovery=spec.recovery if spec.recovery.in_place else None,
        hang_timeout_seconds=spec.failure_policy.hang_timeout_seconds,
        device=spec.device,
        cuts=division.cuts,
        stages=stages,
        schedule_actions=None if choice.listed is None else packed(choice.listed),
        prediction=prediction,
        placement=placement,
        links=division.links.planned() if division.links else (),
    )
    plan = _protected(plan)
    _check_size(plan)
    return plan


def _protected(plan: Plan) -> Plan:
    """Choose how often states are copied, where recovery in place is on and nobody has said it."""
    if plan.recovery is None or plan.recovery.interval_steps is not None:
        return plan
    chosen = plan.recovery.model_copy(update={"interval_steps": chosen_interval(plan)})
    return plan.model_copy(update={"recovery": chosen})


def counted(
    spec: PipelineJobSpec, devices: Sequence[DeviceKind] | None = None, hardware: Hardware | None = None
) -> Profile:
    """Derive a spec's costs from its sizes, on the fastest of the stages' devices."""
    known = hardware or hardware_data.default()
    if devices:
        known = replace(known, devices={**known.devices, **{device.name: device for device in devices}})
    return analytic_profile(
        spec.model,
        spec.data,
        spec.schedule,
        spec.training,
        device=spec.device,
        product=max(devices, key=lambda each: each.attained_flops(spec.training.precision)).name if devices else "",
        tensor=spec.parallelism.tensor,
        is_sequence_parallel=spec.parallelism.sequence_parallel,
        expert=spec.parallelism.expert,
        hardware=known,
    )


def on_devices(
    profile: Profile, spec: PipelineJobSpec, devices: Sequence[DeviceKind], hardware: Hardware | None = None
) -> Profile:
    """Return costs with the speed and memory of each stage's own device.

    Costs of a device that is not known count as those of the fastest.
    """
    precision = spec.training.precision
    known = {**(hardware or hardware_data.default()).devices, **{device.name: device for device in devices}}
    fastest = max(devices, key=lambda each: each.attained_flops(precision))
    reference = known.get(profile.device or "", fastest).attained_flops(precision)
    speeds = tuple(device.attained_flops(precision) / reference for device in devices)
    unbounded = 2**63
    memory = tuple(device.memory_bytes or unbounded for device in devices)
    return profile.model_copy(
        update={
            "stage_speeds": None if set(speeds) == {1.0} else speeds,
            "stage_memory_bytes": None if set(memory) == {unbounded} else memory,
            "device_memory_bytes": None,
        }
    )


def slowed(profile: Profile, speeds: Sequence[float] | None) -> Profile:
    """Return costs in which each stage has this share of the speed that they say it has; as they are for None."""
    if speeds is None:
        return profile
    own = profile.stage_speeds or (1.0,) * len(speeds)
    product = tuple(speed * share for speed, share in zip(own, speeds, strict=True))
    return profile.model_copy(update={"stage_speeds": product})


def predicted_timeline(plan: Plan, profile: Profile) -> Timeline:
    """Return the predicted spans of one step, the optimiser's at the end, for comparison with measured ones."""
    schedule = schedule_of(plan)
    return simulated(division_of(plan, profile), schedule, replicas=plan.parallelism.data).timeline


def division_of(plan: Plan, profile: Profile) -> Division:
    """Return the costs of the plan's stages on their devices and links, from the profile that it was made with."""
    speeds = tuple(stage.speed for stage in plan.stages)
    if set(speeds) != {1.0}:
        profile = profile.model_copy(update={"stage_speeds": speeds})
    return Division(
        profile=profile,
        cuts=plan.cuts,
        routes=schedule_of(plan).routes,
        schedule=plan.schedule,
        tied_bytes=plan.model.tied_bytes // plan.parallelism.tensor,
        shards=shards(plan.parallelism, len(schedule_of(plan).routes)),
        weight_shards=weight_shards(plan.parallelism),
        expert=expert_ranks(plan.parallelism),
        links=Links.of_plan(plan.links),
    )


def refuse_unrunnable(spec: PipelineJobSpec) -> None:
    """Raise SpecError for a spec that can be planned but not yet be run."""
    degrees, name = spec.parallelism, spec.schedule.name
    not_yet = unrunnable(spec.model, spec.training, name, degrees, spec.data)
    for error in (*undividable(spec.model, degrees.tensor), *undividable_experts(spec.model, degrees), *not_yet):
        raise error


def _check_decided(spec: PipelineJobSpec) -> None:
    if spec.parallelism.is_open:
        raise SpecError("spec.parallelism", "degrees are still open; choose them first (`pipelinejob plan` says which)")
    if spec.schedule.is_open:
        raise SpecError(
            "spec.schedule", "micro-batches are still open; choose them first (`pipelinejob plan` says which)"
        )


def _links(placement: Placement | None, network: Network | None, profile: Profile) -> Links | None:
    if placement is None or network is None or not placement.assignments:
        return None
    num_bytes = max(layer.output_bytes for layer in profile.layers[:-1]) if len(profile.layers) > 1 else 0
    return all_links.of_placement(placement, network, num_bytes=num_bytes)


def check_covers(profile: Profile, spec: PipelineJobSpec) -> None:
    """Check that a profile is of this job's model, and of its micro-batches where the spec fixes them.

    Raises SpecError.
    """
    expected = len(layer_names(spec.model))
    if len(profile.layers) != expected:
        raise SpecError(
            "spec.model",
            f"has {expected} layers but the profile measured {len(profile.layers)}; profile this model again",
        )
    measured, size = profile.micro_batch_size, spec.schedule.micro_batch_size
    if measured is not None and size is not None and measured != size:
        raise SpecError(
            "spec.schedule.microBatchSize",
            f"is {size} but the profile measured micro-batches of {measured}; use {measured}, or profile again",
        )
    wanted, has = (
        _kept(spec.training.optimizer, spec.training.table_moments),
        _kept(profile.optimizer, profile.table_moments),
    )
    if wanted != has:
        raise SpecError("spec.training.optimizer", f"is {wanted}, but the profile measured {has}; profile again")
    is_compiled = spec.training.compile is Compile.LAYERS
    if profile.source is CostSource.PROFILED and profile.is_compiled != is_compiled:
        which = "compiled" if profile.is_compiled else "plain"
        problem = f"is {spec.training.compile}, but the profile measured {which} layers; profile again"
        raise SpecError("spec.training.compile", problem)
    if profile.expert != spec.parallelism.expert:
        raise SpecError(
            EXPERT,
            f"is {spec.parallelism.expert}, but the profile's layers hold experts that {profile.expert} replicas"
            " divide; leave the profile out, or take that of such a run",
        )
    num_stages = spec.parallelism.pipeline
    if profile.stage_speeds is not None and len(profile.stage_speeds) != num_stages:
        raise SpecError(
            "spec.parallelism.pipeline",
            f"{num_stages} stages but the profile gives the speeds of {len(profile.stage_speeds)}; profile again",
        )


def _unless_all(division: Division, rank: int) -> tuple[int, ...] | None:
    """Return how many first layers of each of a rank's chunks are computed again; None for all, or none."""
    again = division.recomputed_by(rank)
    return None if not any(again) or sum(again) == len(division.held_layers(rank)) else again


def _unusual(num_bytes: int, usual: int) -> int | None:
    return None if num_bytes == usual else num_bytes


def _kept(optimizer: Optimizer, moments: int) -> str:
    if optimizer is Optimizer.SGD:
        return f"SGD {'with' if moments else 'without'} momentum"
    return optimizer.value


def _stages(
    spec: PipelineJobSpec, choice: Choice, promised: StepPrediction, devices: Sequence[DeviceKind] | None
) -> tuple[StagePlan, ...]:
    division, memory_bytes = choice.division, choice.memory_bytes
    return tuple(
        StagePlan(
            stage=rank,
            chunks=division.held(rank),
            forward_s=division.mean_share(rank, division.costs.forward_s),
            backward_input_s=division.mean_share(rank, division.costs.input_s),
            backward_weight_s=division.mean_share(rank, division.costs.weight_s),
            optimizer_s=division.optimizer_s(rank),
            output_bytes=division.sent_bytes(rank),
            exchanged_bytes=_unusual(division.exchanged_bytes(rank), 0),
            parameter_bytes=division.parameter_bytes(rank) + division.frozen_bytes(rank),
            weight_bytes=_unusual(division.weight_bytes(rank), division.parameter_bytes(rank)),
            gradient_bytes=division.parameter_bytes(rank) if division.frozen_bytes(rank) else None,
            optimizer_bytes=_unusual(division.moment_bytes(rank), 2 * division.parameter_bytes(rank)),
            memory_bytes=memory_bytes[rank],
            bubble_ratio=promised.bubble_ratios[rank],
            recompute=division.schedule.recomputes(rank),
            recompute_layers=_unless_all(division, rank),
            device=devices[rank].name if devices else division.profile.device,
            speed=division.speed(rank),
        )
        for rank in range(spec.parallelism.pipeline)
    )


def _prediction(
    spec: PipelineJobSpec, profile: Profile, promised: StepPrediction, near: StepPrediction | None
) -> Prediction:
    step_s = promised.step_s + profile.step_overhead_s
    sequences = spec.parallelism.data * spec.schedule.sequences
    return Prediction(
        step_s=step_s,
        tokens_per_s=sequences * spec.data.sequence_length / step_s,
        bubble_ratio=sum(promised.bubble_ratios) / len(promised.bubble_ratios),
        closest_step_s=None if near is None else near.step_s + profile.step_overhead_s,
        source=profile.source,
        concurrency=profile.concurrency,
    )


def _check_size(plan: Plan) -> None:
    """Refuse a plan that no config map holds, before a cluster refuses it."""
    size = len(plan.to_json().encode())
    if plan.placement is None:
        size += _ASSIGNMENT_BYTES * plan.parallelism.pipeline * plan.parallelism.data
    if size <= MAX_PLAN_BYTES:
        return
    problem = f"the plan would take {size / 2**10:,.0f} KiB, but a config map holds {MAX_PLAN_BYTES / 2**10:,.0f}"
    if plan.schedule_actions is None:
        raise SpecError("spec.parallelism", f"{problem}; use fewer stages or replicas")
    listed = len(plan.schedule_actions) / 2**10
    raise SpecError(
        "spec.schedule",
        f"{problem}, and {listed:,.0f} are for the list of its actions; use fewer micro-batches, or a schedule that"
        " follows from its name alone, like 1F1B or ZB-H1",
    )
