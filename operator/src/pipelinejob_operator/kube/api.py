"""The one way to the API server: raw JSON over a connection that `kubernetes.aio` sets up; errors are translated here.

Typed models stay out: what the controller reads and writes is the API's own JSON, and parsing tens of thousands of pods
into models costs more than everything done with them.
"""

import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import urlencode, urlsplit

import aiohttp
import orjson
from kubernetes.aio import config as kubernetes_config
from kubernetes.aio.client import Configuration
from kubernetes.aio.client.rest import RESTClientObject

from pipelinejob_operator.cluster import ClusterError, ConflictError, ForbiddenError, InvalidError, UnavailableError

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
JSON = "application/json"

REQUEST_TIMEOUT_S = 30.0
_CONNECT_TIMEOUT_S = 5.0
_TOKEN_LIFE = timedelta(minutes=10)  # a pod's token is renewed with at least 12 of its 60 minutes left
_MAX_CONNECTIONS = 64
_MAX_MESSAGE = 1024


class NotFoundError(ClusterError):
    """There is no such object, or no such kind."""


class GoneError(ClusterError):
    """The resource version or page asked for is too old (410); list again."""


class ConfigurationError(ClusterError):
    """There is no usable way to the API server: no kubeconfig, no service account."""


class ApiMetrics(Protocol):
    """Where requests are counted."""

    def request(self, *, method: str, code: str, host: str) -> None:
        """Count one request; the code is `<error>` when none came."""


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
    """A connection to the API server. Use as an async context manager."""

    def __init__(self, configuration: Configuration, *, metrics: ApiMetrics | None = None) -> None:
        self._configuration = configuration
        self._metrics = metrics
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
    ) -> dict[str, Any]:
        """Send one request and give the JSON of the answer.

        Raises the ClusterError that the answer, or its absence, means.
        """
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_TIMEOUT_S)
        async with self._exchange(method, path, query=query, body=body, content_type=content_type, timeout=timeout) as (
            response
        ):
            content = await response.read()
        try:
            parsed = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise UnavailableError(f"{method} {path}: the answer is no JSON: {_short(content)}") from error
        if not isinstance(parsed, dict):
            raise UnavailableError(f"{method} {path}: the answer is no object: {_short(content)}")
        return parsed

    @contextlib.asynccontextmanager
    async def lines(self, path: str, *, query: Mapping[str, str]) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Open a stream and give its lines as they come. The caller bounds the silence between two of them."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S)
        async with self._exchange("GET", path, query=query, timeout=timeout) as response:
            yield _lines(response)

    async def credentials(self) -> Credentials:
        """Give the present credentials, for a client of another library."""
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
        try:
            answer = await self._rest.request(  # type: ignore[no-untyped-call]  # the library's transport has no types
                method,
                f"{self._configuration.host}{path}" + (f"?{urlencode(query)}" if query else ""),
                headers=await self._headers(content_type),
                body=body,
                _request_timeout=timeout,
            )
            response = answer.response
            self._count(method, str(response.status))
            if response.status >= 400:  # noqa: PLR2004  # where errors begin
                raise _error(method, path, response.status, await response.read())
            yield response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if response is None:
                self._count(method, "<error>")
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

    def _count(self, method: str, code: str) -> None:
        if self._metrics:
            self._metrics.request(method=method, code=code, host=self._host)


async def load_configuration(kubeconfig: Path | None, context: str | None) -> Configuration:
    """Find the API server: from a kubeconfig, or as the pod's service account if there is none.

    Raises ConfigurationError.
    """
    configuration = Configuration()
    configuration.connection_pool_maxsize = _MAX_CONNECTIONS
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


def _error(method: str, path: str, status: int, content: bytes) -> ClusterError:
    message = f"{method} {path}: {status} {_message(content)}"
    match status:
        case 404:
            return NotFoundError(message)
        case 409:
            return ConflictError(message)
        case 410:
            return GoneError(message)
        case 403:
            return ForbiddenError(_message(content))
        case 400 | 413 | 415 | 422:
            return InvalidError(_message(content))
        case _:
            return UnavailableError(message)


def _message(content: bytes) -> str:
    try:
        status = json.loads(content)
        return str(status["message"])
    except (ValueError, TypeError, KeyError):
        return _short(content)


def _short(content: bytes) -> str:
    return content[:_MAX_MESSAGE].decode(errors="replace")
