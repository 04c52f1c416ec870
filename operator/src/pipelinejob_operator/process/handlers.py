"""kopf's part: it watches PipelineJobs and says which of them changed. The only file that knows kopf.

kopf 1.45 ends the whole operator on six kinds of odd stream answers, tells of no deletion that
fell into a gap, and cancels every task of its loop when it ends. So it runs in a thread and a loop
of its own, begins again when it ends, decides nothing, remembers nothing and writes nothing:
`on.event` costs no PATCH, and what it misses the informers see.
"""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import kopf
import structlog

from pipelinejob.base import names
from pipelinejob_operator.cluster import Key
from pipelinejob_operator.kube.api import Credentials
from pipelinejob_operator.kube.caching.informer import Backoff

_log = structlog.get_logger(__name__)

_MIN_BACKOFF_S, _MAX_BACKOFF_S = 0.1, 30.0
_MAX_ERROR_BACKOFF_S = 10.0


class KopfWatch:
    """kopf under supervision.

    `enqueue` and `on_restart` are called in the thread of `loop`; `credentials` is awaited there.
    Without `namespaces` all are watched.
    """

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        credentials: Callable[[], Awaitable[Credentials]],
        enqueue: Callable[[Key], None],
        on_restart: Callable[[], None],
        namespaces: Sequence[str] = (),
    ) -> None:
        self._loop = loop
        self._credentials = credentials
        self._enqueue = enqueue
        self._on_restart = on_restart
        self._namespaces = namespaces
        self._stopping = threading.Event()
        self._ending: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None  # of the present run
        # A daemon: it holds nothing that is worth waiting for when the process ends.
        self._thread = threading.Thread(target=self._supervise, name="kopf", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Ask kopf to end; does not wait."""
        self._stopping.set()
        if self._ending:
            loop, flag = self._ending
            with contextlib.suppress(RuntimeError):  # that run is over
                loop.call_soon_threadsafe(flag.set)

    def join(self, timeout_s: float) -> None:
        """Wait until kopf has ended, no longer than this; one that never began has."""
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _supervise(self) -> None:
        backoff = Backoff(_MIN_BACKOFF_S, _MAX_BACKOFF_S)
        while not self._stopping.is_set():
            reason = self._run_once(backoff)
            if self._stopping.is_set():
                return
            _log.warning("kopf ended and begins again", reason=reason)
            with contextlib.suppress(RuntimeError):  # the loop ended a moment ago, and with it the process
                self._loop.call_soon_threadsafe(self._on_restart)
            self._stopping.wait(backoff.next())

    def _run_once(self, backoff: Backoff) -> str:
        """Run kopf until it ends, and give the reason."""
        try:
            asyncio.run(self._operate(backoff))
        except Exception as error:  # noqa: BLE001  # whatever kopf dies of, it begins again; the reason is logged and counted
            return f"{type(error).__name__}: {error}"
        return "kopf returned"

    async def _operate(self, backoff: Backoff) -> None:
        # An event of asyncio's, one for each run: for a thread's event kopf would leave a thread
        # of the loop's executor waiting, and never get to its own end.
        flag = asyncio.Event()
        self._ending = (asyncio.get_running_loop(), flag)
        if self._stopping.is_set():
            return
        await kopf.operator(
            registry=self._registry(backoff),
            settings=_settings(),
            standalone=True,
            clusterwide=not self._namespaces,
            namespaces=self._namespaces,
            stop_flag=flag,
        )

    def _registry(self, backoff: Backoff) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry)
        async def login(**_: Any) -> kopf.ConnectionInfo:
            # The connection belongs to the other loop, so its credentials are asked for there.
            asking = asyncio.run_coroutine_threadsafe(_awaited(self._credentials), self._loop)
            return _connection(await asyncio.wrap_future(asking))

        @kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=registry)
        async def changed(type: str | None, namespace: str | None, name: str | None, **_: Any) -> None:  # noqa: A002  # kopf's name
            backoff.reset()
            # What kopf lists, as it does whenever its watch ends, is no change: the informer has
            # listed it already, and a pass over each of ten thousand jobs would take a minute.
            if type is not None and namespace and name:
                self._loop.call_soon_threadsafe(self._enqueue, Key(namespace, name))

        return registry


class _EndlessBackoffs:
    """Delays between kopf's retries that never run out; a sized iterable would end the operator when used up."""

    def __iter__(self) -> Iterator[float]:
        backoff = Backoff(_MIN_BACKOFF_S, _MAX_ERROR_BACKOFF_S)
        while True:
            yield backoff.next()


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True  # needs no right on CRDs and namespaces; the CRD is there before kopf starts
    settings.peering.standalone = True  # kopf's peering is no lock; leader.py is
    settings.posting.enabled = False
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.connect_timeout = 10
    settings.watching.chunk_size = 500
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.networking.error_backoffs = _EndlessBackoffs()
    settings.networking.enforce_retry_after = True
    settings.queueing.idle_timeout = 0.1
    settings.queueing.exit_timeout = 0.2
    # At its end kopf would otherwise kill this whole process after so many seconds.
    settings.process.ultimate_exiting_timeout = None
    return settings


def _connection(credentials: Credentials) -> kopf.ConnectionInfo:
    return kopf.ConnectionInfo(
        server=credentials.server,
        ca_path=credentials.ca_file,
        certificate_path=credentials.certificate_file,
        private_key_path=credentials.key_file,
        token=credentials.token,
        insecure=credentials.insecure,
        expiration=credentials.expires if credentials.token else None,
    )


async def _awaited(credentials: Callable[[], Awaitable[Credentials]]) -> Credentials:
    return await credentials()
