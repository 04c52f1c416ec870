"""The operator process: settings, logs, leadership, caches, queue, controller and kopf, wired; and an orderly end."""

import asyncio
import contextlib
import logging
import signal
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from typing import Final, Protocol

import aiohttp
import structlog

from pipelinejob_operator.cluster import ClusterError, ConflictError, Key, UnavailableError
from pipelinejob_operator.controller.reconcile import Controller
from pipelinejob_operator.kube.api import Api, ConfigurationError, load_configuration
from pipelinejob_operator.kube.caching.reactions import Hooks
from pipelinejob_operator.kube.cluster import KubeCluster
from pipelinejob_operator.kube.pacing import Pace, on_behalf_of
from pipelinejob_operator.process import garbage
from pipelinejob_operator.process import settings as operator_settings
from pipelinejob_operator.process.handlers import KopfWatch
from pipelinejob_operator.process.leader import AlwaysLeader, Elector, Leadership, NotLeaderError
from pipelinejob_operator.process.loopwatch import LoopWatch
from pipelinejob_operator.process.opmetrics import OperatorMetrics
from pipelinejob_operator.process.probes import Vitals, answering, look
from pipelinejob_operator.process.settings import OperatorSettings
from pipelinejob_operator.process.workqueue import WorkQueue

_log = structlog.get_logger(__name__)

# Keys that failed because the API server did not answer come back within this; others back off
# further.
_UNAVAILABLE_MAX_DELAY_S = 2.0
_CONFLICT_DELAY_S = 0.02
_KOPF_STOP_S = 0.2
_KOPF_START_S, _KOPF_LOOK_S = 30.0, 0.1  # at the latest; between two looks whether the queue is empty
_PASS_END_S = 0.3
_EXIT_USAGE: Final = 2
# How long a thread that computes keeps the interpreter from one that waits for it, at most. A
# probe waits some five times, so that Python's own 5 ms would add up.
SWITCH_S: Final = 0.001


class Reconciler(Protocol):
    """What a worker needs of the controller."""

    async def reconcile(self, key: Key) -> float | None:
        """Bring the job closer to its spec; give the seconds after which to come again."""


def main() -> None:
    """Run the operator until it is told to end."""
    settings = operator_settings.read()
    configure_logs(settings.log_level)
    garbage.search_seldom()
    sys.setswitchinterval(SWITCH_S)
    try:
        asyncio.run(serve(settings))
    except ConfigurationError as error:
        print(f"pipelinejob-operator: {error}", file=sys.stderr)  # noqa: T201  # for the person who starts it
        sys.exit(_EXIT_USAGE)


async def serve(settings: OperatorSettings) -> None:
    """Run the operator until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    configuration = await load_configuration(settings.kubeconfig, settings.context)
    metrics = OperatorMetrics()
    pace = Pace(qps=settings.kube_api_qps, burst=settings.kube_api_burst)
    async with (
        Api(configuration, metrics=metrics.requests, pace=pace) as api,
        # The Lease has a connection of its own, and waits behind nobody.
        Api(configuration, metrics=metrics.requests) as lease_api,
        aiohttp.ClientSession() as session,
        _elected(lease_api, settings, metrics) as leadership,
    ):
        operator = Operator(api, settings=settings, metrics=metrics, leadership=leadership, session=session)
        with answering(operator.vitals, metrics.export, settings.metrics_address, settings.metrics_port):
            await operator.run(stop)
    _log.info("ended")


class Operator:
    """Caches, queue, workers and kopf of one process."""

    def __init__(
        self,
        api: Api,
        *,
        settings: OperatorSettings,
        metrics: OperatorMetrics,
        leadership: Leadership,
        session: aiohttp.ClientSession,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._leadership = leadership
        self._queue: WorkQueue[Key] = WorkQueue(metrics=metrics.queue)
        hooks = Hooks(
            enqueue=self._queue.add,
            room_changed=self._notice_room,
            resynced=self._resync,
            watch_restarted=metrics.watch_restarted,
            check_fence=leadership.check,
        )
        self._cluster = KubeCluster(
            api,
            hooks=hooks,
            instance=settings.identity,
            session=session,
            namespaces=settings.watch_namespaces,
            kueue=settings.kueue,
            provisioning=settings.provisioning,
            event_metrics=metrics.events,
        )
        self._controller = Controller(
            self._cluster,
            settings=settings.controller,
            clock=lambda: datetime.now(UTC),
            hardware=settings.hardware,
            wake=partial(self._queue.add, is_urgent=True),
            metrics=metrics.admission,
        )
        self._kopf = KopfWatch(
            loop=asyncio.get_running_loop(),
            credentials=api.credentials,
            enqueue=self._queue.add,
            on_restart=lambda: metrics.watch_restarted("kopf"),
            namespaces=settings.watch_namespaces,
        )
        self.vitals = Vitals(lambda: look(self._cluster.informers, self._queue, leadership, self._cluster.jobs))

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; raises what should never happen."""
        work = asyncio.create_task(self._work())
        others = (
            self._cluster.run(),
            LoopWatch(self._metrics, on_tick=self.vitals.look).run(),
            garbage.search_hourly(),
            _set(stop),
        )
        tasks = (work, *map(asyncio.create_task, others))
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        _log.info("ending")
        self._kopf.stop()
        self._queue.close()
        await asyncio.wait((work,), timeout=_PASS_END_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._kopf.join(_KOPF_STOP_S)
        for task in done:
            task.result()

    async def _work(self) -> None:
        await self._cluster.wait_synced()
        garbage.pass_over_what_is_held()
        _log.info("caches are filled", jobs=len(self._cluster.jobs()))
        async with asyncio.TaskGroup() as workers:
            workers.create_task(self._admit())
            workers.create_task(self._start_kopf())
            for _ in range(self._settings.workers):
                workers.create_task(work(self._queue, self._controller, self._leadership, self._metrics))

    async def _start_kopf(self) -> None:
        """Have kopf watch once the jobs that stand were passed over: it lists them again, on the same processor."""
        until_s = time.monotonic() + _KOPF_START_S
        while len(self._queue) and time.monotonic() < until_s:  # noqa: ASYNC110  # seldom, and never again
            await asyncio.sleep(_KOPF_LOOK_S)
        self._kopf.start()

    async def _admit(self) -> None:
        """Work through the line of jobs while this process leads."""
        await self._controller.admissions.run(may=self._leadership.wait)

    def _notice_room(self) -> None:
        self._controller.admissions.notice()

    def _resync(self) -> None:
        """Try again what failed: a list may have ended a gap, and need not be waited out by its back-off."""
        self._queue.retry_failed()


async def work(queue: WorkQueue[Key], controller: Reconciler, leadership: Leadership, metrics: OperatorMetrics) -> None:
    """Pass over one key after another while this process leads, until the queue is closed."""
    while (key := await queue.get()) is not None:
        await leadership.wait()
        started = time.monotonic()
        try:
            with metrics.queue.working(), on_behalf_of(key):
                result = await _pass(queue, controller, key)
        finally:
            queue.done(key)
        metrics.reconciled(result, time.monotonic() - started)


async def _pass(queue: WorkQueue[Key], controller: Reconciler, key: Key) -> str:
    try:
        again_s = await controller.reconcile(key)
    except ConflictError as error:
        # Usual: somebody wrote in between. The cache will have it in a moment.
        _log.debug("conflict", job=str(key), error=str(error))
        queue.add_after(key, _CONFLICT_DELAY_S)
        return "requeue"
    except (UnavailableError, NotLeaderError) as error:
        _log.warning("pass failed", job=str(key), error=str(error))
        queue.add_after_failure(key, max_delay_s=_UNAVAILABLE_MAX_DELAY_S)
        return "error"
    except ClusterError as error:
        _log.warning("pass failed", job=str(key), error=str(error))
        queue.add_after_failure(key)
        return "error"
    except Exception:  # noqa: BLE001  # one job that trips the controller must not keep it from all others
        _log.exception("pass failed unforeseen", job=str(key))
        queue.add_after_failure(key)
        return "error"
    queue.forget(key)
    if again_s is None:
        return "success"
    queue.add_after(key, again_s)
    return "requeue_after"


async def _set(event: asyncio.Event) -> None:
    await event.wait()


@contextlib.asynccontextmanager
async def _elected(api: Api, settings: OperatorSettings, metrics: OperatorMetrics) -> AsyncIterator[Leadership]:
    if not settings.leader_election:
        metrics.leading(held=True)
        yield AlwaysLeader()
        return
    elector = Elector(
        api,
        namespace=settings.namespace,
        name=settings.lease_name,
        identity=settings.identity,
        on_change=lambda held: metrics.leading(held=held),
    )
    running = asyncio.create_task(elector.run())
    try:
        yield elector
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await elector.release()


def configure_logs(level: str) -> None:
    """Have every log line, kopf's too, written to standard output as one JSON object."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                # Without locals: they are long, and hold what belongs in no log.
                structlog.processors.ExceptionRenderer(
                    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
                ),
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # kopf tells each of its deaths with a traceback; handlers.py says the same in one line.
    logging.getLogger("kopf").setLevel(logging.DEBUG if level == "debug" else logging.CRITICAL)
