"""A gang that was let go and is not up yet: what keeps it, in its pods' and their events' words, and how long it may.

Only what comes before the trainer's process is timed here: images, volumes, networks, init
containers. A process that runs is watched by its own probes, and waits for its peers only so long.
"""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from pipelinejob.spec.running.failure_policy import FailurePolicy
from pipelinejob_operator.cluster import Event
from pipelinejob_operator.controller.observing.observe import Observed
from pipelinejob_operator.controller.turns.failing.failures import Cause
from pipelinejob_operator.controller.turns.failing.giving_back import since_release_s
from pipelinejob_operator.controller.turns.transitions import Turn
from pipelinejob_operator.objects import containers
from pipelinejob_operator.objects.containers import Trouble
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import format_time, parse_time
from pipelinejob_operator.objects.pods import StagePod

_PULLING = "Pulling"  # the kubelet's event; it says no more before the image is there or has failed
_PROGRESS = frozenset({_PULLING, "Pulled", "Created", "Started"})  # what was in the way before these is no more
# Warnings that a kubelet, or a policy, repeats on pods that start well.
_BESIDE_THE_POINT = frozenset({"DNSConfigForming", "FailedToRetrieveImagePullSecret", "PolicyViolation"})
_SILENT = "NotTakenUp"
# Events that tell of the node, or of what ties it to a network or a volume; another node may do
# better.
_OF_THE_NODE = frozenset(
    {"FailedCreatePodSandBox", "FailedAttachVolume", "FailedMapVolume", "NetworkNotReady", _SILENT}
)
# Another node may have the image, or reach the registry.
_OF_THE_IMAGE = frozenset({"ImagePullBackOff", "ErrImageNeverPull"})
_ELSEWHERE_S = 60.0  # while a whole gang waits for one stage, and the kubelet has tried three times
_MISSING = re.compile("not found|references non-existent")  # what a volume is made of, so on every node
_WORD = re.compile("[A-Za-z]([A-Za-z0-9_]*)")  # what a condition's reason may be


@dataclass(frozen=True, slots=True, kw_only=True)
class Hindrance:
    """What keeps one stage from coming up."""

    pod: StagePod
    trouble: Trouble
    is_told: bool = False  # by somebody who tried and failed
    since: datetime | None = None  # when it was given its node; None where nothing here bounds it
    limit_s: float = 0.0

    def is_overdue(self, now: datetime) -> bool:
        """Tell whether it has lasted too long."""
        return self.since is not None and (now - self.since).total_seconds() >= self.limit_s

    def is_worth_another_node(self, now: datetime) -> bool:
        """Tell whether another node may do better, and it has been tried here for long enough."""
        is_of_node = self.trouble.reason in _OF_THE_IMAGE or bool(refusing_node(self))
        is_tried = self.since is not None and (now - self.since).total_seconds() >= _ELSEWHERE_S
        return self.is_told and is_of_node and is_tried

    @property
    def reason(self) -> str:
        """Return the reason for a condition."""
        return self.trouble.reason if _WORD.fullmatch(self.trouble.reason) else "NotStarted"


def find_hindrance(
    turn: Turn, observed: Observed, policy: FailurePolicy, settings: ControllerSettings
) -> Hindrance | None:
    """Look for the stage that most keeps a gang that was let go from being up."""
    found = [
        _hindrance(pod, _newest(observed, pod), policy, turn=turn, settings=settings)
        for _, pod in sorted(observed.current.items())
        if pod.outcome is None and not pod.is_ready and not pod.is_terminating
    ]
    return max(
        found, key=lambda each: (each.is_overdue(turn.now), each.is_told, not each.pod.has_started), default=None
    )


def is_worth_telling(turn: Turn, settings: ControllerSettings) -> bool:
    """Tell whether the gang takes longer than one that comes up as usual is asked about."""
    return since_release_s(turn.status, turn.now) >= settings.hearing_interval_s


def describe_hindrance(hindrance: Hindrance) -> str:
    """Say in words to go on with what keeps the stage, and until when it may."""
    pod, verb = hindrance.pod, "can't start" if hindrance.is_told else "is not up"
    sentence = f"{pod.rank} (pod {pod.name}, {_where(pod)}) {verb}: {hindrance.trouble}"
    if not hindrance.is_told or hindrance.since is None:
        return sentence
    until = format_time(hindrance.since + timedelta(seconds=hindrance.limit_s))
    return f"{sentence}; {_remedy(pod)} until {until}, or spec.failurePolicy says what follows"


def overdue_cause(hindrance: Hindrance, now: datetime) -> Cause:
    """Return the cause of a gang's end that did not start in time. No exit code: nothing ran."""
    pod = hindrance.pod
    waited_s = hindrance.limit_s if hindrance.since is None else (now - hindrance.since).total_seconds()
    message = f"it did not start within {min(waited_s, hindrance.limit_s):.0f} s: {hindrance.trouble}"
    return Cause(rank=pod.rank, pod=pod.name, reason=hindrance.reason, message=message)


def refusing_node(hindrance: Hindrance) -> dict[str, str]:
    """Name the node, with what it said, if another may do better; nothing if the same would be missing there."""
    pod, trouble = hindrance.pod, hindrance.trouble
    is_volume = trouble.reason == "FailedMount" and not _MISSING.search(trouble.message)
    if pod.node is None or not (is_volume or trouble.reason in _OF_THE_NODE):
        return {}
    return {pod.node: f"{pod.rank}: {trouble}"}


def _newest(observed: Observed, pod: StagePod) -> Event | None:
    events = observed.said.get(pod.reference.uid or "", ())
    return next((event for event in reversed(events) if event.reason in _PROGRESS or _is_trouble(event)), None)


def _is_trouble(event: Event) -> bool:
    return event.type == "Warning" and event.reason not in _BESIDE_THE_POINT


def _hindrance(
    pod: StagePod, newest: Event | None, policy: FailurePolicy, *, turn: Turn, settings: ControllerSettings
) -> Hindrance:
    if pod.node is None:
        return Hindrance(pod=pod, trouble=Trouble("NotBound", _why_unbound(pod)))
    has_failed, is_pulling = newest is not None and _is_trouble(newest), newest is not None and _is_pull(newest)
    if pod.has_started:
        words = f" ({newest.reason}: {newest.message})" if newest and has_failed else ""
        return Hindrance(pod=pod, trouble=Trouble("NotReady", f"its trainer runs and does not train yet{words}"))
    return Hindrance(
        pod=pod,
        trouble=pod.stuck or _trouble(pod, newest),
        is_told=pod.stuck is not None or has_failed,
        since=_since(pod, turn),
        limit_s=_limit_s(policy, settings, is_pulling=is_pulling and pod.stuck is None),
    )


def _trouble(pod: StagePod, newest: Event | None) -> Trouble:
    if newest is not None and (_is_trouble(newest) or _is_pull(newest)):  # others say what went well
        return Trouble(newest.reason, newest.message.strip())
    silent = Trouble(_SILENT, f"the kubelet of node {pod.node} has said nothing of it")
    return containers.waiting(pod.raw) or silent


def _is_pull(event: Event) -> bool:
    return event.reason == _PULLING


def _limit_s(policy: FailurePolicy, settings: ControllerSettings, *, is_pulling: bool) -> float:
    if policy.start_timeout_seconds is not None:
        return float(policy.start_timeout_seconds)
    return max(settings.pull_timeout_s, settings.start_timeout_s) if is_pulling else settings.start_timeout_s


def _why_unbound(pod: StagePod) -> str:
    gates = [gate["name"] for gate in pod.raw["spec"].get("schedulingGates") or ()]
    if gates:
        return f"it waits for its scheduling gate {gates[0]} to be lifted"
    return f"it has no node yet: {pod.unschedulable}" if pod.unschedulable else "it has no node yet"


def _since(pod: StagePod, turn: Turn) -> datetime:
    """Say since when it might have started: it was let go, and has its node."""
    conditions = (pod.raw.get("status") or {}).get("conditions") or ()
    bound = (each for each in conditions if each.get("type") == "PodScheduled" and each.get("status") == "True")
    at = next((each.get("lastTransitionTime") for each in bound), None)
    moments = [parse_time(moment) for moment in (turn.status.released_time, at) if moment]
    return max(moments, default=turn.now)


def _where(pod: StagePod) -> str:
    if pod.stuck is None:
        return f"node {pod.node}" if pod.node else "without a node"
    spec = pod.raw.get("spec", {})
    each_of = (*(spec.get("initContainers") or ()), *(spec.get("containers") or ()))
    return f"image {', '.join(sorted({each['image'] for each in each_of if 'image' in each}))}"


def _remedy(pod: StagePod) -> str:
    if pod.stuck is not None:
        return "mend the image's name, its pull secret or what the container refers to"
    return "mend it, or what spec.template names"
