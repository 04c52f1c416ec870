"""What a pod takes of its node, as kube-scheduler reckons it: resources, and ports of the host."""

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from pipelinejob.base.quantities import Resources, add, greatest, resources
from pipelinejob_operator.cluster import Object

_PORT = "host port "


def pod_requests(pod: Object) -> dict[str, Fraction]:
    """Return what the scheduler reckons a pod takes: the larger of its start and its run, overhead and host ports.

    Init containers run one after the other, those with restartPolicy Always (sidecars) go on
    beside all that follow. While a resize in place is not done, the larger of what is asked and
    what is held counts.
    """
    spec, held = pod.get("spec", {}), _held(pod.get("status", {}))
    running: list[Resources] = []
    peaks: list[Resources] = []
    for container in spec.get("initContainers") or ():
        request = _container_requests(container, held)
        if container.get("restartPolicy") == "Always":
            running.append(request)
        peaks.append(add([*running] if container.get("restartPolicy") == "Always" else [*running, request]))
    running.extend(_container_requests(container, held) for container in spec.get("containers") or ())
    stated = spec.get("resources") or {}  # of the pod as a whole: where given, it counts instead of the containers'
    whole = greatest([add(running), *peaks]) | _requests(stated)
    ports = dict.fromkeys(host_ports(pod), Fraction(1))
    return add([whole, resources(spec.get("overhead")), {"pods": Fraction(1)}, ports])


def host_ports(pod: Object) -> Iterator[str]:
    """Name the ports of the host that the pod takes, as resources of which each node has one.

    Addresses are not told apart: two pods that take one port on different addresses of a host
    count as in conflict.
    """
    spec = pod.get("spec", {})
    sidecars = [each for each in spec.get("initContainers") or () if each.get("restartPolicy") == "Always"]
    for container in (*sidecars, *(spec.get("containers") or ())):
        for port in container.get("ports") or ():
            # The API server fills the host's port from the container's; a manifest was not there
            # yet.
            number = port.get("hostPort") or (port.get("containerPort") if spec.get("hostNetwork") else None)
            if number:
                yield f"{_PORT}{number}/{port.get('protocol') or 'TCP'}"


def is_one_a_node(resource: str) -> bool:
    """Tell whether this is a thing of which each node has one, though it does not say so."""
    return resource.startswith(_PORT)


def _held(status: Object) -> dict[str, Resources]:
    """What containers hold by the kubelet's account: after a resize that is not done, other than what is asked."""
    found = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    return {each["name"]: _largest_held(each) for each in found}


def _largest_held(status: Object) -> dict[str, Fraction]:
    actual = (status.get("resources") or {}).get("requests")
    return greatest([resources(status.get("allocatedResources")), resources(actual)])


def _container_requests(container: Object, held: Mapping[str, Resources]) -> dict[str, Fraction]:
    asked, has = _requests(container.get("resources") or {}), held.get(container.get("name", ""), {})
    return greatest([asked, has])


def _requests(stated: Mapping[str, Any]) -> dict[str, Fraction]:
    # The API server fills missing requests from limits; a manifest that was not there yet has to
    # be read likewise.
    return resources((stated.get("limits") or {}) | (stated.get("requests") or {}))
