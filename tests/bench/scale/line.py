"""A long line: a tenth of the jobs run, on nodes of their own, and the rest wait for those nodes, behind one another.

The crowd is there within seconds, written as the operator writes it (`recording`), and the
operator is started upon it. Most nodes stay free for jobs that do not ask for the pool on which
the others run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from statistics import median
from typing import Self

from bare import record
from board import JOBS, Seen
from pipelinejob_operator.admission.line.telling import NAMES_THE_HEAD
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from probe import percentile
from recording import Recording, writer
from usage import resident_mib
from world import GPUS_A_NODE, PATIENCE_S, STAGES, Operator, World, each, node_name, operator, small_job, world

ROUNDS = 50  # in which the head of the line is watched
_ADDED = 10  # jobs of which one more is the median
_POOL = "bench/pool"
_IN_POOL = {"template": {"spec": {"nodeSelector": {_POOL: "line"}}}}
_A_NODE = GPUS_A_NODE // STAGES  # jobs
_SHARE_RUNNING = 0.1
_AT_ONCE = 32
_IDLE_S, _IDLE_CORES = 2.0, 0.2
_SETTLING_S = 120.0
_RUNNING, _WAITING, _MORE = "line-runs", "line-waits", "one-more"
_AHEAD, _RECORDED_WAITS = "ahead", "recorded-waits"  # wait, and are older than most that run


class Line:
    """The cluster, and what one running and one waiting job of the line are made of."""

    def __init__(self, here: World, running: Recording, waiting: Recording) -> None:
        self.here = here
        self._running, self._waiting = running, waiting
        self._num_running = self._num_waiting = self._num_more = 0

    @classmethod
    async def begin(cls, here: World) -> Self:
        """Fill one node by the operator's own hand, and let jobs wait until one stands far back.

        What is recorded is what the operator leaves behind for good: the sentence of a job far
        back, and that of one whose pods nobody binds, which is written when the operator has asked
        what their events say.
        """
        await cls._add_nodes(here, 0, 1)
        fillers = [f"filler-{number}" for number in range(_A_NODE - 1)]
        ahead = [f"{_AHEAD}-{number}" for number in range(NAMES_THE_HEAD + 1)]  # sorts before the job that is recorded
        names = ["recorded-placed", *fillers, *ahead, _RECORDED_WAITS]
        jobs = [small_job(name, **_IN_POOL) for name in names]
        heard_s = ControllerSettings(trainer_image="").hearing_interval_s
        running, *_, waiting = await record(here, *jobs, quiet_s=2 * heard_s)
        return cls(here, running, waiting)

    async def grow(self, num_jobs: int) -> None:
        """Have so many jobs in the cluster; the operator must not run."""
        num_running = max(_A_NODE, int(num_jobs * _SHARE_RUNNING) // _A_NODE * _A_NODE)
        nodes = range(1 + self._num_running // _A_NODE, 1 + num_running // _A_NODE)
        await self._add_nodes(self.here, nodes.start, nodes.stop)
        work = [
            (self._running, f"{_RUNNING}-{number:05}", node_name(1 + number // _A_NODE))
            for number in range(self._num_running, num_running)
        ]
        num_waiting = num_jobs - num_running
        work += [(self._waiting, f"{_WAITING}-{number:05}", "") for number in range(self._num_waiting, num_waiting)]
        async with writer(self.here.server) as bare:
            await each(work, lambda one: bare.repeat(one[0], one[1], node=one[2]), at_once=_AT_ONCE)
        self._num_running, self._num_waiting = num_running, num_waiting
        await self.here.board.until(lambda: len(self._jobs) >= num_jobs, "the board has all jobs", timeout_s=PATIENCE_S)

    @property
    def running(self) -> dict[str, Seen]:
        """Those that are let go."""
        return {name: seen for name, seen in self._jobs.items() if seen.let_go}

    @property
    def pods(self) -> Iterator[tuple[str, str]]:
        """The pods that are let go, by name and uid."""
        return (pod for seen in self.here.board.jobs.values() for pod in seen.pods.items())

    @property
    def first(self) -> str:
        """The name of the job whose turn it is."""
        return min((seen.created, name) for name, seen in self._jobs.items() if seen.placed is None)[1]

    @property
    def _jobs(self) -> dict[str, Seen]:
        """The jobs of the line, by name: those that run, and those that wait."""
        jobs = self.here.board.jobs
        return {name: seen for name, seen in jobs.items() if seen.created and not name.startswith(_MORE)}

    async def add_one(self) -> tuple[str, float]:
        """Create a job for which there is room; return its name, and the moment of its creation."""
        self._num_more += 1
        name = f"{_MORE}-{self._num_more:03}"
        begun = time.monotonic()
        await self.here.api.request("POST", JOBS, body=small_job(name))
        return name, begun

    async def one_more(self) -> float:
        """Return the seconds until one more job, for which there is room, is let go."""
        name, begun = await self.add_one()
        seen = self.here.board.jobs[name]
        await self.here.board.until(lambda: seen.let_go, f"{name} is let go", timeout_s=PATIENCE_S)
        return (seen.let_go or 0.0) - begun

    async def without_added(self) -> None:
        """Take the jobs away that were added: the next ones of the line are put where these stand."""
        await self._without(_MORE)

    async def without_older(self) -> None:
        """Take the jobs away that wait and are older than those that run, so that who loses its room gets it back."""
        await self._without(_AHEAD, _RECORDED_WAITS)

    async def _without(self, *prefixes: str) -> None:
        names = [name for name in self.here.board.jobs if name.startswith(prefixes)]
        await each(names, self.here.delete_job, at_once=_AT_ONCE)

    @staticmethod
    async def _add_nodes(here: World, start: int, stop: int) -> None:
        body = {"metadata": {"labels": {_POOL: "line"}}}
        for number in range(start, stop):
            path = f"/api/v1/nodes/{node_name(number)}"
            await here.api.request("PATCH", path, body=body, content_type="application/merge-patch+json")


@asynccontextmanager
async def line() -> AsyncIterator[Line]:
    """Run a cluster for the block in which nothing runs but what a line begins with."""
    async with world() as here:
        yield await Line.begin(here)


async def one_more(line: Line, running: Operator) -> dict[str, float]:
    """Add jobs one after another, and return what each costs: beyond what the operator takes anyway."""
    await _idle(running)
    with running.measured() as resting:
        await asyncio.sleep(_IDLE_S)
    with running.measured() as adding:
        seconds = [await line.one_more() for _ in range(_ADDED)]
        await asyncio.sleep(_IDLE_S)
    extra_s = adding.operator.processor_s - resting.operator.cores * adding.operator.wall_s
    return {
        "jobs": len(line.here.board.jobs), "let_go_median_s": median(seconds), "let_go_max_s": max(seconds),
        "operator_s_a_job": extra_s / _ADDED, "cores_before": resting.operator.cores, **await adding.figures(),
    }  # fmt: skip


async def restart(line: Line) -> dict[str, float]:
    """Start the operator upon the whole crowd and one new job; return how long until it decides that one."""
    name, _ = await line.add_one()
    begun = time.monotonic()
    async with operator(line.here) as running:
        seen = line.here.board.jobs[name]
        await line.here.board.until(lambda: seen.decided, f"{name} is decided", timeout_s=PATIENCE_S)
        decided_s = (seen.decided or 0.0) - begun
        settled_s = await _idle(running) - begun
        memory_mib = resident_mib(running.pid)
        requests = await running.metric("rest_client_requests_total")
    return {
        "jobs": len(line.here.board.jobs), "first_decision_s": decided_s, "settled_s": settled_s,
        "operator_mib": memory_mib, "requests": requests,
    }  # fmt: skip


async def head(line: Line, running: Operator, rounds: int = ROUNDS) -> dict[str, float]:
    """Take a running job away, again and again; return how long until the first in line has its room."""
    await _idle(running)
    placed_s, let_go_s, num_out_of_turn = [], [], 0
    num_waiting = sum(seen.placed is None for seen in line.here.board.jobs.values())
    with running.measured() as measured:
        for leaving in list(line.running)[:rounds]:
            first = line.first
            known = set(line.running)
            await line.here.delete_job(leaving)
            begun = time.monotonic()
            await line.here.board.until(
                lambda known=known: line.running.keys() - known, "one follows", timeout_s=PATIENCE_S
            )
            (follower, *_) = line.running.keys() - known
            seen = line.here.board.jobs[follower]
            num_out_of_turn += follower != first
            placed_s.append((seen.placed or 0.0) - begun)
            let_go_s.append((seen.let_go or 0.0) - begun)
    return {
        "waiting": num_waiting, "rounds": len(placed_s), "placed_p50_s": percentile(placed_s, 0.5),
        "placed_p99_s": percentile(placed_s, 0.99), "let_go_p99_s": percentile(let_go_s, 0.99),
        "out_of_turn": num_out_of_turn, "operator_s_a_round": measured.operator.processor_s / len(placed_s),
        **await measured.figures(),
    }  # fmt: skip


async def _idle(running: Operator) -> float:
    """Wait until the operator is at rest, or long enough; return the moment since when it is."""
    deadline = time.monotonic() + _SETTLING_S
    while True:
        since = time.monotonic()
        with running.measured() as measured:
            await asyncio.sleep(_IDLE_S)
        is_idle = measured.operator.cores < _IDLE_CORES and not await running.metric("workqueue_depth")
        if is_idle or time.monotonic() > deadline:
            return since
