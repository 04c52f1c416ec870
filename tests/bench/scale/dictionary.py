"""An API server that is a dictionary in the operator's own process: it judges nothing, and takes next to no time.

What the operator takes beside it is what its own code costs, without HTTP, kopf, and the server's
answers to wait for.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import orjson

from pipelinejob_operator.cluster import ConflictError
from pipelinejob_operator.kube.api import NotFoundError

Name = tuple[str, str]  # namespace and name


class DictionaryApi:
    """Stands for `kube.api.Api`. Objects are kept as JSON, by plural and name."""

    def __init__(self) -> None:
        self.stored: defaultdict[str, dict[Name, bytes]] = defaultdict(dict)
        self.requests: Counter[str] = Counter()
        self.processor_s = 0.0  # of this class
        self._revision = 1
        self._watches: defaultdict[str, set[asyncio.Queue[bytes]]] = defaultdict(set)

    def get(self, plural: str, name: Name) -> dict[str, Any]:
        return orjson.loads(self.stored[plural].get(name) or b"{}")

    def put(self, plural: str, item: dict[str, Any]) -> bytes:
        """Store an object, and tell those that watch its kind."""
        self._revision += 1
        metadata = item["metadata"]
        metadata["resourceVersion"] = str(self._revision)
        metadata.setdefault("uid", f"00000000-0000-4000-8000-{self._revision:012}")
        metadata.setdefault("creationTimestamp", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
        metadata.setdefault("generation", 1)
        name, text = (metadata.get("namespace", ""), metadata["name"]), orjson.dumps(item)
        kind = "MODIFIED" if name in self.stored[plural] else "ADDED"
        self.stored[plural][name] = text
        self._tell(plural, kind, text)
        return text

    def delete(self, plural: str, name: Name) -> None:
        self._revision += 1
        item = orjson.loads(self.stored[plural].pop(name))
        item["metadata"]["resourceVersion"] = str(self._revision)
        self._tell(plural, "DELETED", orjson.dumps(item))

    def _tell(self, plural: str, kind: str, text: bytes) -> None:
        for watch in self._watches[plural]:
            watch.put_nowait(b'{"type":"%s","object":%s}' % (kind.encode(), text))

    # ---- as the operator calls it

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        before_sending: Callable[[], None] = lambda: None,
        **_: Any,
    ) -> dict[str, Any]:
        before_sending()
        await asyncio.sleep(0)
        began_s = time.thread_time()
        plural, name, is_status = _parsed(path)
        self.requests[f"{method} {plural}{'/status' * is_status}"] += 1
        try:
            if method == "GET":
                return orjson.loads(self._read(path, plural, name, query or {}))
            return self._write(method, path, plural, name, query or {}, orjson.loads(orjson.dumps(body)), is_status)
        finally:
            self.processor_s += time.thread_time() - began_s

    async def credentials(self) -> None:
        raise NotImplementedError("kopf has nothing to watch here")

    @contextlib.asynccontextmanager
    async def lines(self, path: str, **_: Any) -> AsyncIterator[AsyncIterator[bytes]]:
        plural, *_rest = _parsed(path)
        watch = asyncio.Queue[bytes]()
        self._watches[plural].add(watch)
        try:
            yield _each(watch)
        finally:
            self._watches[plural].discard(watch)

    def _read(self, path: str, plural: str, name: Name, query: Mapping[str, str]) -> bytes:
        held = self.stored[plural]
        if name[1]:
            if name not in held:
                raise NotFoundError(path)
            return held[name]
        start = int(query.get("continue", 0))
        end = start + int(query.get("limit", len(held)))
        more = str(end) if end < len(held) else ""
        items = b",".join(islice(held.values(), start, end))
        head = {"resourceVersion": str(self._revision), "continue": more}
        return b'{"metadata":%s,"items":[%s]}' % (orjson.dumps(head), items)

    def _write(  # noqa: PLR0917  # a request
        self, method: str, path: str, plural: str, name: Name, query: Mapping[str, str], body: Any, is_status: bool
    ) -> dict[str, Any]:
        metadata = body["metadata"] if method != "DELETE" else {}
        if method == "POST" and (plural == "events" or query.get("dryRun")):
            return {**body, "metadata": {"name": "unseen", "uid": "unseen", **metadata}}
        if method == "POST":
            if (metadata["namespace"], metadata["name"]) in self.stored[plural]:
                raise ConflictError(path)
            return orjson.loads(self.put(plural, body))
        found = orjson.loads(self._read(path, plural, name, query))
        if method == "DELETE":
            self.delete(plural, name)
            return {}
        if method == "PATCH":
            return orjson.loads(self.put(plural, _ungated(_merged(found, body))))
        if metadata["resourceVersion"] != found["metadata"]["resourceVersion"]:
            raise ConflictError(path)
        return orjson.loads(self.put(plural, {**found, "status": body["status"]} if is_status else body))


def _parsed(path: str) -> tuple[str, Name, bool]:
    """Return plural, name and whether the status is meant: of /api/v1/..., or /apis/GROUP/VERSION/..."""
    parts = path.strip("/").split("/")
    parts = parts[2 if parts[0] == "api" else 3 :]
    namespace = parts[1] if parts[0] == "namespaces" and len(parts) > 2 else ""
    plural, name, status = (*(parts[2:] if namespace else parts), "", "")[:3]
    return plural, (namespace, name), bool(status)


async def _each(watch: asyncio.Queue[bytes]) -> AsyncIterator[bytes]:
    while True:
        yield await watch.get()


def _merged(old: dict[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(old[key], value) if isinstance(value, dict) and isinstance(old.get(key), dict) else value
        for key, value in new.items()
    }
    return {**old, **both}


def _ungated(pod: dict[str, Any]) -> dict[str, Any]:
    """Take the gates off that a strategic patch says to: the operator's pods have no other."""
    if any("$patch" in gate for gate in pod["spec"].get("schedulingGates", ())):
        del pod["spec"]["schedulingGates"]
    return pod
