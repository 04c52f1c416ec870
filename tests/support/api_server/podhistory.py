"""What became of a namespace's pods: every change, in the order in which the API server made them.

A look now and then misses what lasts only moments; a watch from a stated version on misses
nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Self

import toolchain
from support.api_server.apiserver import ApiServer
from support.local.processes import Process

Pod = dict[str, Any]


class PodHistory:
    """The changes of a namespace's pods since it was entered; may be read while they go on."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        path = f"/api/v1/namespaces/{namespace}/pods"
        listed = json.loads(server.kubectl("get", "--raw", path))
        version = listed["metadata"]["resourceVersion"]
        self._before = {pod["metadata"]["name"]: pod for pod in listed["items"]}
        watch = f"{path}?watch=true&resourceVersion={version}"
        command = [toolchain.find("kubectl"), f"--kubeconfig={server.kubeconfig}", "get", "--raw", watch]
        log = server.folder / "logs" / f"pods-of-{namespace}-since-{version}.log"
        self._watch = Process(f"watch of {namespace}", command, log=log)

    def __enter__(self) -> Self:
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.stop()

    def moments(self) -> Iterator[dict[str, Pod]]:
        """Return the pods that there were, by name: before all changes, and after each."""
        there = self._before
        yield there
        for change in self._changes():
            pod = change["object"]
            there = {name: other for name, other in there.items() if name != pod["metadata"]["name"]}
            if change["type"] != "DELETED":
                there[pod["metadata"]["name"]] = pod
            yield there

    def _changes(self) -> Iterator[dict[str, Any]]:
        # What follows the last line's end is a change that is still being written.
        *lines, _ = self._watch.log.read_text().split("\n")
        for line in lines:
            change = json.loads(line)
            assert change["type"] in {"ADDED", "MODIFIED", "DELETED"}, line
            yield change


def held(pod: Pod, resource: str) -> int:
    """What a pod holds of a resource on its node: all it asks for, from being bound until its processes ended."""
    is_there = pod["spec"].get("nodeName") is not None and pod["status"]["phase"] in {"Pending", "Running"}
    asked = [container["resources"].get("requests", {}) for container in pod["spec"]["containers"]]
    return sum(int(each.get(resource, 0)) for each in asked) if is_there else 0


def last_words(pod: Pod) -> str | None:
    """Return the message with which a pod's first container ended."""
    for container in pod["status"].get("containerStatuses", ())[:1]:
        terminated = container["state"].get("terminated")
        return terminated.get("message") if terminated else None
    return None
