"""Makes the plan: partition, then schedule, then simulation, from a spec and the costs of its layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from pipelinejob.cost import Profile, analytic_profile, layer_names
from pipelinejob.errors import SpecError
from pipelinejob.partition import partition
from pipelinejob.plan import Placement, Plan, Prediction, StagePlan
from pipelinejob.schedule import build, held_micro_batches
from pipelinejob.simulate import Link, Simulation, shared_seconds, simulate
from pipelinejob.spec import PipelineJobSpec, Schedule
from pipelinejob.timeline import Span, SpanKind, StageTimeline, Timeline

Cut = tuple[int, int]  # a stage's layers, [first, end)


def make_plan(
    *,
    namespace: str,
    name: str,
    spec: PipelineJobSpec,
    profile: Profile | None = None,
    placement: Placement | None = None,
) -> Plan:
    """Decide which layers stand on which stage, and predict what will come of it.

    Without a profile the costs are derived from the model's sizes (`cost.analytic_profile`). Raises SpecError if the
    stages cannot share the layers.
    """
    profile = profile or analytic_profile(spec.model, spec.data, spec.schedule, spec.training, device=spec.device)
    _check_covers(profile, spec)
    cuts = _cuts(spec, profile)
    costs = tuple(_stage_cost(profile, stage, cut) for stage, cut in enumerate(cuts))
    outlook = _outlook(costs, profile, spec.schedule)
    return Plan(
        namespace=namespace,
        name=name,
        model=spec.model,
        data=spec.data,
        parallelism=spec.parallelism,
        schedule=spec.schedule,
        training=spec.training,
        checkpoint=spec.checkpoint,
        device=spec.device,
        stages=_stages(spec, profile, cuts, costs, outlook),
        prediction=_prediction(spec, profile, cuts, costs, outlook),
        placement=placement,
    )


def predicted_timeline(plan: Plan, profile: Profile) -> Timeline:
    """Give the spans that the plan expects of one step, the optimiser's at the end; to lay beside measured ones."""
    costs = tuple(
        _StageCost(
            forward_s=stage.forward_s,
            backward_s=stage.backward_s,
            optimizer_s=stage.optimizer_s,
            output_bytes=stage.output_bytes,
        )
        for stage in plan.stages
    )
    simulation = _simulate(costs, profile, plan.schedule, plan.schedule.micro_batches)
    return Timeline(
        source="predicted",
        stages=tuple(_with_optimizer(stage, costs, profile, simulation) for stage in simulation.timeline.stages),
    )


def _with_optimizer(
    stage: StageTimeline, costs: Sequence["_StageCost"], profile: Profile, simulation: Simulation
) -> StageTimeline:
    seconds = costs[stage.stage].optimizer_s
    if not seconds:
        return stage
    # Stages that share a node slow each other down alike, up to the end of the shortest.
    slowdown = _optimizer_s(costs, profile) / max(cost.optimizer_s for cost in costs)
    start = simulation.makespan_s
    span = Span(kind=SpanKind.OPTIMIZER, start_s=start, end_s=start + seconds * slowdown)
    return stage.model_copy(update={"spans": (*stage.spans, span)})


@dataclass(frozen=True, slots=True, kw_only=True)
class _StageCost:
    forward_s: float
    backward_s: float
    optimizer_s: float
    output_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outlook:
    """What the simulation says of one step's schedule."""

    makespan_s: float
    bubble_ratios: tuple[float, ...]


def _check_covers(profile: Profile, spec: PipelineJobSpec) -> None:
    expected = len(layer_names(spec.model))
    if len(profile.layers) != expected:
        raise SpecError(
            "spec.model",
            f"has {expected} layers but the profile measured {len(profile.layers)}; profile this model again",
        )


def _cuts(spec: PipelineJobSpec, profile: Profile) -> tuple[Cut, ...]:
    if spec.partition.layers is not None:
        return _given_cuts(spec.partition.layers, spec, num_layers=len(profile.layers))
    num_stages = spec.parallelism.pipeline
    memory_limit = profile.device_memory_bytes
    return partition(
        [layer.compute_s for layer in profile.layers],
        num_stages,
        speeds=_speeds(profile, num_stages),
        memory=[_layer_memory(spec.schedule, profile, stage, num_stages) for stage in range(num_stages)],
        memory_limits=None if memory_limit is None else [memory_limit] * num_stages,
    )


def _given_cuts(counts: Sequence[int], spec: PipelineJobSpec, *, num_layers: int) -> tuple[Cut, ...]:
    path = "spec.partition.layers"
    if len(counts) != spec.parallelism.pipeline:
        raise SpecError(
            path,
            f"names {len(counts)} stages but spec.parallelism.pipeline is {spec.parallelism.pipeline}; make them equal",
        )
    if sum(counts) != num_layers:
        raise SpecError(
            path,
            f"the stages hold {sum(counts)} layers together but the model has {num_layers}; make the sum {num_layers}",
        )
    return tuple(pairwise(accumulate(counts, initial=0)))


def _layer_memory(schedule: Schedule, profile: Profile, stage: int, num_stages: int) -> list[int]:
    """Give what each layer would take on this stage at most."""
    in_flight = held_micro_batches(schedule.name, stage, num_stages, schedule.micro_batches)
    return [layer.state_bytes + in_flight * layer.activation_bytes for layer in profile.layers]


def _speeds(profile: Profile, num_stages: int) -> Sequence[float]:
    if profile.stage_speeds is None:
        return [1.0] * num_stages
    if len(profile.stage_speeds) != num_stages:
        raise SpecError(
            "spec.parallelism.pipeline",
            f"{num_stages} stages but the profile gives the speeds of {len(profile.stage_speeds)}; profile again",
        )
    return profile.stage_speeds


def _stage_cost(profile: Profile, stage: int, cut: Cut) -> _StageCost:
    layers = profile.layers[cut[0] : cut[1]]
    speed = profile.stage_speeds[stage] if profile.stage_speeds else 1.0
    return _StageCost(
        forward_s=sum(layer.forward_s for layer in layers) / speed,
        backward_s=sum(layer.backward_s for layer in layers) / speed,
        optimizer_s=sum(layer.optimizer_s for layer in layers) / speed,
        output_bytes=0 if cut[1] == len(profile.layers) else layers[-1].output_bytes,
    )


def _outlook(costs: Sequence[_StageCost], profile: Profile, schedule: Schedule) -> _Outlook:
    """Simulate the step; of a long one its beginning and end, for in between it repeats itself.

    Once full, a pipeline does the same for each further micro-batch, so from some length on makespan and computing grow
    by equal amounts. Two simulated lengths beyond that point give the rest.
    """
    num_micro_batches = schedule.micro_batches
    long = max(_REPEATS_FROM, 2 * len(costs))
    if num_micro_batches <= long:
        return _seen(_simulate(costs, profile, schedule, num_micro_batches))
    short = long // 2
    first, second = (_simulate(costs, profile, schedule, count) for count in (short, long))
    further = (num_micro_batches - long) / (long - short)
    makespan_s = _onward(first.makespan_s, second.makespan_s, further)
    compute_s = [_onward(*seconds, further) for seconds in zip(first.compute_s, second.compute_s, strict=True)]
    return _Outlook(makespan_s=makespan_s, bubble_ratios=tuple(1 - seconds / makespan_s for seconds in compute_s))


_REPEATS_FROM = 256


def _seen(simulation: Simulation) -> _Outlook:
    return _Outlook(makespan_s=simulation.makespan_s, bubble_ratios=simulation.bubble_ratios)


def _onward(before: float, now: float, times: float) -> float:
    return now + (now - before) * times


def _simulate(costs: Sequence[_StageCost], profile: Profile, schedule: Schedule, num_micro_batches: int) -> Simulation:
    bandwidth = profile.link_bytes_per_s
    links = [
        Link(latency_s=profile.link_s, message_s=cost.output_bytes / bandwidth if bandwidth else 0.0)
        for cost in costs[:-1]
    ]
    return simulate(
        build(schedule.name, len(costs), num_micro_batches),
        forward_s=[cost.forward_s for cost in costs],
        backward_s=[cost.backward_s for cost in costs],
        links=links,
        concurrency=profile.concurrency,
    )


def _stages(
    spec: PipelineJobSpec, profile: Profile, cuts: Sequence[Cut], costs: Sequence[_StageCost], outlook: _Outlook
) -> tuple[StagePlan, ...]:
    return tuple(
        StagePlan(
            stage=stage,
            first_layer=first,
            end_layer=end,
            forward_s=cost.forward_s,
            backward_s=cost.backward_s,
            optimizer_s=cost.optimizer_s,
            output_bytes=cost.output_bytes,
            parameter_bytes=sum(layer.parameter_bytes for layer in profile.layers[first:end]),
            memory_bytes=sum(_layer_memory(spec.schedule, profile, stage, len(cuts))[first:end]),
            bubble_ratio=outlook.bubble_ratios[stage],
        )
        for stage, ((first, end), cost) in enumerate(zip(cuts, costs, strict=True))
    )


def _prediction(
    spec: PipelineJobSpec, profile: Profile, cuts: Sequence[Cut], costs: Sequence[_StageCost], outlook: _Outlook
) -> Prediction:
    step_s = sum(
        (outlook.makespan_s, _all_reduce_s(spec, profile, cuts), _optimizer_s(costs, profile), profile.step_overhead_s)
    )
    sequences = spec.parallelism.data * spec.schedule.micro_batches * spec.schedule.micro_batch_size
    return Prediction(
        step_s=step_s,
        tokens_per_s=sequences * spec.data.sequence_length / step_s,
        bubble_ratio=sum(outlook.bubble_ratios) / len(outlook.bubble_ratios),
        source=profile.source,
        concurrency=profile.concurrency,
    )


def _optimizer_s(costs: Sequence[_StageCost], profile: Profile) -> float:
    """Give the optimisers' time: they all start together, when the global norm of the gradients is known."""
    return shared_seconds([cost.optimizer_s for cost in costs], profile.concurrency)


def _all_reduce_s(spec: PipelineJobSpec, profile: Profile, cuts: Sequence[Cut]) -> float:
    """Give the time in which d replicas sum the largest stage's gradients round a ring: 2(d-1)/d of its bytes."""
    if spec.parallelism.data == 1 or profile.link_bytes_per_s is None:
        return 0.0
    largest = max(sum(layer.parameter_bytes for layer in profile.layers[first:end]) for first, end in cuts)
    replicas = spec.parallelism.data
    return 2 * (replicas - 1) / replicas * largest / profile.link_bytes_per_s
