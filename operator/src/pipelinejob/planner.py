"""Makes the plan: partition, then schedule, then simulation, from a spec and the costs of its layers."""

from pipelinejob.choice import Choice, choose
from pipelinejob.cost import Profile, analytic_profile, layer_names
from pipelinejob.errors import SpecError
from pipelinejob.outlook import Outlook, outlook, simulated
from pipelinejob.plan import Placement, Plan, Prediction, StagePlan
from pipelinejob.playing import packed, schedule_of
from pipelinejob.spec import PipelineJobSpec
from pipelinejob.stage_costs import Division
from pipelinejob.timeline import Timeline

MAX_PLAN_BYTES = 2**20 - 2**14  # of the 1 MiB of a config map, less its metadata
_ASSIGNMENT_BYTES = 256  # what a rank's place will take


def make_plan(
    *,
    namespace: str,
    name: str,
    spec: PipelineJobSpec,
    profile: Profile | None = None,
    placement: Placement | None = None,
) -> Plan:
    """Decide which layers stand on which stage and in which order they work, and predict what will come of it.

    Without a profile the costs are derived from the model's sizes (`cost.analytic_profile`). Raises SpecError if the
    stages cannot share the layers, or the schedule cannot be made for them.
    """
    profile = profile or analytic_profile(spec.model, spec.data, spec.schedule, spec.training, device=spec.device)
    _check_covers(profile, spec)
    choice = choose(spec, profile)
    promised = outlook(choice.division, choice.schedule_for, choice.length, replicas=spec.parallelism.data)
    plan = Plan(
        namespace=namespace,
        name=name,
        model=spec.model,
        data=spec.data,
        parallelism=spec.parallelism,
        schedule=spec.schedule.model_copy(update={"actions": None}),  # they stand in schedule_actions
        training=spec.training,
        evaluation=spec.evaluation,
        checkpoint=spec.checkpoint,
        device=spec.device,
        cuts=choice.division.cuts,
        stages=_stages(spec, choice, promised),
        schedule_actions=None if choice.listed is None else packed(choice.listed),
        prediction=_prediction(spec, profile, promised),
        placement=placement,
    )
    _check_size(plan)
    return plan


def predicted_timeline(plan: Plan, profile: Profile) -> Timeline:
    """Give the spans that the plan expects of one step, the optimiser's at the end; to lay beside measured ones."""
    schedule = schedule_of(plan)
    division = Division(
        profile=profile,
        cuts=plan.cuts,
        routes=schedule.routes,
        schedule=plan.schedule,
        tied_bytes=plan.model.tied_bytes,
    )
    return simulated(division, schedule, replicas=plan.parallelism.data).timeline


def _check_covers(profile: Profile, spec: PipelineJobSpec) -> None:
    expected = len(layer_names(spec.model))
    if len(profile.layers) != expected:
        raise SpecError(
            "spec.model",
            f"has {expected} layers but the profile measured {len(profile.layers)}; profile this model again",
        )
    num_stages = spec.parallelism.pipeline
    if profile.stage_speeds is not None and len(profile.stage_speeds) != num_stages:
        raise SpecError(
            "spec.parallelism.pipeline",
            f"{num_stages} stages but the profile gives the speeds of {len(profile.stage_speeds)}; profile again",
        )


def _stages(spec: PipelineJobSpec, choice: Choice, promised: Outlook) -> tuple[StagePlan, ...]:
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
            parameter_bytes=division.parameter_bytes(rank),
            memory_bytes=memory_bytes[rank],
            bubble_ratio=promised.bubble_ratios[rank],
            recompute=spec.schedule.recomputes(rank),
        )
        for rank in range(spec.parallelism.pipeline)
    )


def _prediction(spec: PipelineJobSpec, profile: Profile, promised: Outlook) -> Prediction:
    step_s = promised.step_s + profile.step_overhead_s
    sequences = spec.parallelism.data * spec.schedule.sequences
    return Prediction(
        step_s=step_s,
        tokens_per_s=sequences * spec.data.sequence_length / step_s,
        bubble_ratio=sum(promised.bubble_ratios) / len(promised.bubble_ratios),
        source=profile.source,
        concurrency=profile.concurrency,
    )


def _check_size(plan: Plan) -> None:
    """Refuse what would not fit into a config map, and so would fail only once a cluster is asked."""
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
