"""The one way to the API server: raw JSON over a connection that `kubernetes.aio` sets up; errors are translated here.

An API server that is overloaded says when to come back (429 or 5xx with Retry-After). As far as a
request's time allows, that is done here, and until then nobody else goes either.

Typed models stay out: what the controller reads and writes is the API's own JSON, and parsing tens
of thousands of pods into models costs more than everything done with them.
"""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies_environment

import aiohttp
import orjson
from kubernetes.aio import config as kubernetes_config
from kubernetes.aio.client import Configuration
from kubernetes.aio.client.rest import RESTClientObject

from pipelinejob_operator.cluster import (
    ClusterError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    TooLargeError,
    UnavailableError,
)
from pipelinejob_operator.kube.pacing import Pace

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
JSON = "application/json"

REQUEST_TIMEOUT_S = 30.0
_CONNECT_TIMEOUT_S = 5.0
_TOKEN_LIFE = timedelta(minutes=10)  # a pod's token is renewed with at least 12 of its 60 minutes left
_NO_LIMIT = 0  # of connections: watches stay open, and a pace bounds all else
_MIN_WAIT_S = 0.2  # where Retry-After is 0
_TOO_MANY_REQUESTS = 429
_SERVER_ERRORS = range(500, 600)
_MAX_MESSAGE = 1024
# etcd's words, and its client's; the API server passes them on as failures of its own (500).
_TOO_LARGE = ("etcdserver: request is too large", "trying to send message larger than max")


class NotFoundError(ClusterError):
    """There is no such object, or no such kind."""


class GoneError(ClusterError):
    """The resource version or page asked for is too old (410); list again."""


class ThrottledError(UnavailableError):
    """The API server takes no more for now, and said after how many seconds it will."""

    def __init__(self, message: str, *, status: int, after_s: float) -> None:
        super().__init__(message)
        self.status = status
        self.after_s = after_s


class ConfigurationError(ClusterError):
    """There is no usable way to the API server: no kubeconfig, no service account."""


# What the API server says of an object needs no request before it: its words reach the object's
# author.
_REFUSALS: dict[int, type[ClusterError]] = {
    400: InvalidError,
    403: ForbiddenError,
    413: TooLargeError,
    415: InvalidError,
    422: InvalidError,
}
_ERRORS: dict[int, type[ClusterError]] = {404: NotFoundError, 409: ConflictError, 410: GoneError}


class ApiMetrics(Protocol):
    """Where requests are counted."""

    def request(self, *, method: str, code: str, host: str, seconds: float) -> None:
        """Count one request, and the seconds until its answer began; the code is `<error>` when none came."""

    def rate_limited(self, *, method: str, host: str, seconds: float) -> None:
        """Take how long a request waited for its turn."""

    def retried(self, *, method: str, code: str, host: str) -> None:
        """Count a request that is sent again because the API server said when to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What another client (kopf) needs to reach the same API server."""

    server: str
    ca_file: str | None
    certificate_file: str | None
    key_file: str | None
    token: str | None
    insecure: bool
    expires: datetime


class Api:
    """A connection to the API server. Use as an async context manager.

    With a `pace`, requests take turns (`pacing.on_behalf_of`); watches do not, once they are open.
    """

    def __init__(
        self, configuration: Configuration, *, metrics: ApiMetrics | None = None, pace: Pace | None = None
    ) -> None:
        self._configuration = configuration
        self._metrics = metrics
        self._pace = pace
        self._host = urlsplit(configuration.host).netloc
        self._rest: RESTClientObject | None = None

    async def __aenter__(self) -> Self:
        self._rest = RESTClientObject(self._configuration)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rest:
            await self._rest.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = JSON,
        timeout_s: float = REQUEST_TIMEOUT_S,
        before_sending: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """Send one request and give the JSON of the answer.

        All tries of it together take `timeout_s` at most, from the first on; `before_sending` is
        called before each and may raise. Raises the ClusterError that the answer, or its absence,
        means.
        """
        async with self._turn(method):
            until_s = time.monotonic() + timeout_s
            while True:
                before_sending()
                try:
                    left_s = until_s - time.monotonic()
                    return await self._send(method, path, query=query, body=body, kind=content_type, timeout_s=left_s)
                except ThrottledError as refusal:
                    wait_s = max(refusal.after_s, _MIN_WAIT_S) * random.uniform(1, 1.1)  # noqa: S311  # no secret
                    if time.monotonic() + wait_s >= until_s:
                        raise
                    self._count_retry(method, refusal)
                await asyncio.sleep(wait_s)

    @contextlib.asynccontextmanager
    async def lines(self, path: str, *, query: Mapping[str, str]) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Open a stream and give its lines as they come. The caller bounds the silence between two of them."""
        if self._pace:
            await self._pace.held()
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S)
        async with self._exchange("GET", path, query=query, timeout=timeout) as response:
            yield _lines(response)

    async def credentials(self) -> Credentials:
        """Return the present credentials, for a client of another library."""
        configuration = self._configuration
        bearer = await self._bearer()
        return Credentials(
            server=configuration.host,
            ca_file=configuration.ssl_ca_cert,
            certificate_file=configuration.cert_file,
            key_file=configuration.key_file,
            token=bearer.split(" ", 1)[-1].strip() if bearer else None,
            insecure=not configuration.verify_ssl,
            expires=datetime.now(UTC) + _TOKEN_LIFE,
        )

    @contextlib.asynccontextmanager
    async def _turn(self, method: str) -> AsyncGenerator[None]:
        if self._pace is None:
            yield
            return
        began_s = time.monotonic()
        async with self._pace.turn():
            if self._metrics:
                waited_s = time.monotonic() - began_s
                self._metrics.rate_limited(method=method, host=self._host, seconds=waited_s)
            yield

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
        kind: str,
        timeout_s: float,
    ) -> dict[str, Any]:
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_TIMEOUT_S)
        async with self._exchange(method, path, query=query, body=body, content_type=kind, timeout=timeout) as response:
            content = await response.read()
        try:
            parsed = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise UnavailableError(f"{method} {path}: the answer is no JSON: {_short(content)}") from error
        if not isinstance(parsed, dict):
            raise UnavailableError(f"{method} {path}: the answer is no object: {_short(content)}")
        return parsed

    @contextlib.asynccontextmanager
    async def _exchange(
        self,
        method: str,
        path: str,
        *,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109  # aiohttp's own object, bounds more than the whole
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = JSON,
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """Send a request; whatever goes wrong until the answer is read comes out as a ClusterError."""
        if self._rest is None:
            raise ClusterError("the connection to the API server is not open")
        response: aiohttp.ClientResponse | None = None
        began_s = time.monotonic()
        try:
            answer = await self._rest.request(  # type: ignore[no-untyped-call]  # the library's transport has no types
                method,
                f"{self._configuration.host}{path}" + (f"?{urlencode(query)}" if query else ""),
                headers=await self._headers(content_type),
                body=body,
                _request_timeout=timeout,
            )
            response = answer.response
            self._count(method, str(response.status), began_s)
            if response.status >= 400:  # noqa: PLR2004  # where errors begin
                raise self._refusal(method, path, response, await response.read())
            yield response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if response is None:
                self._count(method, "<error>", began_s)
            raise UnavailableError(f"{method} {path}: {type(error).__name__} {error}".rstrip()) from error
        finally:
            if response is not None:
                # Not release(): a stream that was left early must not be read to its end.
                response.close()

    async def _headers(self, content_type: str) -> dict[str, str]:
        headers = {"Content-Type": content_type, "Accept": JSON, "User-Agent": "pipelinejob-operator"}
        bearer = await self._bearer()
        return {**headers, "Authorization": bearer} if bearer else headers

    async def _bearer(self) -> str | None:
        try:
            settings: Mapping[str, Any] = await self._configuration.auth_settings()
        except (OSError, kubernetes_config.ConfigException) as error:
            raise UnavailableError(f"the service account's token cannot be read: {error}") from error
        return (settings.get("BearerToken") or {}).get("value")

    def _refusal(self, method: str, path: str, response: aiohttp.ClientResponse, content: bytes) -> ClusterError:
        error = _error(method, path, response.status, content)
        after_s = _retry_after_s(response)
        if after_s is None or type(error) is not UnavailableError:
            return error
        if self._pace:
            self._pace.hold(after_s)
        return ThrottledError(str(error), status=response.status, after_s=after_s)

    def _count(self, method: str, code: str, began_s: float) -> None:
        if self._metrics:
            self._metrics.request(method=method, code=code, host=self._host, seconds=time.monotonic() - began_s)

    def _count_retry(self, method: str, refusal: ThrottledError) -> None:
        if self._metrics:
            self._metrics.retried(method=method, code=str(refusal.status), host=self._host)


async def load_configuration(kubeconfig: Path | None, context: str | None) -> Configuration:
    """Find the API server: from a kubeconfig, or as the pod's service account if there is none.

    Raises ConfigurationError.
    """
    configuration = Configuration()
    configuration.connection_pool_maxsize = _NO_LIMIT
    # Otherwise each request reads ~/.netrc, and looks for proxies that are not there.
    configuration.client_session_kwargs = {"trust_env": bool(getproxies_environment())}
    try:
        if kubeconfig is None:
            kubernetes_config.load_incluster_config(  # type: ignore[no-untyped-call]  # untyped, as the next
                client_configuration=configuration
            )
        else:
            await kubernetes_config.load_kube_config(  # type: ignore[no-untyped-call]
                config_file=str(kubeconfig), context=context, client_configuration=configuration, persist_config=False
            )
    except (kubernetes_config.ConfigException, OSError) as error:
        where = kubeconfig or "the pod's service account"
        raise ConfigurationError(
            f"{where}: {error}; name a kubeconfig with --kubeconfig or KUBECONFIG, or run in a pod"
        ) from error
    return configuration


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Split a stream into lines. aiohttp's own way refuses one longer than its buffer, and objects may be large."""
    rest = b""
    async for chunk in response.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield line
    if rest.strip():
        yield rest


def _retry_after_s(response: aiohttp.ClientResponse) -> float | None:
    """Read after how many seconds the API server wants to be asked again; None where it does not say, as client-go."""
    if response.status != _TOO_MANY_REQUESTS and response.status not in _SERVER_ERRORS:
        return None
    given = response.headers.get("Retry-After", "")
    return float(given) if given.isdecimal() else None


def _error(method: str, path: str, status: int, content: bytes) -> ClusterError:
    said = _message(content)
    if status in _REFUSALS:
        return _REFUSALS[status](said)
    message = f"{method} {path}: {status} {said}"
    if any(words in said for words in _TOO_LARGE):
        return TooLargeError(message)
    return _ERRORS.get(status, UnavailableError)(message)


def _message(content: bytes) -> str:
    try:
        status = json.loads(content)
        return str(status["message"])
    except (ValueError, TypeError, KeyError):
        return _short(content)


def _short(content: bytes) -> str:
    return content[:_MAX_MESSAGE].decode(errors="replace")
