"""A real API server with 512 nodes that are only objects, the real operator, and who watches and probes them.

No kubelet runs and no scheduler: a pod that is let go stays as it is, so nothing but the operator
and the API server works. The operator is told to be patient with gangs that do not come up.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import toolchain
from board import JOBS, NAMESPACE, PODS, Board
from pipelinejob_operator.kube.api import Api, load_configuration
from probe import Probe
from support.api_server.apiserver import ApiServer
from support.api_server.fakenodes import add_nodes, node
from support.api_server.operatorprocess import OperatorProcess, job
from support.local.processes import wait_until
from usage import Usage, using

NUM_NODES, GPUS_A_NODE = 512, 8
STAGES = 2  # of the many small jobs, a GPU each
PATIENCE_S = 600.0  # nothing is waited for longer
ROOM = NUM_NODES * GPUS_A_NODE // STAGES  # jobs
_CRDS = Path(__file__).parents[3] / "crds"
_PATIENT = ("--gang-timeout-seconds=86400", "--start-timeout-seconds=86400")
_CREATING = 16  # requests at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One cluster; `board` is kept true by watches."""

    server: ApiServer
    api: Api
    board: Board

    @property
    def folder(self) -> Path:
        return self.server.folder

    @property
    def server_pids(self) -> tuple[int, ...]:
        return tuple(process.pid for process in (self.server._server, self.server._etcd))

    async def create(self, jobs: Iterable[dict[str, Any]]) -> None:
        """Create jobs as fast as the API server takes them."""
        await each(jobs, lambda item: self.api.request("POST", JOBS, body=item), at_once=_CREATING)

    async def delete_job(self, name: str) -> None:
        """Delete a job and its pods, as garbage collection and kubelets would."""
        pods = list(self.board.jobs[name].pods)
        await self.api.request("DELETE", f"{JOBS}/{name}")
        await self.delete_pods(pods)

    async def delete_pods(self, names: Iterable[str]) -> None:
        """Delete pods without a grace period."""
        body = {"gracePeriodSeconds": 0}
        await each(names, lambda name: self.api.request("DELETE", f"{PODS}/{name}", body=body), at_once=_CREATING)


@asynccontextmanager
async def world(*, is_watched: bool = True) -> AsyncIterator[World]:
    """Run an empty cluster for the block; its operator is started apart."""
    toolchain.provide(toolchain.APISERVER_TIER)
    with tempfile.TemporaryDirectory() as folder, ApiServer(Path(folder) / "api") as server:
        server.kubectl("apply", "--server-side", "-f", _CRDS)
        established = ("wait", "--for=condition=Established", "--timeout=30s", "-f", _CRDS)
        wait_until(lambda: server.kubectl(*established), "the API server knows the jobs' kind")
        add_nodes(server, [node(node_name(number), gpus=GPUS_A_NODE) for number in range(NUM_NODES)])
        async with Api(await load_configuration(server.kubeconfig, None)) as api:
            board = Board(api)
            async with board.following() if is_watched else nullcontext():
                yield World(server=server, api=api, board=board)


@dataclass(slots=True)
class Measured:
    """What the machine did during a block, and how the operator answered; complete once the block has ended."""

    probe: Probe
    since: float
    operator: Usage
    server: Usage  # of the API server and etcd
    complaints: int  # lines of its log that warn
    until: float = 0.0
    bench_s: float = 0.0  # processor seconds of this program

    async def figures(self) -> dict[str, float]:
        answers = await self.probe.answers(self.since, self.until)
        return {
            "operator_s": self.operator.processor_s,
            "operator_cores": self.operator.cores,
            "operator_mib": self.operator.resident_mib,
            "server_s": self.server.processor_s,
            "bench_s": self.bench_s,
            "complaints": self.complaints,
            **answers.figures,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """The operator's process, and its probe."""

    here: World
    process: OperatorProcess
    probe: Probe

    @property
    def pid(self) -> int:
        return self.process.process.pid

    async def metric(self, family: str) -> float:
        """Return the sum of a metric's series, however long the operator takes to answer."""
        while True:
            try:
                return await asyncio.to_thread(self.process.metric, family) or 0.0
            except TimeoutError:
                continue

    @contextmanager
    def measured(self) -> Iterator[Measured]:
        """Measure what operator, API server and this program take during the block, and how the operator answers."""
        with using(self.pid) as own, using(*self.here.server_pids) as server:
            measured = Measured(
                self.probe, time.monotonic(), own, server, complaints=-self._complaints(), bench_s=-time.process_time()
            )
            yield measured
            measured.until = time.monotonic()
            measured.bench_s += time.process_time()
            measured.complaints += self._complaints()

    def _complaints(self) -> int:
        log = self.process.process.log.read_text()
        return sum(log.count(f'"level": "{level}"') for level in ("warning", "error"))


@asynccontextmanager
async def operator(
    here: World, *flags: str, kubeconfig: object = None, name: str = "operator"
) -> AsyncIterator[Operator]:
    """Run the operator for the block, leading, with a probe beside it."""
    process = OperatorProcess(kubeconfig or here.server.kubeconfig, here.folder, *_PATIENT, *flags, name=name)
    try:
        await asyncio.to_thread(process.start)
        await asyncio.to_thread(
            wait_until, lambda: process.metric("leader_election_master_status") == 1, "the operator leads"
        )
        with Probe(process.port, here.folder) as probe:
            yield Operator(here=here, process=process, probe=probe)
    finally:
        await asyncio.to_thread(process.stop)


def node_name(number: int) -> str:
    return f"node-{number:03}"


def small_job(name: str, **spec: Any) -> dict[str, Any]:
    """Make a job of two stages."""
    return job(NAMESPACE, name, stages=STAGES, **spec)


async def each(items: Iterable[Any], do: Callable[[Any], Awaitable[object]], *, at_once: int) -> None:
    """Do the same to all items, so many at a time, in their order."""
    waiting = iter(items)

    async def work() -> None:
        for item in waiting:
            await do(item)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(work())
