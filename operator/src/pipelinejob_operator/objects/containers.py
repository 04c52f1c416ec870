"""What a pod's status says of its containers: the trainer's is the stage's, all others stand beside it.

A pod's phase speaks of all its containers at once: it stays Running while a log shipper outlives
the trainer, and says Failed when a proxy crashed after a good end. So nothing here looks at it.
Containers are found by name: injected ones may stand before or behind, and what is not listed has
not begun.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from pydantic import ValidationError

from pipelinejob.base import names
from pipelinejob.contract.progress import ExitCode, Termination
from pipelinejob_operator.cluster import Object
from pipelinejob_operator.objects.job import parse_time

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
        "CrashLoopBackOff",
    }
)
# A kubelet that tries and pauses says one and the other in turn; to us it is one trouble.
_SAME = {"ErrImagePull": "ImagePullBackOff"}
_PAUSES = frozenset({"CrashLoopBackOff"})  # between two tries of a container that is to begin again
# The kubelet's word for a container that it cannot find any more, with an exit code of its own
# making.
_LOST = "ContainerStatusUnknown"
# The runtime's words for a process that it could not start; `exec: "name": ...` blames the
# command, anything else what the node does to start it, a device's hook for instance.
_NEVER_STARTED = frozenset({"StartError", "ContainerCannotRun"})
_BLAMES_COMMAND = re.compile(r'exec: "')
_PLAIN = frozenset({"Completed", "Error"})  # of a process: says no more than its exit code
_MAX_MESSAGE = 1000
# By the policies that let a stage that serves begin again in its place: its ends that would come
# again, or are good.
_ENDINGS_THAT_STAY = {"Always": {ExitCode.USER_ERROR}, "OnFailure": {ExitCode.USER_ERROR, ExitCode.OK}}


class Trouble(NamedTuple):
    """What is wrong, as one CamelCase word and as a sentence."""

    reason: str
    message: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}" if self.message else self.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a stage ended. `exit_code` is the trainer's; None where it did not come to have one."""

    exit_code: int | None
    reason: str
    message: str
    finished: datetime | None = None
    step: int | None = None


def has_started(pod: Object) -> bool:
    """Tell whether the trainer's process runs or ran."""
    own = _trainer(pod)
    return own is not None and ("running" in _state(own) or _terminated(own) is not None)


def trainer_ending(pod: Object) -> Ending | None:
    """Say how the trainer ended; None if it lives, has not begun, or was lost.

    A trainer that was started again in its place has ended, too: its gang went on without it. Not
    so a stage that serves: it joins the others again, unless it would end the same each time.
    """
    own = _trainer(pod)
    if own is None or lost_container(pod) is not None:
        return None
    ended = _terminated(own)
    policy = _restart_policy(pod)
    if policy in _ENDINGS_THAT_STAY:
        is_final = ended is not None and int(ended["exitCode"]) in _ENDINGS_THAT_STAY[policy]
        return _ending(ended) if ended is not None and is_final else None
    if ended is not None:
        return _ending(ended)
    if own.get("restartCount"):
        return Ending(exit_code=None, reason="Restarted", message="its container was started again in its place")
    return None


def _restart_policy(pod: Object) -> str:
    return str((pod.get("spec") or {}).get("restartPolicy"))


class Crash(NamedTuple):
    """How often the trainer's container was started again, how its last process ended, since when this one runs."""

    restarts: int
    ending: Ending | None
    since: datetime | None


def crash(pod: Object) -> Crash | None:
    """Say how a stage fares that begins again in its place when it ends; None of any other."""
    own = _trainer(pod)
    if own is None or _restart_policy(pod) not in _ENDINGS_THAT_STAY:
        return None
    ended, running = _terminated(own), _state(own).get("running") or {}
    since = parse_time(running["startedAt"]) if running.get("startedAt") else None
    return Crash(int(own.get("restartCount") or 0), _ending(ended) if ended else None, since)


def lost_container(pod: Object) -> Trouble | None:
    """Say what became of a trainer's container that the kubelet cannot find any more; None if it can."""
    ended = _terminated(_trainer(pod) or {})
    if ended is None or ended.get("reason") != _LOST:
        return None
    return Trouble(_LOST, ended.get("message") or "the kubelet does not find the container any more")


def start_refused(pod: Object) -> Trouble | None:
    """Say why a node could not start the trainer's process, where that is not the command's own fault."""
    ended = _terminated(_trainer(pod) or {}) or {}
    words = ended.get("message") or ""
    if ended.get("reason") not in _NEVER_STARTED or _BLAMES_COMMAND.search(words):
        return None
    return Trouble(str(ended["reason"]), words.strip()[-_MAX_MESSAGE:])


def init_failure(pod: Object) -> Ending | None:
    """Say which init container ended badly, so that the trainer will not begin; None if none did.

    Its exit code is no trainer's, and means nothing to a failure policy.
    """
    if has_started(pod):
        return None
    for container in _init_containers(pod, are_sidecars=False):
        ended = _terminated(container)
        if ended is not None and int(ended["exitCode"]) != 0:
            own = _ending(ended)
            words = f"init container {container['name']} ended with exit code {own.exit_code}: "
            message = words + (own.message or own.reason)
            return Ending(exit_code=None, reason=own.reason, message=message, finished=own.finished)
    return None


def is_ready(pod: Object) -> bool:
    """Tell whether the trainer answers and trains, whatever the containers beside it do."""
    own = _trainer(pod)
    if own is not None and "ready" in own:
        return bool(own["ready"])
    conditions = _status(pod).get("conditions") or ()
    return any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions)


def stuck(pod: Object) -> Trouble | None:
    """Say why the trainer can't start, or what it waits for can't: nobody but a person changes that."""
    for container in _in_the_way(pod):
        waits = _waiting(container)
        if (
            waits is not None
            and waits.reason in STUCK_REASONS
            and not (waits.reason in _PAUSES and _restart_policy(pod) in _ENDINGS_THAT_STAY)
        ):
            return Trouble(_SAME.get(waits.reason, waits.reason), _named(container, waits.message))
    return None


def waiting(pod: Object) -> Trouble | None:
    """Say what the trainer waits for, in the kubelet's words; None if it has begun, or no word was said yet."""
    for container in _in_the_way(pod):
        waits = _waiting(container)
        if waits is not None and waits.reason != "PodInitializing":
            return Trouble(waits.reason, _named(container, waits.message))
        if "running" in _state(container):
            return Trouble("PodInitializing", f"the trainer waits for init container {container['name']}")
    return None


def failed_beside(pod: Object) -> Trouble | None:
    """Say which container beside the trainer ended badly or cannot start; the stage is none the worse for it."""
    listed = _status(pod).get("containerStatuses") or ()
    others = [each for each in listed if each.get("name") != names.CONTAINER_TRAINER]
    for container in [*_init_containers(pod, are_sidecars=True), *others]:
        ended, waits = _terminated(container), _waiting(container)
        if ended is not None and int(ended["exitCode"]) != 0:
            why = f"ended with exit code {ended['exitCode']} ({ended.get('reason') or 'Error'})"
            return Trouble("SidecarFailed", f"container {container['name']} {why}")
        if waits is not None and waits.reason in STUCK_REASONS:
            return Trouble("SidecarFailed", f"container {container['name']} can't start: {waits.reason}")
    return None


def _status(pod: Object) -> dict[str, Any]:
    return pod.get("status") or {}


def _trainer(pod: Object) -> Object | None:
    listed = _status(pod).get("containerStatuses") or ()
    return next((each for each in listed if each.get("name") == names.CONTAINER_TRAINER), None)


def _in_the_way(pod: Object) -> Iterator[Object]:
    """Return what has to start before the trainer's process runs, in order; nothing if that does already."""
    if has_started(pod):
        return
    sidecars = _sidecars(pod)
    for container in _status(pod).get("initContainerStatuses") or ():
        is_done = bool(container.get("started")) if container.get("name") in sidecars else _has_ended_well(container)
        if not is_done:
            yield container
    own = _trainer(pod)
    if own is not None:
        yield own


def _has_ended_well(container: Object) -> bool:
    ended = _state(container).get("terminated")
    return ended is not None and int(ended["exitCode"]) == 0


def _sidecars(pod: Object) -> frozenset[str]:
    stated = pod.get("spec", {}).get("initContainers") or ()
    return frozenset(each["name"] for each in stated if each.get("restartPolicy") == "Always")


def _init_containers(pod: Object, *, are_sidecars: bool) -> list[Object]:
    sidecars = _sidecars(pod)
    listed = _status(pod).get("initContainerStatuses") or ()
    return [each for each in listed if (each.get("name") in sidecars) == are_sidecars]


def _state(container: Object) -> dict[str, Any]:
    # An API server's JSON leaves out what is not so; a merge patch may leave a null.
    return {name: state for name, state in (container.get("state") or {}).items() if state is not None}


def _terminated(container: Object) -> dict[str, Any] | None:
    found: dict[str, Any] | None = _state(container).get("terminated")
    return found or (container.get("lastState") or {}).get("terminated")


def _waiting(container: Object) -> Trouble | None:
    state = _state(container).get("waiting")
    return None if state is None else Trouble(state.get("reason") or "Waiting", state.get("message") or "")


def _named(container: Object, message: str) -> str:
    if container["name"] == names.CONTAINER_TRAINER:
        return message
    return f"init container {container['name']}: {message}" if message else f"init container {container['name']}"


def _ending(ended: dict[str, Any]) -> Ending:
    finished = parse_time(ended["finishedAt"]) if ended.get("finishedAt") else None
    code, reason, text = int(ended["exitCode"]), ended.get("reason") or "Error", ended.get("message") or ""
    try:
        words = Termination.model_validate_json(text)
    except ValidationError:
        said = text.strip()[-_MAX_MESSAGE:]
        message = f"{reason}: {said}" if said and reason not in _PLAIN else said
        return Ending(exit_code=code, reason=reason, message=message, finished=finished)
    return Ending(exit_code=code, reason=words.reason, message=words.message, finished=finished, step=words.step)
