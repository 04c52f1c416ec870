"""Late binding: the cluster's scheduler chooses nodes; once all pods are bound, they are numbered along the network.

The numbers are written to the status before any pod is told its own, and stay for as long as the
attempt lasts: a pass that dies in between is taken up by the next, which tells the same.
"""

from collections.abc import Callable
from datetime import datetime

from pipelinejob.base.errors import NoPlacementError, SpecError
from pipelinejob.fabric.topology import NodeInfo
from pipelinejob.placement.numbering import BoundPod, number
from pipelinejob.siting.site import Draft
from pipelinejob.spec.job import PipelineJobSpec
from pipelinejob_operator.admission.line.queueing import NO_ROOM
from pipelinejob_operator.admission.refusals import why_left_out
from pipelinejob_operator.cluster import Change, Object
from pipelinejob_operator.controller.observing.observe import Observed
from pipelinejob_operator.controller.turns import transitions
from pipelinejob_operator.controller.turns.failing.failures import refused_nodes
from pipelinejob_operator.controller.turns.failing.giving_back import (
    leave_out,
    say_left_out,
    since_release_s,
    take_back,
    why_unbound,
)
from pipelinejob_operator.controller.turns.measurements import with_plan, with_pods_made
from pipelinejob_operator.controller.turns.transitions import Turn
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Job, Rank
from pipelinejob_operator.objects.making.manifests import rendezvous
from pipelinejob_operator.objects.making.unnumbered import is_numbered, numbering, pod_names, shape, unnumbered_pod


def watch_binding(turn: Turn, observed: Observed, settings: ControllerSettings) -> Turn:
    """Wait until every pod has a node; a gang that loses one, or waits too long, gives everything back."""
    current, num_ranks = observed.current, len(observed.job.ranks)
    lost = next((pod for _, pod in sorted(current.items()) if pod.outcome is not None or pod.is_terminating), None)
    if lost is not None:
        own = lost.ending.message or lost.ending.reason if lost.ending else ""
        words = str(lost.disruption) if lost.disruption else own or "somebody deleted it"
        message = (
            f"pod {lost.name} went before the gang was whole ({words}), so all of it was taken back and waits again"
        )
        refused = refused_nodes(current.values())
        turn = leave_out(turn, refused, settings)
        return take_back(turn, "GangLost", message + (say_left_out(turn) if refused else ""), settings)
    unbound = [pod for _, pod in sorted(current.items()) if pod.node is None]
    if unbound and since_release_s(turn.status, turn.now) >= settings.gang_timeout_s:
        return take_back(turn, "GangTimeout", why_unbound(unbound, num_ranks, settings), settings)
    if is_bound(turn, observed):
        return turn
    num_bound = len(current) - len(unbound)
    return transitions.await_binding(
        turn, f"{num_bound} of {num_ranks} pods are bound; the stages are numbered when all are"
    )


def is_bound(turn: Turn, observed: Observed) -> bool:
    """Tell whether the gang waits for its numbers and nothing else."""
    job, current = observed.job, observed.current
    if job.is_placed or turn.status.attempt != job.status.attempt:
        return False
    return all(rank in current and current[rank].node and not current[rank].is_terminating for rank in job.ranks)


def admit(turn: Turn, observed: Observed, drafter: Callable[[Job], Draft]) -> Turn:
    """Let the pods go to the cluster's scheduler or, once all are bound, give them their numbers."""
    job = turn.job
    try:
        draft = drafter(job)
    except SpecError as error:
        return transitions.fail(turn, "InvalidSpec", str(error), stalled=True)
    except NoPlacementError as error:
        return transitions.wait(turn, NO_ROOM, str(error))
    if job.has_begun:
        return _number(turn, observed, draft)
    made_for = dict(zip(job.ranks, pod_names(job), strict=True))
    return transitions.let_bind(turn, with_pods_made(turn.status, draft.plan, made_for))


def missing_pods(
    job: Job, spec: PipelineJobSpec, observed: Observed, settings: ControllerSettings, *, now: datetime
) -> tuple[Object, ...]:
    """Return the pods that are missing before they are numbered; they keep off nodes that refused one of late."""
    present = {pod.name for pod in observed.pods}
    not_on = sorted(why_left_out(job.status, now))
    return tuple(
        unnumbered_pod(job, spec, ordinal, attempt=job.status.attempt, settings=settings, not_on=not_on)
        for ordinal, name in enumerate(pod_names(job))
        if name not in present
    )


def numbers_to_tell(job: Job, observed: Observed, settings: ControllerSettings) -> tuple[Change, ...]:
    """Return the pods that do not know their number yet, and what tells it to them."""
    # By the status that was written just now; the pods were read before it.
    pods = {Rank(stage.replica, stage.stage): stage.pod for stage in job.status.stages}
    waiting = {
        pod.name: pod for pod in observed.pods if not (is_numbered(pod.raw) or pod.is_done or pod.is_terminating)
    }
    return tuple(
        (waiting[name].raw, numbering(rank, rendezvous=rendezvous(job, pods[Rank(0, 0)], settings)))
        for rank, name in sorted(pods.items())
        if name in waiting
    )


def _number(turn: Turn, observed: Observed, draft: Draft) -> Turn:
    current, topology = observed.current, draft.site.topology
    pods = [
        BoundPod(name=pod.name, shape=shape(pod.raw), node=pod.node) for pod in current.values() if pod.node is not None
    ]
    nodes = sorted({pod.node for pod in pods})
    unseen = [node for node in nodes if node not in topology.paths]
    if unseen:
        return transitions.await_binding(turn, f"all {len(pods)} pods are bound; node {unseen[0]} was not seen yet")
    found = number(
        {(rank.replica, rank.stage): shape(pod.raw) for rank, pod in current.items()},
        pods,
        topology,
        [NodeInfo(name=node) for node in nodes],
        prices=draft.prices,
    )
    apart = ", ".join(f"{count} cross {level}" for level, count in found.placement.crossings.items() if count)
    message = f"{len(pods)} stages on {len(nodes)} node{'s' if len(nodes) > 1 else ''}, numbered after they were bound"
    plan = draft.plan.model_copy(update={"placement": found.placement})
    status = with_plan(turn.status, turn.job, plan, pods=found.pods)
    return transitions.number(turn, status, message + (f"; {apart}" if apart else ""))
