"""Replicas of a service as real processes behind one address: exchanged, and no request of a steady stream is lost."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from pipelinejob.base import names
from pipelinejob.contract.trained import Trained
from pipelinejob.siting.door import plan_job
from pipelinejob.siting.request import Request as PlanRequest
from pipelinejob.spec.job import Data, Model, Training
from pipelinejob_operator.cli.given.manifests import given_job
from pipelinejob_operator.local.node.machine import read_machine
from pipelinejob_operator.local.run import LocalRun
from pipelinejob_operator.local.runfolder import RunFolder
from pipelinejob_operator.local.tools import counted_profile
from pipelinejob_trainer.models.part import Part
from pipelinejob_trainer.sample import Request, generate
from support.local.processes import HANG_S, free_ports
from support.serving.serving_clients import Heard, ask
from support.training.saved_models import moved, saved, whole

pytestmark = pytest.mark.xdist_group("processor-heavy")
GPT = {"gpt": {"numLayers": 2, "hiddenSize": 16, "numHeads": 2}}
LENGTH, NEW, PROMPT = 64, 24, "def f("


class Silent:
    """A display for nobody."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def note(self, text: str) -> None: ...

    def event(self, event: Any) -> None:
        self.events.append(event.reason)

    def update(self, view: Any) -> None: ...


def answer(part: Part) -> str:
    return generate(part, Request(prompt=PROMPT, tokens=NEW, seed=0, temperature=0), context=LENGTH)


def manifest(port: int) -> dict[str, Any]:
    serving = {"fromCheckpoint": True, "cacheTokens": 1024, "chunkTokens": 16, "port": port}
    spec = {
        "mode": "Serve",
        "model": GPT,
        "parallelism": {"pipeline": 2, "data": 1},
        "device": "cpu",
        "serving": serving,
    }
    return {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "tiny"}, "spec": spec}


class Service:
    """A job that serves on this machine, and clients that ask all the time."""

    def __init__(self, folder: Path) -> None:
        (self._port,) = free_ports(1)
        self._job = given_job(manifest(self._port))
        run = RunFolder(folder / "run", folder / "saved")
        run.create()
        self.display, self._machine = Silent(), read_machine()
        self._run = LocalRun(self._job.stored, run, self._machine, self.display)
        self.heard: list[Heard] = []

    async def __aenter__(self) -> Self:
        costs = counted_profile(self._job.spec, self._machine)
        plan = plan_job(PlanRequest(namespace="default", name="tiny", spec=self._job.spec, measured=costs)).plan
        self._running = asyncio.create_task(self._run.run(plan, costs))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._run._interrupt()
        await asyncio.wait_for(self._running, HANG_S)

    async def ask(self) -> Heard:
        body = {"model": "tiny", "prompt": PROMPT, "max_tokens": NEW, "temperature": 0}
        return await ask(f"http://127.0.0.1:{self._port}", body)

    async def asking(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            self.heard.append(await self.ask())

    async def change(self, **spec: Any) -> None:
        key = self._run._key
        job = self._run._cluster.job(key)
        await self._run._cluster.apply({**job, "spec": {**job["spec"], **spec}})

    def chains(self) -> set[str]:
        return {each["metadata"]["name"] for each in self._run._cluster.chains(self._run._key)}

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(HANG_S):
            while not condition():
                assert not self._running.done(), self._running.result()
                await asyncio.sleep(0.05)


def test_weights_are_exchanged_under_steady_requests_and_each_is_answered(tmp_path: Path) -> None:
    trained = Trained(
        model=Model.model_validate(GPT),
        data=Data(paths=("unused",), sequence_length=LENGTH),
        training=Training(steps=1, seed=3),
    )
    part = moved(whole(trained))
    saved(tmp_path / "saved", part, 2)
    old = answer(part)

    async def exchanged() -> tuple[list[Heard], Heard]:
        async with Service(tmp_path) as service:
            await service.until(lambda: "ChainsReady" in service.display.events)
            stop = asyncio.Event()
            clients = [asyncio.create_task(service.asking(stop)) for _ in range(3)]
            await service.until(lambda: len(service.heard) >= 3)
            saved(tmp_path / "saved", moved(moved(part)), 2, step=8)
            await service.change(template={"metadata": {"annotations": {"weights": "step 8"}}})
            await service.until(lambda: service.chains() == {"tiny-1"})
            reached = len(service.heard)
            await service.until(lambda: len(service.heard) >= reached + 6)
            stop.set()
            await asyncio.gather(*clients)
            return service.heard, await service.ask()

    heard, last = asyncio.run(exchanged())

    new = answer(part)
    assert new != old
    assert [each for each in heard if not each.is_whole] == []
    assert {each.text for each in heard} == {old, new}
    assert last.text == new
