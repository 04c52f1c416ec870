"""A plan for programs: every figure that people are shown, or the Kubernetes objects that the operator would create."""

from collections.abc import Mapping
from typing import Any

from pipelinejob.contract.plan import Plan, ServedAt, StagePlan
from pipelinejob.planning.protection import Protection, protection
from pipelinejob.siting.alternatives import Alternative
from pipelinejob_operator.cli.given.manifests import GivenJob
from pipelinejob_operator.cli.plan.inventory import as_stored
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Rank, read_job
from pipelinejob_operator.objects.making.chains import budget, chain
from pipelinejob_operator.objects.making.manifests import plan_config_map, services_of, stage_pod
from pipelinejob_operator.report.plan_view import PlanView, RankView, cache_bytes, memory_parts


def document(view: PlanView) -> dict[str, Any]:
    """Return the JSON-ready form. Seconds and bytes of layers of unknown cost are null: only ratios mean anything.

    All figures are predictions, from the costs that `prediction.source` names.
    """
    plan = view.plan
    return {
        "namespace": plan.namespace,
        "name": plan.name,
        "fits": view.fits,
        "shortfall": view.shortfall,
        "where": view.where,
        "network": view.tree,
        "prediction": _prediction(view),
        "parallelism": plan.parallelism.dump(),
        "schedule": plan.schedule.dump(),
        "stages": [_rank(view, rank) for rank in view.ranks],
        "protection": None if (found := protection(plan)) is None else _protection(found),
        "placement": _placement(view),
        "alternatives": [_alternative(each) for each in view.alternatives],
        "rejected": [{"what": each.what, "why": each.why} for each in view.rejected],
        "notes": list(view.notes),
        "plan": plan.dump(),
    }


def _prediction(view: PlanView) -> dict[str, Any]:
    prediction, is_absolute = view.plan.prediction, view.is_absolute
    if view.serves:
        return {"serving": [_at_load(each, is_absolute=is_absolute) for each in prediction.serving]} | {
            "source": prediction.source.value
        }
    return {
        "stepSeconds": prediction.step_s if is_absolute else None,
        "tokensPerSecond": prediction.tokens_per_s if is_absolute else None,
        "bubble": prediction.bubble_ratio,
        "source": prediction.source.value,
    }


def _protection(found: Protection) -> dict[str, Any]:
    return {"intervalSteps": found.interval_steps, "cost": found.cost, "lostSeconds": found.lost_s}


def _at_load(each: ServedAt, *, is_absolute: bool) -> dict[str, Any]:
    return {
        "requests": each.requests,
        "tokens": each.tokens,
        "firstTokenSeconds": each.first_token_s if is_absolute else None,
        "perTokenSeconds": each.per_token_s if is_absolute else None,
        "tokensPerSecond": each.tokens_per_s if is_absolute else None,
        "utilization": list(each.utilization),
    }


def _rank(view: PlanView, rank: RankView) -> dict[str, Any]:
    stage, is_absolute = view.plan.stages[rank.index], view.is_absolute
    of_training = {
        "backwardSeconds": stage.backward_s if is_absolute else None,
        "bubble": stage.bubble_ratio,
        "recompute": stage.recomputing.value,
        "recomputedLayers": stage.num_recomputed,
    }
    return {
        "index": rank.index,
        "replica": rank.replica,
        "node": rank.node,
        "path": list(rank.path),
        "layers": [list(chunk) for chunk in stage.chunks],
        "parameters": stage.parameter_bytes // 4 if is_absolute else None,
        "forwardSeconds": stage.forward_s if is_absolute else None,
        "memoryBytes": stage.memory_bytes if is_absolute else None,
        "memory": _memory(view, stage) if is_absolute else None,
        "device": stage.device,
        "deviceMemoryBytes": view.memory_of_device(rank.index),
        **({} if view.serves else of_training),
    }


def _memory(view: PlanView, stage: StagePlan) -> dict[str, int]:
    if view.serves:
        return {"parametersBytes": stage.parameter_bytes, "cacheBytes": cache_bytes(stage)}
    parts = memory_parts(stage)
    return {
        "parametersBytes": parts.parameters,
        "gradientsBytes": parts.gradients,
        "optimizerBytes": parts.optimizer,
        "activationsBytes": parts.activations,
    }


def _placement(view: PlanView) -> dict[str, Any] | None:
    placement = view.placement
    if placement is None:
        return None
    return {
        "nodes": sorted({each.node for each in placement.assignments}),
        "crossings": placement.crossings,
        "penaltySeconds": view.plan.penalty_s,
        "penalty": view.penalty_ratio,
        "leastPenaltySeconds": view.plan.least_penalty_s,
        "leastPenalty": view.least_penalty_ratio,
        "roomLeft": placement.room_left,
        "trade": placement.trade,
    }


def _alternative(each: Alternative) -> dict[str, Any]:
    return {
        "about": each.about.value,
        "what": each.what,
        "stepSeconds": each.step_s,
        "price": each.price,
        "bubble": each.bubble_ratio,
        "memoryBytes": each.memory_bytes,
        "crossings": each.crossings,
        "roomLeft": each.room_left,
        "fields": each.fields,
    }


def objects(job: GivenJob, plan: Plan, settings: ControllerSettings) -> list[Mapping[str, Any]]:
    """Return what the operator would create, in its order; the job's uid is only known to a cluster."""
    read, ranks = as_stored(job), plan.parallelism
    whole: list[Mapping[str, Any]] = []
    if read.is_service:  # the objects of its first chain stand for those of all
        whole = [*services_of(read), budget(read, job.spec, num_chains=job.spec.parallelism.data)]
        one = chain(read, job.spec, number=0)
        whole.append(one)
        read = read_job({**one, "metadata": {**one["metadata"], "uid": read.uid}})
    nodes = {(each.replica, each.stage): each.node for each in plan.placement.assignments} if plan.placement else {}
    pods = [
        stage_pod(read, job.spec, rank, attempt=1, settings=settings, node=nodes.get((rank.replica, rank.stage)))
        for rank in (Rank(r, s) for r in range(ranks.data) for s in range(ranks.pipeline))
    ]
    return [*whole, plan_config_map(read, plan, attempt=1), *services_of(read), *pods]
