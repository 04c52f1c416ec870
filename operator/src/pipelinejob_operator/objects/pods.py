"""What a pod's JSON says of a rank: where it stands, whether it holds anything, how and why it ended."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from pipelinejob.base import names
from pipelinejob_operator.cluster import Object, Reference
from pipelinejob_operator.objects import containers
from pipelinejob_operator.objects.containers import Ending, Trouble
from pipelinejob_operator.objects.job import Rank

_ABANDONED = "Abandoned"  # our word for a pod that failed without one, while its trainer has not said that it ended
# What a pod says of its end as a whole where the node, not the pod, could not go on; any other
# such word, of today's kubelets and tomorrow's, says that the node refused the pod.
_INTERRUPTIONS = frozenset({"Evicted", "NodeLost", "Preempting", "Shutdown", "Terminated", "NodeShutdown", _ABANDONED})
_OVERDUE = "DeadlineExceeded"  # by the activeDeadlineSeconds of the pod's own template

# The kubelet's words where a pod is evicted for what it used beyond its own limit or request;
# other evictions only say that the node was low on something (pkg/kubelet/eviction/helpers.go).
# Where nothing was requested any use is beyond it, so a request of 0 accuses nobody.
_OWN_FAULT = re.compile(
    "exceeded its local ephemeral storage limit|ephemeral local storage usage exceeds the total limit"
    "|Usage of EmptyDir volume|request is (?!0,)[^ ]+, has larger consumption of"
)


class Outcome(Enum):
    """How a stage ended: by its trainer, or by what kept it from one."""

    SUCCEEDED = auto()
    FAILED = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePod:
    """One rank's pod as last seen."""

    rank: Rank
    attempt: int
    name: str
    phase: str  # of all its containers together; what it holds, it holds until this is its end
    node: str | None  # where it is bound
    is_gated: bool
    is_terminating: bool
    is_ready: bool  # its trainer, whatever stands beside it
    has_started: bool  # its trainer runs or ran
    outcome: Outcome | None  # of its trainer; None while it may still come or go on
    disruption: Trouble | None  # taken away by the cluster, not ended by itself
    refusal: Trouble | None  # why its node did not let it begin
    stuck: Trouble | None  # why its trainer can't start
    beside: Trouble | None  # what is wrong with a container beside its trainer
    unschedulable: str | None  # the scheduler's sentence
    ending: Ending | None
    reference: Reference
    raw: Object

    @property
    def is_done(self) -> bool:
        """Tell whether nothing of it runs any more; it holds nothing then."""
        return self.phase in {"Succeeded", "Failed"}


def read_stage_pod(raw: Object, ranks: Mapping[str, Rank] | None = None) -> StagePod | None:
    """Read a pod of a gang; None for any other.

    `ranks` says by name which rank each is; a pod that it does not name is what its labels say.
    """
    metadata, spec, status = raw["metadata"], raw.get("spec", {}), raw.get("status") or {}
    labels = metadata.get("labels", {})
    try:
        rank = (ranks or {}).get(metadata["name"]) or _labelled(labels)
        attempt = int(labels[names.LABEL_ATTEMPT])
    except (KeyError, ValueError):
        return None
    return StagePod(
        rank=rank,
        attempt=attempt,
        name=metadata["name"],
        phase=status.get("phase", "Pending"),
        node=spec.get("nodeName"),
        is_gated=any(gate["name"] == names.GATE_GANG for gate in spec.get("schedulingGates") or ()),
        is_terminating=metadata.get("deletionTimestamp") is not None,
        is_ready=containers.is_ready(raw),
        has_started=containers.has_started(raw),
        outcome=_outcome(raw, status),
        disruption=_disruption(raw, status),
        refusal=_refusal(raw, status),
        stuck=containers.stuck(raw),
        beside=containers.failed_beside(raw),
        unschedulable=_unschedulable(status),
        ending=_ending(raw, status),
        reference=Reference(kind="Pod", namespace=metadata["namespace"], name=metadata["name"], uid=metadata["uid"]),
        raw=raw,
    )


def _labelled(labels: Mapping[str, str]) -> Rank:
    if names.LABEL_ORDINAL in labels and names.LABEL_STAGE not in labels:
        return Rank(-1, int(labels[names.LABEL_ORDINAL]))  # made for an attempt that knew other ranks
    if is_unused_spare(labels):
        return Rank.spare(int(labels[names.LABEL_SPARE]))
    return Rank(int(labels[names.LABEL_REPLICA]), int(labels[names.LABEL_STAGE]))


def is_unused_spare(labels: Mapping[str, str]) -> bool:
    """Tell whether these are the labels of a spare that was given no rank's labels yet."""
    return names.LABEL_SPARE in labels and names.LABEL_STAGE not in labels


def _condition(status: Object, kind: str) -> dict[str, Any] | None:
    return next((each for each in status.get("conditions") or () if each.get("type") == kind), None)


def _is_own_fault(status: Object) -> bool:
    return status.get("reason") == "Evicted" and _OWN_FAULT.search(status.get("message") or "") is not None


def _outcome(pod: Object, status: Object) -> Outcome | None:
    own = containers.trainer_ending(pod)
    if own is not None:
        return Outcome.SUCCEEDED if own.exit_code == 0 else Outcome.FAILED
    if status.get("phase") == "Failed" or containers.lost_container(pod) is not None:
        return Outcome.FAILED
    return Outcome.SUCCEEDED if status.get("phase") == "Succeeded" else None


def _disruption(pod: Object, status: Object) -> Trouble | None:
    if _is_own_fault(status):
        return None
    target = _disruption_target(status)
    if target is not None:
        return Trouble(target.get("reason") or "Disrupted", target.get("message") or "it was disrupted")
    return _end_as_a_whole(pod, status) or containers.lost_container(pod)


def _end_as_a_whole(pod: Object, status: Object) -> Trouble | None:
    """Say why a pod ended that did not end by its containers; no container writes a word at this level."""
    if status.get("phase") != "Failed" and containers.trainer_ending(pod) is None:
        return None
    reason, message = status.get("reason"), (status.get("message") or "").strip()
    if reason and reason != _OVERDUE:
        return Trouble(str(reason), message)
    by_container = (containers.trainer_ending, containers.init_failure, containers.lost_container)
    if any(ending(pod) is not None for ending in by_container):
        return None
    if containers.has_started(pod):
        return Trouble(_ABANDONED, message or "the pod was marked as failed while its trainer ran")
    return Trouble(str(reason or "NeverStarted"), message or "the pod failed before a container of it ran")


def _refusal(pod: Object, status: Object) -> Trouble | None:
    ended = None if _is_own_fault(status) else _end_as_a_whole(pod, status)
    if ended is None:
        return containers.start_refused(pod)
    was_interrupted = containers.has_started(pod) and ended.reason in _INTERRUPTIONS
    was_sent_away = _disruption_target(status) is not None and not status.get("reason")  # by a drain, or by another pod
    return None if was_interrupted or was_sent_away else ended


def _disruption_target(status: Object) -> dict[str, Any] | None:
    found = _condition(status, "DisruptionTarget")
    return found if found is not None and found.get("status") == "True" else None


def _unschedulable(status: Object) -> str | None:
    scheduled = _condition(status, "PodScheduled")
    if scheduled is None or scheduled.get("status") != "False" or scheduled.get("reason") != "Unschedulable":
        return None
    return scheduled.get("message") or "the scheduler gave no reason"


def _ending(pod: Object, status: Object) -> Ending | None:
    own = containers.trainer_ending(pod)
    if own is not None and own.exit_code == 0:
        return own
    reason, message = status.get("reason"), (status.get("message") or "").strip()
    if _is_own_fault(status) or reason == _OVERDUE:  # however its containers took it
        return Ending(exit_code=None, reason=str(reason), message=message)
    return own or (containers.init_failure(pod) if status.get("phase") == "Failed" else None)
