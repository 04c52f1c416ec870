"""The ASGI application: routes, keys, limits, streams."""

import asyncio
import contextlib
import hmac
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

import orjson
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelinejob_trainer.serving.front.answering import Answering, Piece, Prepared, Usage
from pipelinejob_trainer.serving.front.answers import Form
from pipelinejob_trainer.serving.front.errors import ApiError, slow_body
from pipelinejob_trainer.serving.front.wanted import Wanted, read_chat, read_completion

MOST_BODY = 4 << 20
_BODY_S = 30.0  # for a client to send a body
_GONE = 499  # as others count a client that left
_SILENCE_S = 15.0  # after which a stream says that it lives: proxies give up what is silent, many after 60 s
_METRICS = "text/plain; version=0.0.4; charset=utf-8"
_Result = TypeVar("_Result")


class Front:
    """OpenAI's interface to what `answering` answers; `keys` empty: no key is asked for."""

    def __init__(self, answering: Answering, *, keys: Sequence[str] = ()) -> None:
        self._answering = answering
        self._keys = [each.encode() for each in keys]
        self._begun = int(time.time())
        self.is_leaving = False  # answers close their connections then, and nobody is to begin to ask

    @property
    def model(self) -> str:
        """What clients call the model."""
        return self._answering.model

    def app(self) -> Starlette:
        """Return the application."""
        app = Starlette(
            routes=[
                Route("/v1/completions", self._answered(read_completion), methods=["POST"]),
                Route("/v1/chat/completions", self._answered(read_chat), methods=["POST"]),
                Route("/v1/models", self._models, methods=["GET"]),
                Route("/v1/models/{name:path}", self._model, methods=["GET"]),
                Route("/healthz", self._health, methods=["GET"]),
                Route("/readyz", self._readiness, methods=["GET"]),
                Route("/metrics", self._metrics, methods=["GET"]),
            ],
            exception_handlers={ApiError: self._error, HTTPException: self._http_error, Exception: self._bug},
            middleware=[Middleware(_Leaving, front=self)],
        )
        app.router.redirect_slashes = False  # to an address that clients behind a proxy may not reach
        return app

    def _answered(self, read: Callable[[bytes], Wanted]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            try:
                client = self._client(request)
                body = await _body(request)
                prepared = await run_in_threadpool(lambda: self._answering.prepare(read(body)))
            except ClientDisconnect:
                return self._counted(Response(status_code=_GONE))
            with contextlib.ExitStack() as room:
                room.enter_context(self._answering.admitted(prepared))
                if prepared.wanted.stream:
                    return self._counted(_Stream(self._stream(prepared, client), room.pop_all()))
                return self._counted(await self._whole(request, prepared, client))

        return endpoint

    async def _whole(self, request: Request, prepared: Prepared, client: str) -> Response:
        usage = Usage()

        async def collect() -> list[Piece]:
            pieces = self._answering.pieces(prepared, usage, client=client)
            try:
                return [piece async for piece in pieces]
            finally:
                await pieces.aclose()

        pieces = await _unless_gone(request, collect())
        if pieces is None:
            return Response(status_code=_GONE)
        return _json(Form(prepared, self._answering.tokenizer).whole(pieces, usage))

    async def _stream(self, prepared: Prepared, client: str) -> AsyncGenerator[bytes]:
        usage, form = Usage(), Form(prepared, self._answering.tokenizer)
        pieces = self._answering.pieces(prepared, usage, client=client)
        try:
            for chunk in form.begin():
                yield _event(chunk)
            async for piece in pieces:
                if piece.text or piece.ending or prepared.wanted.sampling.logprobs is not None:
                    yield _event(form.chunk(piece))
            if prepared.wanted.include_usage:
                yield _event(form.last(usage))
            yield b"data: [DONE]\n\n"
        except ApiError as error:
            yield _event(error.body)
        finally:
            await pieces.aclose()

    def _client(self, request: Request) -> str:
        """Return who asks: the key's place, or the address. Raises ApiError without a right key."""
        if not self._keys:
            return request.client.host if request.client else ""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        as_sent = given.strip().encode("latin-1")  # as which headers are read
        matches = [hmac.compare_digest(as_sent, key) for key in self._keys]
        if scheme.lower() != "bearer" or not any(matches):
            raise ApiError(
                401, "no right key was given; send the header Authorization: Bearer KEY", code="invalid_api_key"
            )
        return f"key {matches.index(True)}"

    async def _models(self, request: Request) -> Response:
        self._client(request)
        return _json({"object": "list", "data": [self._about]})

    async def _model(self, request: Request) -> Response:
        self._client(request)
        if request.path_params["name"] != self._answering.model:
            raise ApiError(404, f"there is no such model; use {self._answering.model!r}", code="model_not_found")
        return _json(self._about)

    @property
    def _about(self) -> dict[str, Any]:
        answering = self._answering
        return {
            "id": answering.model,
            "object": "model",
            "created": self._begun,
            "owned_by": "pipelinejob",
            "max_model_len": answering.longest,
        }

    async def _health(self, _: Request) -> Response:
        error = self._answering.engine.error
        return PlainTextResponse("ok\n") if error is None else PlainTextResponse(f"{error}\n", status_code=503)

    async def _readiness(self, _: Request) -> Response:
        engine = self._answering.engine
        if self.is_leaving:
            return PlainTextResponse("asked to stop\n", status_code=503)
        if engine.is_ready:
            return PlainTextResponse("ok\n")
        missing = ", ".join(map(str, engine.load().missing))
        return PlainTextResponse(f"stages {missing or '0'} are not there\n", status_code=503)

    async def _metrics(self, _: Request) -> Response:
        return Response(self._answering.metrics.text(), media_type=_METRICS)

    def _counted(self, response: Response) -> Response:
        self._answering.metrics.count_request(response.status_code)
        return response

    async def _error(self, _: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError), "the handler of that error alone"
        return self._counted(_json(error.body, status=error.status, headers=error.headers))

    async def _http_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException), "the handler of that error alone"
        known = {404: "there is nothing at", 405: "is not the method for"}
        sentence = f"{request.method} {request.url.path}: {known.get(error.status_code, error.detail)} this path"
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "error")
        status = error.status_code if error.status_code in known else 400
        response = await self._error(request, ApiError(status, sentence, code=code))
        response.headers.update(error.headers or {})
        return response

    async def _bug(self, request: Request, error: Exception) -> Response:
        """Answer what failed by a fault of ours; it is in the log, too."""
        sentence = f"the server failed at this request: {type(error).__name__}; its log says where"
        return await self._error(request, ApiError(500, sentence, code="internal_error"))


class _Leaving:
    """Sends clients away with each answer, once the front is to stop: their next request goes elsewhere."""

    def __init__(self, app: ASGIApp, front: Front) -> None:
        self._app = app
        self._front = front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start" and self._front.is_leaving:
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        await self._app(scope, receive, closing)


class _Stream(StreamingResponse):
    """A stream that is closed, and gives back its room, however it ends, even before it began.

    While there is nothing to tell it sends comments, which clients pass over.
    """

    def __init__(self, chunks: AsyncGenerator[bytes], room: contextlib.ExitStack) -> None:
        # The second for nginx, which else keeps events until it has many.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(chunks, media_type="text/event-stream", headers=headers)
        self._chunks = chunks
        self._room = room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        lively = _Lively(send)
        with self._room:
            living = asyncio.create_task(lively.live())
            try:
                await super().__call__(scope, receive, lively)
            finally:
                living.cancel()
                await self._chunks.aclose()


class _Lively:
    """Sends a stream's messages, and a comment whenever none was sent for a while."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._begun = self._done = 0  # messages, those that a client does not take yet apart

    async def __call__(self, message: Message) -> None:
        self._begun += 1
        try:
            await self._send(message)
        finally:
            self._done += 1

    async def live(self) -> None:
        while True:
            before = self._begun
            await asyncio.sleep(_SILENCE_S)
            if 0 < before == self._begun == self._done:
                await self({"type": "http.response.body", "body": b": in work\n\n", "more_body": True})


async def _body(request: Request) -> bytes:
    """Read a body. Raises ApiError for one that is too long, or comes too slowly."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(_BODY_S):
            async for part in request.stream():
                size += len(part)
                if size > MOST_BODY:
                    raise ApiError(
                        413, f"the body is longer than the {MOST_BODY} bytes allowed; send less", code="too_large"
                    )
                parts.append(part)
    except TimeoutError as error:
        raise slow_body(_BODY_S) from error
    return b"".join(parts)


async def _unless_gone(request: Request, work: Awaitable[_Result]) -> _Result | None:
    """Return what the work gives; None, with the work cancelled, if the client leaves before."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for each in (working, leaving):
            each.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


def _json(value: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status_code=status, headers=headers, media_type="application/json")


def _event(value: Any) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"
