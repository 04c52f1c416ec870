"""Everything at once: nodes go and come, a thousand pods are deleted, every watch is cut. How long until all is well.

All is well when every job that ran has all its pods again, let go, and a job created after the
storm is let go, too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from itertools import islice
from typing import Any, Self

from line import Line
from world import PATIENCE_S, Operator, World, each, operator

NUM_PODS = 1000
_NODES = "/api/v1/nodes"
_MERGE = "application/merge-patch+json"
_AT_ONCE = 64
_AWAY_S = 5.0  # how long nodes stay away


async def storms(line: Line) -> AsyncIterator[tuple[str, Awaitable[dict[str, float]]]]:
    """Yield each storm's name, and what gives the seconds until it was over and how the operator answered meanwhile."""
    await line.without_older()
    async with CuttableProxy(line.here.server.port) as proxy:
        kubeconfig = line.here.server.kubeconfig_of("admin", url=proxy.url)
        async with operator(line.here, kubeconfig=kubeconfig, name="operator-in-storms") as running:
            await line.one_more()
            yield "nodes not ready", _weathered(line, running, lambda: _nodes_fail(line.here))
            yield "nodes deleted", _weathered(line, running, lambda: _nodes_go(line.here))
            yield "pods deleted", _weathered(line, running, lambda: _pods_go(line))
            yield "watches cut", _weathered(line, running, proxy.cut)


async def _weathered(line: Line, running: Operator, storm: Callable[[], Awaitable[None]]) -> dict[str, float]:
    """Let a storm pass, and return how long it had consequences."""
    ran = set(line.running)
    with running.measured() as measured:
        await storm()
        over = time.monotonic()
        await line.one_more()
        await line.here.board.until(lambda: ran <= line.running.keys(), "all jobs run again", timeout_s=PATIENCE_S)
        well_s = time.monotonic() - over
    return {"jobs": len(line.here.board.jobs), "well_s": well_s, **await measured.figures()}


async def _nodes_fail(here: World) -> None:
    items = (await here.api.request("GET", _NODES))["items"]
    await each(items, lambda item: _write_ready(here, item, "False"), at_once=_AT_ONCE)
    await asyncio.sleep(_AWAY_S)
    await each(items, lambda item: _write_ready(here, item, "True"), at_once=_AT_ONCE)


async def _nodes_go(here: World) -> None:
    items = (await here.api.request("GET", _NODES))["items"]
    await each(items, lambda item: here.api.request("DELETE", f"{_NODES}/{_name(item)}"), at_once=_AT_ONCE)
    await asyncio.sleep(_AWAY_S)
    await each(items, lambda item: here.api.request("POST", _NODES, body=_as_new(item)), at_once=_AT_ONCE)


async def _pods_go(line: Line) -> None:
    doomed = dict(islice(line.pods, NUM_PODS))
    await line.here.delete_pods(doomed)
    await line.here.board.until(lambda: doomed.items().isdisjoint(line.pods), "they are gone", timeout_s=PATIENCE_S)


async def _write_ready(here: World, item: dict[str, Any], status: str) -> None:
    condition = {"type": "Ready", "status": status, "reason": "Benchmark", "message": "pretended"}
    path = f"{_NODES}/{_name(item)}/status"
    await here.api.request("PATCH", path, body={"status": {"conditions": [condition]}}, content_type=_MERGE)


def _name(item: dict[str, Any]) -> str:
    return item["metadata"]["name"]


def _as_new(item: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": _name(item), "labels": item["metadata"]["labels"]}
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "status": item["status"]}


class CuttableProxy:
    """Carries the bytes of connections to the API server, encrypted as they are, and cuts all of them on request."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cut()
        self._server.close()

    async def cut(self) -> None:
        for each_writer in self._writers:
            each_writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._port)
        ends = {writer, server_writer}
        self._writers |= ends
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_carry(reader, server_writer))
                tasks.create_task(_carry(server_reader, writer))
        finally:
            self._writers -= ends
            for each_writer in ends:
                each_writer.close()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(2**18):
            writer.write(data)
            await writer.drain()
    writer.close()
