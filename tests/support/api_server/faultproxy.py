"""A reverse proxy before a real API server that misbehaves on request, as load balancers and dying API servers do.

    with FaultProxy(server) as proxy:          # its url goes into a kubeconfig
        with proxy.fault(refuse_list(410)):    # watches break at once; lists are refused until the block ends
            ...

It speaks plain HTTP to the client and TLS to the API server, in a thread and a loop of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import aiohttp
from aiohttp import web

from support.api_server.apiserver import ApiServer

_HOP_HEADERS = frozenset({"connection", "host", "transfer-encoding", "content-length", "content-encoding"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is done to requests while the fault lasts."""

    watch_status: int = 0  # answer to each new watch; 0: the server's
    list_status: int = 0  # answer to each list
    any_status: int = 0  # answer to everything
    retry_after: str = ""  # header of all these answers
    line: bytes = b""  # sent first in each new watch
    then_cut: bool = False  # after `line`, in the middle of things
    drop: bool = False  # every connection, without an answer
    freeze: bool = False  # watches open, and silent; what the server sent meanwhile comes when the fault ends
    break_watches: bool = True  # those that are open when the fault begins


def refuse_watch(status: int) -> Fault:
    return Fault(watch_status=status)


def refuse_list(status: int) -> Fault:
    # An in-stream 410 is what makes a client list at all.
    return Fault(list_status=status, line=_event("ERROR", {"kind": "Status", "code": 410, "message": "too old"}))


def refuse_all(status: int, *, retry_after: str = "") -> Fault:
    return Fault(any_status=status, retry_after=retry_after)


def in_stream(line: bytes) -> Fault:
    return Fault(line=line)


def error_event(code: int) -> Fault:
    return Fault(line=_event("ERROR", {"kind": "Status", "code": code, "message": "etcdserver: leader changed"}))


TORN_LINE = Fault(line=b'{"type":"MODIFIED","object":{"apiVersion":"pipelinejob.io/v1alpha1","kind":"Pipel\n')
TORN_AND_CUT = Fault(line=b'{"type":"MODIFIED","object":{"apiVersion":"v1","kind', then_cut=True)
HTML_LINE = Fault(line=b"<html><body><h1>502 Bad Gateway</h1></body></html>\n")
FROZEN = Fault(freeze=True, break_watches=False)
GONE = Fault(drop=True)


class FaultProxy:
    """Forwards everything to the server, but for the fault of the moment; `hits` counts what that spoiled."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self._fault: Fault | None = None
        self._loop = asyncio.new_event_loop()
        self._watches: set[asyncio.Transport] = set()
        self._connections: set[asyncio.Transport] = set()
        self._started = threading.Event()
        self._stop: asyncio.Event
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)
        self.url = ""
        self.hits = 0

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._started.wait(10):
            raise RuntimeError("the proxy did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    @contextlib.contextmanager
    def fault(self, fault: Fault) -> Iterator[None]:
        """Misbehave for the length of the block."""
        self._call(self._begin, fault)
        try:
            yield
        finally:
            self._call(self._end)

    def kubeconfig(self) -> str:
        return str(self._server.kubeconfig_of("admin", url=self.url))

    # ---- below: all of it in the proxy's thread

    def _call(self, function, *arguments) -> None:
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (function(*arguments), done.set()))
        if not done.wait(10):
            raise RuntimeError("the proxy hangs")

    def _begin(self, fault: Fault) -> None:
        self._fault = fault
        self.hits = 0
        self._thawed.clear()
        if fault.break_watches:
            for transport in tuple(self._connections if fault.drop else self._watches):
                transport.abort()

    def _end(self) -> None:
        self._fault = None
        self._thawed.set()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop, self._thawed = asyncio.Event(), asyncio.Event()
        self._thawed.set()
        context = ssl.create_default_context(cafile=str(self._server.ca))
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        connector = aiohttp.TCPConnector(ssl=context, limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector, auto_decompress=False) as self._session:
            application = web.Application(client_max_size=2**26)
            application.router.add_route("*", "/{path:.*}", self._handle)
            runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self._started.set()
            await self._stop.wait()
            for transport in tuple(self._connections):
                transport.abort()
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        is_watch = "watch" in request.query
        transport = request.transport
        self._connections.add(transport)
        if is_watch:
            self._watches.add(transport)
        try:
            return await self._answer(request, is_watch=is_watch)
        except (aiohttp.ClientError, OSError):
            # The server broke off; so does the proxy, as one that copies bytes would.
            transport.abort()
            return web.Response(status=502)
        finally:
            self._watches.discard(transport)

    async def _answer(self, request: web.Request, *, is_watch: bool) -> web.StreamResponse:
        fault = self._fault or Fault()
        if fault.drop:
            self.hits += 1
            request.transport.abort()
            return web.Response(status=502)
        is_list = request.method == "GET" and not is_watch and "limit" in request.query
        status = fault.any_status or (is_watch and fault.watch_status) or (is_list and fault.list_status)
        if status:
            self.hits += 1
            return _refusal(status, {"Retry-After": fault.retry_after} if fault.retry_after else {})
        body = await request.read()
        headers = {key: value for key, value in request.headers.items() if key.lower() not in _HOP_HEADERS}
        async with self._session.request(
            request.method, f"{self._server.url}{request.raw_path}", headers=headers, data=body or None
        ) as upstream:
            return await self._copy(request, upstream, fault if is_watch else Fault())

    async def _copy(self, request: web.Request, upstream: aiohttp.ClientResponse, fault: Fault) -> web.StreamResponse:
        headers = {key: value for key, value in upstream.headers.items() if key.lower() not in _HOP_HEADERS}
        if "Content-Encoding" in upstream.headers:
            headers["Content-Encoding"] = upstream.headers["Content-Encoding"]
        response = web.StreamResponse(status=upstream.status, headers=headers)
        await response.prepare(request)
        if fault.line:
            self.hits += not fault.list_status
            await response.write(fault.line)
        if fault.then_cut:
            request.transport.abort()
            return response
        async for chunk in upstream.content.iter_any():
            if "watch" in request.query:
                await self._thawed_if_frozen()
            await response.write(chunk)
        return response

    async def _thawed_if_frozen(self) -> None:
        if self._fault and self._fault.freeze:
            self.hits += 1
            await self._thawed.wait()


def _refusal(status: int, headers: Mapping[str, str]) -> web.Response:
    if status >= 500:
        text = "<html>Service Unavailable</html>"
        return web.Response(status=status, text=text, content_type="text/html", headers=headers)
    reasons = {404: "NotFound", 410: "Expired", 429: "TooManyRequests"}
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status, "reason": reasons.get(status)}
    return web.json_response({**body, "message": f"the proxy says {status}"}, status=status, headers=headers)


def _event(kind: str, item: dict[str, object]) -> bytes:
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"
