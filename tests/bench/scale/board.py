"""What a cluster's watches tell of its jobs: when each was placed, told why it waits, and let go.

Moments are those of `time.monotonic` at which the watch brought the change.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

from pipelinejob_operator.cluster import ClusterError
from pipelinejob_operator.kube.api import Api

NAMESPACE = "default"
JOBS = f"/apis/pipelinejob.io/v1alpha1/namespaces/{NAMESPACE}/pipelinejobs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
_JOB_LABEL = "pipelinejob.io/name"
_POLL_S = 0.05  # moments are taken as changes come, not as they are looked for


@dataclass(slots=True)
class Seen:
    """One job, as the watches last showed it."""

    state: str = ""  # in one word, as its status has it
    created: str = ""  # as the API server wrote it, to the second
    decided: float | None = None  # when its status first said anything
    ranks: int = 0  # that its status places
    placed: float | None = None  # since when the condition Placed is True
    told: float | None = None  # when the condition Placed was first False with a sentence
    sentence: str = ""  # of Placed, while it is False
    let_go: float | None = None  # since when the pods of all ranks are there without a scheduling gate
    nodes: tuple[str, ...] = ()
    pods: dict[str, str] = field(default_factory=dict)  # uid of each ungated pod that is not about to go, by name


class Board:
    """All jobs of a namespace; keep `following` open for as long as it is to be true."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.jobs: defaultdict[str, Seen] = defaultdict(Seen)

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Watch jobs and pods during the block."""
        async with asyncio.TaskGroup() as tasks:
            watches = [
                tasks.create_task(self._follow(JOBS, self._on_job)), tasks.create_task(self._follow(PODS, self._on_pod))
            ]  # fmt: skip
            try:
                yield
            finally:
                for each in watches:
                    each.cancel()

    def of(self, prefix: str) -> list[Seen]:
        """Return the jobs whose names begin so."""
        return [seen for name, seen in self.jobs.items() if name.startswith(prefix)]

    async def until(self, claim: Callable[[], bool], what: str, *, timeout_s: float) -> None:
        """Wait until the claim holds.

        Raises TimeoutError that says what was waited for.
        """
        deadline = time.monotonic() + timeout_s
        while not claim():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {timeout_s:g} s: {what}")
            await asyncio.sleep(_POLL_S)

    async def _follow(self, path: str, take: Callable[[str, dict[str, Any]], None]) -> None:
        while True:
            try:
                listed = await self._api.request("GET", path, query={"resourceVersion": "0"})
                present = {item["metadata"]["name"] for item in listed["items"]}
                for item in listed["items"]:
                    take("MODIFIED", item)
                self._forget_others(path, present)
                query = {"watch": "1", "resourceVersion": listed["metadata"]["resourceVersion"]}
                async with self._api.lines(path, query=query) as lines:
                    async for line in lines:
                        event = orjson.loads(line)
                        if event["type"] == "ERROR":
                            break
                        take(event["type"], event["object"])
            except ClusterError:  # the server is away; that belongs to some scenarios
                await asyncio.sleep(_POLL_S)

    def _forget_others(self, path: str, present: set[str]) -> None:
        if path == JOBS:
            for name in self.jobs.keys() - present:
                del self.jobs[name]
            return
        for seen in self.jobs.values():
            for name in seen.pods.keys() - present:
                self._lose(seen, name)

    def _on_job(self, kind: str, job: dict[str, Any]) -> None:
        name = job["metadata"]["name"]
        if kind == "DELETED":
            self.jobs.pop(name, None)
            return
        seen, status = self.jobs[name], job.get("status") or {}
        seen.state = status.get("state") or ""
        seen.created = job["metadata"]["creationTimestamp"]
        seen.decided = seen.decided or (time.monotonic() if status.get("conditions") else None)
        seen.nodes = tuple(stage.get("node") or "" for stage in status.get("stages") or ())
        seen.ranks = len(seen.nodes)
        placed = next((each for each in status.get("conditions") or () if each["type"] == "Placed"), {})
        if placed.get("status") == "True":
            seen.placed, seen.sentence = seen.placed or time.monotonic(), ""
        else:
            seen.placed, seen.sentence = None, placed.get("message", "")
            seen.told = seen.told or (time.monotonic() if seen.sentence else None)
        self._look(seen)

    def _on_pod(self, kind: str, pod: dict[str, Any]) -> None:
        metadata = pod["metadata"]
        job = (metadata.get("labels") or {}).get(_JOB_LABEL)
        is_going = kind == "DELETED" or "deletionTimestamp" in metadata
        if job is None or (is_going and job not in self.jobs):
            return
        seen = self.jobs[job]  # which the other watch may bring later
        if is_going or pod["spec"].get("schedulingGates"):
            self._lose(seen, metadata["name"])
        else:
            seen.pods[metadata["name"]] = metadata["uid"]
            self._look(seen)

    def _lose(self, seen: Seen, pod: str) -> None:
        seen.pods.pop(pod, None)
        self._look(seen)

    def _look(self, seen: Seen) -> None:
        is_whole = 0 < seen.ranks <= len(seen.pods)
        seen.let_go = (seen.let_go or time.monotonic()) if is_whole else None
