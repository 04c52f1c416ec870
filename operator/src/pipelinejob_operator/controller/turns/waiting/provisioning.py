"""A job that waits for nodes which do not exist asks an autoscaler for them: gated pods wake none.

The request stands until the gang is up, and is made anew when it failed a while ago or its nodes
went.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from pipelinejob.spec.reported.conditions import ConditionType, State
from pipelinejob.spec.running.scheduling import Provisioning
from pipelinejob_operator.admission.line.queueing import FAR_BACK, NEVER_FITS, NO_ROOM
from pipelinejob_operator.cluster import Object, Reference
from pipelinejob_operator.controller.observing.observe import Observed
from pipelinejob_operator.controller.turns import transitions
from pipelinejob_operator.controller.turns.transitions import Turn
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import condition, parse_time
from pipelinejob_operator.objects.peers.provisioning import (
    MAX_POD_SETS,
    asks_alike,
    pod_templates,
    request,
    request_name,
)
from pipelinejob_operator.objects.peers.workload import PodSet, holds, pod_sets
from pipelinejob_operator.objects.peers.workload import condition as answer_of

REFUSED = "ProvisioningRefused"
_NEEDS_NODES = frozenset({NO_ROOM, FAR_BACK, NEVER_FITS, REFUSED})
_COMES_TOGETHER = frozenset({State.PENDING, State.WAITING, State.STARTING, State.RESTARTING})
_RETRY = timedelta(minutes=5)  # after a failure
_LOST = ("BookingExpired", "CapacityRevoked")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dues:
    """What is to be asked for, or no longer."""

    delete: tuple[Reference, ...] = ()
    apply: tuple[Object, ...] = ()


def tell(asking: Turn, turn: Turn, observed: Observed) -> Turn:
    """Add to what a job waits for what became of its request for nodes; with these, even what never fits may."""
    placed = condition(turn.status, ConditionType.PLACED)
    if _wanted(observed) is None or placed is None or placed.reason not in _NEEDS_NODES:
        return turn
    last = condition(asking.status, ConditionType.PLACED)
    if last is not None and last.reason == REFUSED and _made(observed) is None:
        return _wait_again(asking, turn, REFUSED, last.message)
    message = f"{placed.message}; {_words(turn, observed)}"
    is_hopeless = placed.reason == NEVER_FITS and not _may_come(observed)
    return _wait_again(asking, turn, placed.reason, message, stalled=is_hopeless)


def refused(turn: Turn, error: Exception) -> Turn:
    """Say that the request itself was refused."""
    message = f"there is no room, and the cluster refused the ProvisioningRequest that asks for nodes: {error}"
    return transitions.wait(turn, REFUSED, message)


def dues(turn: Turn, observed: Observed, settings: ControllerSettings) -> Dues:
    """Return what the status asks of the autoscaler."""
    made, job = _made(observed), observed.job
    is_leaving = made is not None and "deletionTimestamp" in made["metadata"]
    if observed.autoscaler is None or not observed.autoscaler.is_served or job.is_deleting or is_leaving:
        return Dues()
    wanted = _wanted(observed)
    if wanted is None or turn.status.state not in _COMES_TOGETHER:
        return Dues(delete=(_reference(made),)) if made else Dues()
    if made is None and not needs_nodes(turn):
        return Dues()
    sets = _sets(observed, settings)
    if len(sets) > MAX_POD_SETS:
        return Dues()
    return _ask(turn, observed, wanted, sets)


def needs_nodes(turn: Turn) -> bool:
    """Tell whether the job waits for room that no node has now."""
    placed = condition(turn.status, ConditionType.PLACED)
    return turn.status.state is State.WAITING and placed is not None and placed.reason in _NEEDS_NODES


def _ask(turn: Turn, observed: Observed, wanted: Provisioning, sets: tuple[PodSet, ...]) -> Dues:
    made, job = _made(observed), observed.job
    assert job.spec is not None, "only readable jobs ask for nodes"
    item = request(job, sets, wanted, num_replicas=job.spec.parallelism.data)
    if made is None:
        return Dues(apply=(item,))
    if needs_nodes(turn) and (not asks_alike(made, item) or _is_over(made, turn.now)):
        return Dues(delete=(_reference(made),))
    assert observed.autoscaler is not None, "it has the request"
    templates = pod_templates(job, sets, made) if asks_alike(made, item) else ()
    present = observed.autoscaler.templates
    return Dues(apply=tuple(each for each in templates if each["metadata"]["name"] not in present))


def _is_over(made: Object, now: datetime) -> bool:
    """Tell whether it is to be made anew."""
    if any(holds(made, kind) for kind in _LOST):
        return True
    failed = answer_of(made, "Failed")
    return failed is not None and holds(made, "Failed") and now >= parse_time(failed["lastTransitionTime"]) + _RETRY


def _may_come(observed: Observed) -> bool:
    """Tell whether nodes may come without a person's doing."""
    made = _made(observed)
    is_served = observed.autoscaler is not None and observed.autoscaler.is_served
    return is_served and not (made and holds(made, "Failed"))


def _wait_again(asking: Turn, turn: Turn, reason: str, message: str, *, stalled: bool = False) -> Turn:
    # From the conditions before: else what is set twice seems to have changed each time.
    before = turn.having(conditions=asking.status.conditions, state=asking.status.state)
    return transitions.wait(replace(before, events=asking.events), reason, message, stalled=stalled)


def _words(turn: Turn, observed: Observed) -> str:
    autoscaler, made = observed.autoscaler, _made(observed)
    if autoscaler is None:
        return (
            "spec.scheduling.provisioning asks for nodes, but the operator was not told to ask "
            "(--provisioning, provisioning.enabled in its chart)"
        )
    if not autoscaler.is_served:
        return (
            "spec.scheduling.provisioning asks for nodes, but this cluster serves no ProvisioningRequest "
            "(docs/scheduling.md says what else wakes an autoscaler)"
        )
    said = f"asked for nodes by ProvisioningRequest {request_name(turn.job.key.name, turn.job.uid)}"
    return said if made is None else f"{said}{_answer(made)}"


def _answer(made: Object) -> str:
    for kind in (*_LOST, "Failed"):
        if holds(made, kind):
            pause = "" if kind in _LOST else f" in {_RETRY.total_seconds() / 60:.0f} minutes"
            return f": {kind}: {_said(made, kind)}; it is made anew{pause}"
    if holds(made, "Provisioned"):
        return ": provisioned; waits until the nodes are ready"
    return ": accepted" if holds(made, "Accepted") else ""


def _said(made: Object, kind: str) -> str:
    found: Mapping[str, Any] = answer_of(made, kind) or {}
    return str(found.get("message") or found.get("reason") or "no reason is given")


def _wanted(observed: Observed) -> Provisioning | None:
    spec = observed.job.spec
    return spec.scheduling.provisioning if spec is not None and not spec.is_open else None


def _made(observed: Observed) -> Object | None:
    return observed.autoscaler.request if observed.autoscaler else None


def _sets(observed: Observed, settings: ControllerSettings) -> tuple[PodSet, ...]:
    assert observed.job.spec is not None, "only readable jobs ask for nodes"
    return pod_sets(observed.job, observed.job.spec, settings)


def _reference(item: Object) -> Reference:
    metadata = item["metadata"]
    return Reference(kind=item["kind"], namespace=metadata["namespace"], name=metadata["name"], uid=metadata["uid"])
