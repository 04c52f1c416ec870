"""What a pod's JSON says of a rank: where it stands, whether it holds anything, how and why it ended."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from typing import Any

from pydantic import ValidationError

from pipelinejob import names
from pipelinejob.progress import ExitCode, Termination
from pipelinejob.quantities import add, greatest, resources
from pipelinejob_operator.cluster import Object, Reference
from pipelinejob_operator.objects.job import Rank, parse_time

# A container that waits for one of these will not start until somebody changes something.
STUCK_REASONS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
    }
)
# A kubelet that tries and pauses says one and the other in turn; to us it is one trouble.
_SAME = {"ErrImagePull": "ImagePullBackOff"}
DISRUPTION_REASONS = frozenset({"Evicted", "NodeLost", "Preempting", "Shutdown", "Terminated", "NodeShutdown"})


# The kubelet's words where a pod is evicted for what it used beyond its own limit or request; other evictions only
# say that the node was low on something (pkg/kubelet/eviction/helpers.go). Where nothing was requested any use is
# beyond it, so a request of 0 accuses nobody.
_OWN_FAULT = re.compile(
    "exceeded its local ephemeral storage limit|ephemeral local storage usage exceeds the total limit"
    "|Usage of EmptyDir volume|request is (?!0,)[^ ]+, has larger consumption of"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a container ended."""

    exit_code: int
    reason: str
    message: str
    finished: datetime | None
    step: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePod:
    """One rank's pod as last seen."""

    rank: Rank
    attempt: int
    name: str
    phase: str
    node: str | None  # where it is bound
    is_gated: bool
    is_terminating: bool
    is_ready: bool
    is_disrupted: bool  # taken away by the cluster, not ended by itself
    disruption: str  # in the cluster's words
    stuck: tuple[str, str] | None  # reason and message of a container that can't start
    unschedulable: str | None  # the scheduler's sentence
    ending: Ending | None
    reference: Reference
    raw: Object

    @property
    def is_done(self) -> bool:
        """Say whether it runs no more; it holds nothing then."""
        return self.phase in {"Succeeded", "Failed"}


def read_stage_pod(raw: Object, ranks: Mapping[str, Rank] | None = None) -> StagePod | None:
    """Read a pod of a gang; None for any other.

    `ranks` says by name which rank each is; a pod that it does not name is what its labels say.
    """
    metadata, spec, status = raw["metadata"], raw.get("spec", {}), raw.get("status", {})
    labels = metadata.get("labels", {})
    try:
        rank = (ranks or {}).get(metadata["name"]) or _labelled(labels)
        attempt = int(labels[names.LABEL_ATTEMPT])
    except (KeyError, ValueError):
        return None
    disruption = _disruption(status)
    return StagePod(
        rank=rank,
        attempt=attempt,
        name=metadata["name"],
        phase=status.get("phase", "Pending"),
        node=spec.get("nodeName"),
        is_gated=any(gate["name"] == names.GATE_GANG for gate in spec.get("schedulingGates") or ()),
        is_terminating=metadata.get("deletionTimestamp") is not None,
        is_ready=(_condition(status, "Ready") or {}).get("status") == "True",
        is_disrupted=disruption is not None,
        disruption=disruption or "",
        stuck=_stuck(status),
        unschedulable=_unschedulable(status),
        ending=_ending(status),
        reference=Reference(
            kind="Pod", namespace=metadata["namespace"], name=metadata["name"], uid=metadata.get("uid")
        ),
        raw=raw,
    )


def _labelled(labels: Mapping[str, str]) -> Rank:
    if names.LABEL_ORDINAL in labels and names.LABEL_STAGE not in labels:
        return Rank(-1, int(labels[names.LABEL_ORDINAL]))  # made for an attempt that knew other ranks
    return Rank(int(labels[names.LABEL_REPLICA]), int(labels[names.LABEL_STAGE]))


def pod_requests(pod: Object) -> dict[str, Fraction]:
    """Give what the scheduler reckons a pod takes: the larger of its start and its run, plus overhead.

    Init containers run one after the other, those with restartPolicy Always (sidecars) go on beside all that follow.
    """
    spec = pod.get("spec", {})
    running: list[dict[str, Fraction]] = []
    peaks: list[dict[str, Fraction]] = []
    for container in spec.get("initContainers") or ():
        request = _container_requests(container)
        if container.get("restartPolicy") == "Always":
            running.append(request)
        peaks.append(add([*running] if container.get("restartPolicy") == "Always" else [*running, request]))
    running.extend(_container_requests(container) for container in spec.get("containers") or ())
    stated = spec.get("resources") or {}  # of the pod as a whole: where given, it counts instead of the containers'
    whole = greatest([add(running), *peaks]) | _requests(stated)
    return add([whole, resources(spec.get("overhead")), {"pods": Fraction(1)}])


def _container_requests(container: Object) -> dict[str, Fraction]:
    return _requests(container.get("resources") or {})


def _requests(stated: Object) -> dict[str, Fraction]:
    # The API server fills missing requests from limits; a manifest that was not there yet has to be read likewise.
    return resources((stated.get("limits") or {}) | (stated.get("requests") or {}))


def _condition(status: Object, kind: str) -> dict[str, Any] | None:
    return next((each for each in status.get("conditions") or () if each.get("type") == kind), None)


def _is_own_fault(status: Object) -> bool:
    return status.get("reason") == "Evicted" and _OWN_FAULT.search(status.get("message") or "") is not None


def _disruption(status: Object) -> str | None:
    if _is_own_fault(status):
        return None
    target = _condition(status, "DisruptionTarget")
    if target is not None and target.get("status") == "True":
        return target.get("message") or target.get("reason") or "it was disrupted"
    if status.get("phase") == "Failed" and status.get("reason") in DISRUPTION_REASONS:
        return status.get("message") or str(status["reason"])
    return None


def _unschedulable(status: Object) -> str | None:
    scheduled = _condition(status, "PodScheduled")
    if scheduled is None or scheduled.get("status") != "False" or scheduled.get("reason") != "Unschedulable":
        return None
    return scheduled.get("message") or "the scheduler gave no reason"


def _containers(status: Object) -> list[dict[str, Any]]:
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def _stuck(status: Object) -> tuple[str, str] | None:
    for container in _containers(status):
        waiting = container.get("state", {}).get("waiting") or {}
        if waiting.get("reason") in STUCK_REASONS:
            reason = str(waiting["reason"])
            return _SAME.get(reason, reason), waiting.get("message") or ""
    return None


def _ending(status: Object) -> Ending | None:
    if _is_own_fault(status):  # however its container took it
        return Ending(exit_code=ExitCode.FAILURE, reason="Evicted", message=status["message"].strip(), finished=None)
    ended = [each for each in (_terminated(container) for container in _containers(status)) if each is not None]
    failed = [each for each in ended if each.exit_code != 0]
    return min(failed or ended, key=_finished_order, default=None)


def _finished_order(ending: Ending) -> tuple[bool, datetime | None]:
    return (ending.finished is None, ending.finished)


def _terminated(container: Object) -> Ending | None:
    state = container.get("state", {}).get("terminated")
    if state is None:
        return None
    finished = parse_time(state["finishedAt"]) if state.get("finishedAt") else None
    try:
        words = Termination.model_validate_json(state.get("message") or "")
    except ValidationError:
        return Ending(
            exit_code=int(state["exitCode"]),
            reason=state.get("reason") or "Error",
            message=(state.get("message") or "").strip()[-1000:],
            finished=finished,
        )
    return Ending(
        exit_code=int(state["exitCode"]), reason=words.reason, message=words.message, finished=finished, step=words.step
    )
