"""What scheduler, kubelet and controllers told of one pod: asked for when it is needed, never watched."""

from collections.abc import Iterable
from urllib.parse import quote

import structlog

from pipelinejob_operator.cluster import ClusterError, Event, Object
from pipelinejob_operator.kube.api import Api

_log = structlog.get_logger(__name__)

_MAX_EVENTS = "500"  # the API server keeps them for an hour, and repetitions as one
_TIMEOUT_S = 5.0
# A repeated event bears the time of its last occurrence, by whichever of the two APIs it was
# written.
_TIMES = ("deprecatedLastTimestamp", "eventTime", "deprecatedFirstTimestamp")


async def read_pod_events(api: Api, pod: Object) -> tuple[Event, ...]:
    """Return the pod's events, the newest last; nothing, and a line in the log, where they cannot be read."""
    metadata = pod["metadata"]
    path = f"/apis/events.k8s.io/v1/namespaces/{quote(metadata['namespace'])}/events"
    query = {"fieldSelector": f"regarding.kind=Pod,regarding.name={metadata['name']}", "limit": _MAX_EVENTS}
    try:
        found = await api.request("GET", path, query=query, timeout_s=_TIMEOUT_S)
    except ClusterError as error:
        _log.warning("events not read", pod=metadata["name"], namespace=metadata["namespace"], error=str(error))
        return ()
    return in_order(found.get("items") or (), uid=metadata["uid"])


def in_order(items: Iterable[Object], *, uid: str) -> tuple[Event, ...]:
    """Read events of a pod as the API server gives them, in the order in which they happened last.

    A namesake of an earlier attempt has another uid; not every component gives one.
    """
    own = [item for item in items if (item.get("regarding") or {}).get("uid") in {uid, "", None}]
    return tuple(
        Event(type=item.get("type") or "Normal", reason=item.get("reason") or "", message=item.get("note") or "")
        for item in sorted(own, key=lambda item: (_time(item), _version(item)))
    )


def _time(item: Object) -> str:
    repeated = (item.get("series") or {}).get("lastObservedTime")
    last = repeated or next((item[name] for name in _TIMES if item.get(name)), "")
    return str(last)[:19]  # one API writes microseconds, the other seconds


def _version(item: Object) -> int:
    version = str(item["metadata"].get("resourceVersion") or "")
    return int(version) if version.isdecimal() else 0
