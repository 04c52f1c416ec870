"""What the operator writes for a job, recorded on its way to the API server, and written again for any number of jobs.

Writing it again decides nothing and reads nothing, so it shows how fast the API server takes such
jobs; and what it leaves behind is what the operator would have left, so that a crowd is there
within seconds.
"""

from __future__ import annotations

import ssl
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import aiohttp
import orjson
from aiohttp import web
from yarl import URL

from board import JOBS
from support.api_server.apiserver import ApiServer
from support.api_server.faultproxy import FaultProxy
from world import each

_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_HEADERS = ("Authorization", "Content-Type")
_REFUSED = 400  # statuses from here on


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """One request that changed something, or would have but for a dry run; as sent, and the object that it gave."""

    method: str
    path: str  # and query
    content_type: str
    body: bytes
    answer: dict[str, Any]

    @property
    def name(self) -> str:
        return self.answer["metadata"].get("name") or self.answer["metadata"].get("generateName", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What was written for one job since it was created as `job`."""

    job: dict[str, Any]
    writes: tuple[Write, ...]

    @property
    def nodes(self) -> frozenset[str]:
        """The nodes on which it was placed."""
        jobs = (each.answer for each in self.writes if each.answer.get("kind") == self.job["kind"])
        return frozenset(stage["node"] for job in jobs for stage in job["status"].get("stages", ()) if "node" in stage)

    def since(self, earlier: Recording) -> Recording:
        """Return what was written for the same job since an earlier recording of it."""
        return replace(self, writes=self.writes[len(earlier.writes) :])


@dataclass(frozen=True, slots=True)
class Copy:
    """A job that stands for a recorded one: what is written in whose stead."""

    always: dict[str, str]  # by the recorded name, uid and node
    known: dict[str, dict[str, Any]]  # the metadata of an object, by its recorded uid
    recorded: dict[str, dict[str, Any]]  # the same as it was recorded last

    def instead(self, uid: str) -> Mapping[str, str]:
        """Return what is replaced in what is written of an object."""
        return self.always if uid not in self.known else self.always | _renewed(self.recorded[uid], self.known[uid])


class RecordingProxy(FaultProxy):
    """Forwards everything to the API server, and keeps the writes that it accepted."""

    def __init__(self, server: ApiServer) -> None:
        super().__init__(server)
        self._writes: list[Write] = []

    def of(self, job: dict[str, Any]) -> Recording:
        """Return what was written for a job: for itself, and for objects whose names begin with its own."""
        name = job["metadata"]["name"]
        return Recording(job=job, writes=tuple(each for each in self._writes if each.name.startswith(name)))

    async def _answer(self, request: web.Request, *, is_watch: bool) -> web.StreamResponse:
        if request.method in _READS:
            return await super()._answer(request, is_watch=is_watch)
        body = await request.read()
        headers = {name: request.headers[name] for name in _HEADERS}
        url = URL(f"{self._server.url}{request.raw_path}", encoded=True)
        async with self._session.request(request.method, url, headers=headers, data=body) as upstream:
            content = await upstream.read()
        if upstream.status < _REFUSED:
            self._writes.append(
                Write(
                    method=request.method,
                    path=request.raw_path,
                    content_type=headers["Content-Type"],
                    body=orjson.dumps(orjson.loads(body)),  # compact, whatever the client's way of writing it
                    answer=orjson.loads(content),
                )
            )
        return web.Response(status=upstream.status, body=content, content_type="application/json")


class Writer:
    """A bare client; it sends bytes, and reads of the answers only what the next write has to repeat."""

    def __init__(self, server: ApiServer, session: aiohttp.ClientSession) -> None:
        self._url, self._session = server.url, session

    async def repeat(self, recording: Recording, name: str, *, node: str = "", at_once: int = 1) -> None:
        """Write what was recorded, for a new job of that name; with a node, it is placed there."""
        await self.go_on(await self.begin(recording, name, node=node), recording, at_once=at_once)

    async def begin(self, recording: Recording, name: str, *, node: str = "") -> Copy:
        """Create a job of that name for a recorded one; with a node, it is placed there."""
        old = recording.job["metadata"]
        body = {key: recording.job[key] for key in ("apiVersion", "kind", "spec")}
        made = await self._send("POST", JOBS, orjson.dumps({**body, "metadata": {"name": name}}), "application/json")
        always = {old["name"]: name, old["uid"]: made["metadata"]["uid"]}
        always |= dict.fromkeys(recording.nodes, node) if node else {}
        return Copy(always, {old["uid"]: made["metadata"]}, {old["uid"]: old})

    async def go_on(self, copy: Copy, recording: Recording, *, at_once: int = 1) -> None:
        """Write what was recorded, for the copy of its job.

        Of neighbouring writes of one kind, creations of pods for instance, `at_once` are under way
        together.
        """

        async def again(write: Write) -> None:
            theirs = write.answer["metadata"]
            uid = theirs["uid"]
            instead = copy.instead(uid)
            path = _replaced(write.path.encode(), instead).decode()
            answer = await self._send(write.method, path, _replaced(write.body, instead), write.content_type)
            if "resourceVersion" in answer["metadata"]:  # a dry run gives none
                copy.known[uid], copy.recorded[uid] = answer["metadata"], theirs

        for _, alike in groupby(recording.writes, key=lambda write: (write.method, write.answer["kind"])):
            await each(alike, again, at_once=at_once)

    async def _send(self, method: str, path: str, body: bytes, content_type: str) -> dict[str, Any]:
        url = URL(f"{self._url}{path}", encoded=True)
        async with self._session.request(method, url, data=body, headers={"Content-Type": content_type}) as response:
            content = await response.read()
        if response.status >= _REFUSED:
            raise RuntimeError(f"{method} {path}: {content.decode()}")
        return orjson.loads(content)


@asynccontextmanager
async def writer(server: ApiServer) -> AsyncIterator[Writer]:
    """Connect a bare client for the block."""
    tls = ssl.create_default_context(cafile=str(server.ca))
    headers = {"Authorization": f"Bearer {server.token}"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls, limit=0), headers=headers) as session:
        yield Writer(server, session)


def _renewed(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """Return what stands for an object's uid, and for its version where it is one: a number may stand elsewhere too."""
    version = f'"resourceVersion":"{new["resourceVersion"]}"'
    return {old["uid"]: new["uid"], f'"resourceVersion":"{old["resourceVersion"]}"': version}


def _replaced(text: bytes, instead: Mapping[str, str]) -> bytes:
    for old, new in instead.items():
        text = text.replace(old.encode(), new.encode())
    return text
