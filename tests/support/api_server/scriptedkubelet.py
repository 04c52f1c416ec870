"""Kubelets of all nodes at once, by script: what they answer of each pod the test decides, in kubelets' words."""

from __future__ import annotations

import json
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from pipelinejob.base import names
from support.api_server.apiserver import ApiServer

_POLL_S = 0.3
_THEN = "2026-01-01T00:00:00Z"  # trainers end long ago, so that nothing waits for what may still come
MERGE = "application/merge-patch+json"
ENDS = {"crash-once": 1, "out-of-memory-once": 137, "by-user-error": 64}


class Rest:
    """The API server's JSON, without a client's opinions."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self._tls = ssl.create_default_context(cafile=str(server.ca))

    def send(
        self, method: str, path: str, body: Any = None, *, content_type: str = "application/json"
    ) -> dict[str, Any]:
        """Send one request; raises RuntimeError with the answer where that is an error."""
        request = urllib.request.Request(f"{self._server.url}{path}", method=method)
        request.add_header("Authorization", f"Bearer {self._server.token}")
        request.add_header("Content-Type", content_type)
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(request, data, context=self._tls, timeout=60) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                raise RuntimeError(f"{method} {path}: {error.code} {error.read().decode()}") from error

    def get(self, path: str) -> dict[str, Any] | None:
        """Return an object, None if there is none."""
        try:
            return self.send("GET", path)
        except RuntimeError as error:
            if " 404 " in str(error):
                return None
            raise


@dataclass(slots=True)
class Script:
    """What the kubelets do in one namespace."""

    faulty: frozenset[str] = frozenset()  # nodes that admit no pod
    ending: str = "well"
    ended: set[str] = field(default_factory=set)  # attempts whose trainers were told to end
    up: dict[str, int] = field(default_factory=dict)  # looks for which all of an attempt were up
    is_held_back: bool = False  # no trainer ends yet
    idle_since: float | None = None  # since when the gang holds nodes and is not up
    longest_idle_s: float = 0.0

    def note(self, *, is_idle: bool) -> None:
        """Take the time for which nodes are held in vain."""
        now = time.monotonic()
        self.idle_since = (self.idle_since or now) if is_idle else None
        self.longest_idle_s = max(self.longest_idle_s, now - (self.idle_since or now))


class ScriptedKubelets:
    """Acts on all pods that a scheduler bound, of namespaces that have a script. Use as a context manager."""

    def __init__(self, server: ApiServer) -> None:
        self._rest = Rest(server)
        self._scripts: dict[tuple[str, str], Script] = {}  # by namespace and job
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.problems: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def play(self, namespace: str, job: str, script: Script) -> None:
        """Begin to act on the pods of a job."""
        self._scripts[namespace, job] = script

    def _run(self) -> None:
        while not self._stop.wait(_POLL_S):
            try:
                self._look()
            except (RuntimeError, OSError) as error:
                # Somebody else was faster, or the server is busy: the next look sees.
                self.problems.append(str(error))

    def _look(self) -> None:
        gangs: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for pod in self._rest.send("GET", "/api/v1/pods")["items"]:
            metadata = pod["metadata"]
            labels = metadata.get("labels") or {}
            gang = metadata["namespace"], labels.get(names.LABEL_JOB, "")
            if gang not in self._scripts or names.LABEL_ATTEMPT not in labels:
                continue
            if metadata.get("deletionTimestamp"):
                self._remove(pod)
            elif pod["spec"].get("nodeName"):
                gangs.setdefault(gang, []).append(pod)
        for gang, script in list(self._scripts.items()):
            pods = gangs.get(gang, [])
            script.note(is_idle=not all(_is_up(pod) for pod in pods))
            if pods:
                self._act(script, pods[0]["metadata"]["labels"][names.LABEL_ATTEMPT], pods)

    def _act(self, script: Script, attempt: str, pods: list[dict[str, Any]]) -> None:
        for pod in pods:
            if pod["status"].get("phase") == "Pending" and not self._is_told(pod):
                self._begin(script, pod)
        is_up = all(_is_up(pod) for pod in pods)
        script.up[attempt] = script.up.get(attempt, 0) + 1 if is_up else 0
        is_whole = len(pods) == int(pods[0]["metadata"]["annotations"]["test.pipelinejob.io/stages"])
        if is_whole and not script.is_held_back and script.up[attempt] > 2 and attempt not in script.ended:
            script.ended.add(attempt)
            self._end(script, attempt, pods)

    def _begin(self, script: Script, pod: dict[str, Any]) -> None:
        if pod["spec"]["nodeName"] in script.faulty:
            message = "Pod was rejected: Allocate failed due to no healthy devices present, which is unexpected"
            self._patch(pod, {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": message})
        elif (missing := self._missing_secret(pod)) is not None:
            waiting = {"waiting": {"reason": "ContainerCreating"}}
            self._patch(pod, {"phase": "Pending", "containerStatuses": _statuses(pod, "containers", waiting)})
            self._tell(
                pod, "FailedMount", f'MountVolume.SetUp failed for volume "token" : secret "{missing}" not found'
            )
        else:
            self._start(pod)

    def _start(self, pod: dict[str, Any]) -> None:
        running = {"running": {"startedAt": _THEN}}
        ready = [{"type": kind, "status": "True"} for kind in ("Initialized", "ContainersReady", "Ready")]
        self._patch(
            pod,
            {
                "phase": "Running",
                "conditions": [*_scheduled(pod), *ready],
                "containerStatuses": _statuses(pod, "containers", running),
                "initContainerStatuses": _statuses(pod, "initContainers", running),
            },
        )

    def _is_told(self, pod: dict[str, Any]) -> bool:
        """Tell whether a pod that does not start was looked at before and still may not."""
        return bool(pod["status"].get("containerStatuses")) and self._missing_secret(pod) is not None

    def _missing_secret(self, pod: Mapping[str, Any]) -> str | None:
        for volume in pod["spec"].get("volumes") or ():
            name = volume.get("secret", {}).get("secretName")
            if name and self._rest.get(f"/api/v1/namespaces/{pod['metadata']['namespace']}/secrets/{name}") is None:
                return str(name)
        return None

    def _end(self, script: Script, attempt: str, pods: list[dict[str, Any]]) -> None:
        is_last = script.ending == "well" or (script.ending.endswith("-once") and len(script.ended) > 1)
        if is_last:
            for pod in pods:
                self._terminate(pod, 0)
        else:
            self._terminate(min(pods, key=lambda pod: pod["metadata"]["name"]), ENDS[script.ending])

    def _terminate(self, pod: dict[str, Any], code: int) -> None:
        """End the trainer. A native side-car ends with it, another container lives on and keeps the pod running."""
        trainers = {each["name"]: each for each in _statuses(pod, "containers", {"running": {"startedAt": _THEN}})}
        ended = {"exitCode": code, "reason": "Completed" if code == 0 else "Error", "finishedAt": _THEN}
        trainers[names.CONTAINER_TRAINER] |= {"ready": False, "state": {"terminated": ended}}
        lives_on = len(trainers) > 1
        phase = "Running" if lives_on else "Succeeded" if code == 0 else "Failed"
        native = {} if lives_on else {"terminated": ended | {"exitCode": 0}}
        self._patch(
            pod,
            {
                "phase": phase,
                "conditions": [*_scheduled(pod), {"type": "Ready", "status": "False", "reason": "ContainersNotReady"}],
                "containerStatuses": list(trainers.values()),
                "initContainerStatuses": _statuses(pod, "initContainers", native or {"running": {"startedAt": _THEN}}),
            },
        )

    def _tell(self, pod: dict[str, Any], reason: str, message: str) -> None:
        metadata = pod["metadata"]
        involved = {"apiVersion": "v1", "kind": "Pod", **{key: metadata[key] for key in ("namespace", "name", "uid")}}
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"namespace": metadata["namespace"], "name": f"{metadata['name']}.{metadata['uid']}"},
            "involvedObject": involved,
            "reason": reason,
            "message": message,
            "type": "Warning",
            "count": 1,
            "source": {"component": "kubelet"},
            "firstTimestamp": _THEN,
            "lastTimestamp": _THEN,
        }
        self._rest.send("POST", f"/api/v1/namespaces/{metadata['namespace']}/events", event)

    def _patch(self, pod: dict[str, Any], status: dict[str, Any]) -> None:
        path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}/status"
        body = {"metadata": {"uid": pod["metadata"]["uid"]}, "status": status}
        self._rest.send("PATCH", path, body, content_type=MERGE)

    def _remove(self, pod: dict[str, Any]) -> None:
        metadata = pod["metadata"]
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": metadata["uid"]}}
        self._rest.send("DELETE", f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}", options)


def _is_up(pod: Mapping[str, Any]) -> bool:
    return pod["status"].get("phase") in {"Running", "Succeeded"}


def _scheduled(pod: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [each for each in pod["status"].get("conditions") or () if each["type"] == "PodScheduled"]


def _statuses(pod: Mapping[str, Any], field_name: str, state: Mapping[str, Any]) -> list[dict[str, Any]]:
    is_running = "running" in state
    return [
        {
            "name": each["name"],
            "image": each["image"],
            "imageID": "",
            "ready": is_running,
            "started": is_running,
            "restartCount": 0,
            "state": dict(state),
        }
        for each in pod["spec"].get(field_name) or ()
    ]
