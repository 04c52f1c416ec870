"""What a job costs the API server, from its creation until its gang is let go: these requests, and no other."""

import asyncio

from pipelinejob_operator.controller.reconcile import Controller
from support.clusters.operatorworld import SETTINGS, World
from support.manifests.jobs import job, node

STATUS, MADE, GO = "status PipelineJob", "apply", "change Pod"


class Woken(World):
    """A world whose controller has passes made by being woken, as the operator's process does."""

    def __init__(self, nodes):
        super().__init__(nodes)
        self.woken = []
        self.controller = Controller(
            self.cache, settings=SETTINGS, clock=lambda: self.cluster.now, wake=self.woken.append
        )

    async def work(self, *keys, passes):
        for _ in range(passes):
            for key in keys:
                await self.controller.reconcile(key)
            await self.controller.admissions.cycle()

    def written(self):
        return [f"{verb} {item['kind']}" for verb, item in self.cluster.writes]


def test_a_job_that_fits_is_written_as_often_as_it_must_be():
    world = Woken([node("n0", gpus=8)])
    key = world.submit(job())

    asyncio.run(world.work(key, passes=6))

    made = [f"{MADE} {kind}" for kind in ("ConfigMap", "Service", "Pod", "Pod")]
    assert world.written() == [STATUS, *made, STATUS, GO, GO]
    assert world.told() == ["Placed"]


def test_a_job_that_waits_is_written_once_and_one_that_nobody_decided_about_not_at_all():
    world = Woken([node("n0", gpus=1)])
    key = world.submit(job())

    asyncio.run(world.controller.reconcile(key))
    assert world.written() == []

    asyncio.run(world.work(key, passes=6))
    assert world.written() == [STATUS]
    assert world.status(key)["state"] == "Waiting"
