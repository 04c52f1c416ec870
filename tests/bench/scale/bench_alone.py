"""What the operator's own code takes in a line of jobs, beside an API server that is a dictionary (`dictionary.py`).

    python tests/bench/scale/bench_alone.py [--line 100,10000] [--profile FOLDER]

A tenth of the jobs run, on nodes of their own, and the rest wait for those nodes. Seconds are of
the processor, less what the dictionary took, unless they are said to be the clock's. They say
nothing of HTTP, etcd and kopf, which `bench_scale.py` measures. With a folder each part is
profiled, and takes far longer.

    start     the operator starts upon the line, and a new job is decided
    more      one more job, for which there is room
    head      a running job goes, and the first that waits follows
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[2]))

import aiohttp
import orjson

from dictionary import DictionaryApi
from pipelinejob_operator.admission.line.telling import NAMES_THE_HEAD
from pipelinejob_operator.kube.api import Api
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.process import garbage, settings
from pipelinejob_operator.process.handlers import KopfWatch
from pipelinejob_operator.process.leader import AlwaysLeader
from pipelinejob_operator.process.opmetrics import OperatorMetrics
from pipelinejob_operator.process.serve import SWITCH_S, Operator, configure_logs
from pipelinejob_operator.validation.validate import defaulted
from support.api_server.fakenodes import node
from support.api_server.operatorprocess import job

NAMESPACE, NUM_NODES, STAGES = "default", 512, 2
A_NODE = 4  # jobs
_POOL = "bench/pool"
_IN_POOL = {"template": {"spec": {"nodeSelector": {_POOL: "line"}}}}
_PARTS = ("pipelinejobs", "pods", "configmaps", "services")
_FLAGS = "--trainer-image=t --no-leader-election --log-level=error --gang-timeout-seconds=86400 --kubeconfig=none"
_POLL_S, _QUIET_S, _ADDED, _ROUNDS = 0.005, 1.0, 10, 5


class Line:
    """The cluster, and the operator upon it."""

    def __init__(self) -> None:
        self.api = DictionaryApi()
        for number in range(NUM_NODES):
            self.api.put("nodes", node(f"node-{number:03}", gpus=2 * A_NODE))
        self._into_pool(0)

    @asynccontextmanager
    async def operator(self) -> AsyncIterator[None]:
        async with aiohttp.ClientSession() as session:
            operator = Operator(
                cast("Api", self.api),
                settings=settings.read(_FLAGS.split(), {}),
                metrics=OperatorMetrics(),
                leadership=AlwaysLeader(),
                session=session,
            )
            stop = asyncio.Event()
            running = asyncio.create_task(operator.run(stop))
            try:
                yield
            finally:
                stop.set()
                await running

    async def fill(self, num_jobs: int) -> None:
        """Have the operator write some jobs, and copy what it left behind until there are so many."""
        names = [
            *(f"placed-{each}" for each in range(A_NODE)),
            *(f"ahead-{each}" for each in range(NAMES_THE_HEAD + 1)),
        ]
        async with self.operator():
            for name in (*names, "recorded"):
                self.add(name, **_IN_POOL)
                await self.until(lambda name=name: self.placed(name) is not None)
            await self.quiet(2 * ControllerSettings(trainer_image="t").hearing_interval_s)
        num_running = max(A_NODE, num_jobs // 10 // A_NODE * A_NODE)
        for number in range(A_NODE, num_running):
            self._into_pool(number // A_NODE)
            self._copy("placed-0", f"runs-{number:05}", {"node-000": f"node-{number // A_NODE:03}"})
        for number in range(num_jobs - num_running - len(names) + A_NODE - 1):
            self._copy("recorded", f"recorded-{number:05}", {})

    def add(self, name: str, **spec: Any) -> None:
        self.api.put("pipelinejobs", dict(defaulted(job(NAMESPACE, name, stages=STAGES, **spec))))

    def remove(self, name: str) -> None:
        """Take a job away with all that is its own, as garbage collection would."""
        for plural, found in list(self._of(name)):
            self.api.delete(plural, found)

    def placed(self, name: str) -> str | None:
        """The status of the job's condition Placed."""
        conditions = self.api.get("pipelinejobs", (NAMESPACE, name)).get("status", {}).get("conditions", ())
        return next((each["status"] for each in conditions if each["type"] == "Placed"), None)

    def is_let_go(self, name: str) -> bool:
        pods = [self.api.get("pods", (NAMESPACE, f"{name}-r0-s{stage}")) for stage in range(STAGES)]
        return all(pod and "schedulingGates" not in pod["spec"] for pod in pods)

    def first(self) -> str:
        waiting = ((name, orjson.loads(text)) for (_, name), text in self.api.stored["pipelinejobs"].items())
        return min(
            (item["metadata"]["creationTimestamp"], name) for name, item in waiting if self.placed(name) == "False"
        )[1]

    async def until(self, claim: Callable[[], bool]) -> None:
        async with asyncio.timeout(600):
            while not claim():  # the claim is about a dictionary
                await asyncio.sleep(_POLL_S)

    async def quiet(self, quiet_s: float = _QUIET_S) -> None:
        """Wait until nothing was written for a while."""
        known, since = self.api.requests.total(), time.monotonic()
        while time.monotonic() - since < quiet_s:
            await asyncio.sleep(quiet_s / 10)
            if self.api.requests.total() != known:
                known, since = self.api.requests.total(), time.monotonic()

    def _into_pool(self, number: int) -> None:
        item = self.api.get("nodes", ("", f"node-{number:03}"))
        item["metadata"]["labels"][_POOL] = "line"
        self.api.put("nodes", item)

    def _of(self, name: str) -> Iterator[tuple[str, tuple[str, str]]]:
        names = (name, *(f"{name}-r0-s{stage}" for stage in range(STAGES)), f"{name}-plan", name)
        yield from (
            (plural, (NAMESPACE, each)) for plural in _PARTS for each in dict.fromkeys(names) if self._has(plural, each)
        )

    def _has(self, plural: str, name: str) -> bool:
        return (NAMESPACE, name) in self.api.stored[plural]

    def _copy(self, old: str, new: str, instead: dict[str, str]) -> None:
        uid = self.api.get("pipelinejobs", (NAMESPACE, old))["metadata"]["uid"]
        own = f"copied00-0000-4000-8000-{len(self.api.stored['pipelinejobs']):012}"
        for plural, found in list(self._of(old)):
            text = self.api.stored[plural][found].decode()
            for each, other in {old: new, uid: own, **instead}.items():
                text = text.replace(each, other)
            item = orjson.loads(text)
            if plural != "pipelinejobs":
                del item["metadata"]["uid"]
            self.api.put(plural, item)


async def measure(num_jobs: int, profiles: Path | None) -> None:
    line = Line()
    await line.fill(num_jobs)
    line.add("new")
    print(f"\n{len(line.api.stored['pipelinejobs'])} jobs", flush=True)

    async def part(name: str, work: Callable[[], Awaitable[list[float]]]) -> None:
        before, began_s, own_s = Counter(line.api.requests), time.process_time(), line.api.processor_s
        profile = cProfile.Profile(time.thread_time) if profiles else None
        with profile or mock.MagicMock():
            clock_s = await work()
        took_s = time.process_time() - began_s - (line.api.processor_s - own_s)
        if profile and profiles:
            profile.dump_stats(profiles / f"{name}-{num_jobs}.prof")
        statuses = (line.api.requests - before)["PUT pipelinejobs/status"]
        clock = " ".join(f"{each:.2f}" for each in clock_s)
        print(f"  {name:6} {took_s / len(clock_s):8.3f} s each, {statuses} statuses; by the clock {clock}", flush=True)

    async def start() -> list[float]:
        return [await _timed(line.until(lambda: line.placed("new") is not None))]

    async def more() -> list[float]:
        return [await _one_more(line, f"more-{each}") for each in range(_ADDED)]

    async def head() -> list[float]:
        return [
            await _next_head(line, f"placed-{each}" if each < A_NODE else f"runs-{each:05}") for each in range(_ROUNDS)
        ]

    async with line.operator():
        await part("start", start)
        await line.quiet()
        await part("more", more)
        await part("head", head)


async def _one_more(line: Line, name: str) -> float:
    line.add(name)
    return await _timed(line.until(lambda: line.is_let_go(name)))


async def _next_head(line: Line, leaving: str) -> float:
    first = line.first()
    line.remove(leaving)
    return await _timed(line.until(lambda: line.placed(first) == "True"))


async def _timed(work: Awaitable[None]) -> float:
    began_s = time.monotonic()
    await work
    return time.monotonic() - began_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--line", default="100,10000", help="numbers of jobs, joined by commas")
    parser.add_argument("--profile", type=Path, help="an existing folder for profiles")
    given = parser.parse_args()
    garbage.search_seldom()
    sys.setswitchinterval(SWITCH_S)
    configure_logs("error")
    with mock.patch.object(KopfWatch, "start"):  # it has no server to watch
        for number in given.line.split(","):
            asyncio.run(measure(int(number), given.profile))


if __name__ == "__main__":
    main()
