"""The room that is kept by what changes equals one that is made anew, over a real API server's watches."""

from __future__ import annotations

import asyncio
import contextlib
import random
from datetime import UTC, datetime
from fractions import Fraction

import aiohttp

from pipelinejob_operator.admission.capacity import free_room
from pipelinejob_operator.admission.pods.admitted import AdmittedPods
from pipelinejob_operator.admission.room import Room
from pipelinejob_operator.controller.reconcile import ControllerSettings
from pipelinejob_operator.kube.api import Api, load_configuration
from pipelinejob_operator.kube.caching.reactions import Hooks
from pipelinejob_operator.kube.cluster import KubeCluster
from pipelinejob_operator.objects.job import read_job
from support.api_server.apiserver import ApiServer
from support.api_server.fakenodes import add_nodes, node
from support.api_server.operatorprocess import job

SETTINGS = ControllerSettings(trainer_image="trainer:1")


def made(cluster: KubeCluster) -> Room:
    return Room(
        cluster,
        admitted=AdmittedPods(SETTINGS),
        settings=SETTINGS,
        read=read_job,
        clock=lambda: datetime.now(UTC),
    )


def pod(namespace: str, name: str, on: str | None, *, gpus: int) -> dict:
    resources = {"limits": {"nvidia.com/gpu": str(gpus)}}
    restricted = {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {"name": "main", "image": "example.org/main", "resources": resources, "securityContext": restricted}
    placed = {"nodeName": on} if on else {"schedulingGates": [{"name": "example.org/held"}]}
    spec = {"containers": [container], "automountServiceAccountToken": False, **placed}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace, "name": name}, "spec": spec}


class Crowd:
    """Does one thing after another to nodes, pods and jobs, by chance."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self.server, self.namespace, self.dice = server, namespace, random.Random(1)
        self.nodes = [f"room{index}-{namespace[-6:]}" for index in range(4)]
        self.here: set[str] = set()
        self.pods: list[str] = []
        self.count = 0

    def act(self) -> None:
        self.count += 1
        self.dice.choice((self._node, self._pod, self._pod, self._no_pod, self._job, self._cordon))()

    def _node(self) -> None:
        name = self.dice.choice(self.nodes)
        if name in self.here:
            self.here.discard(name)
            self.server.kubectl("delete", "node", name)
        else:
            self.here.add(name)
            add_nodes(self.server, [node(name, gpus=4)])

    def _pod(self) -> None:
        name, on = f"pod-{self.count}", self.dice.choice([*sorted(self.here), None])
        self.pods.append(name)
        self.server.apply(pod(self.namespace, name, on, gpus=self.dice.randint(1, 2)))

    def _no_pod(self) -> None:
        if self.pods:
            name = self.pods.pop(self.dice.randrange(len(self.pods)))
            self.server.kubectl("delete", "pod", "-n", self.namespace, name, "--force", "--ignore-not-found")

    def _job(self) -> None:
        self.server.apply(job(self.namespace, f"job-{self.count}", stages=2))

    def _cordon(self) -> None:
        if self.here:
            verb = self.dice.choice(("cordon", "uncordon"))
            self.server.kubectl(verb, self.dice.choice(sorted(self.here)))


def test_a_room_kept_by_changes_equals_one_made_anew(api_server: ApiServer, namespace: str) -> None:
    crowd = Crowd(api_server, namespace)
    try:
        asyncio.run(watched(api_server, crowd))
    finally:
        api_server.kubectl("delete", "node", "--ignore-not-found", *crowd.nodes)


async def watched(server: ApiServer, crowd: Crowd) -> None:
    hooks = Hooks(
        enqueue=lambda _: None,
        room_changed=lambda: None,
        resynced=lambda: None,
        watch_restarted=print,
        check_fence=lambda: None,
    )
    configuration = await load_configuration(server.kubeconfig, None)
    async with Api(configuration) as api, aiohttp.ClientSession() as session:
        cluster = KubeCluster(api, hooks=hooks, instance="test", session=session)
        kept = made(cluster)
        watching = asyncio.create_task(cluster.run())
        await cluster.wait_synced()
        for _ in range(40):
            await asyncio.to_thread(crowd.act)
            kept.refresh()
            assert kept.state() == made_now(cluster)
        await until_seen(cluster, server)
        kept.refresh()
        assert kept.state() == made_now(cluster)
        free = free_room(cluster.nodes(), cluster.all_pods(), ())
        assert {name: amounts["nvidia.com/gpu"] for name, amounts in kept.free.items() if name in crowd.here} == {
            name: Fraction(amounts["nvidia.com/gpu"]) for name, amounts in free.items() if name in crowd.here
        }
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
    # Connections under TLS end after their session does: no other test is to find them left over.
    selector = asyncio.get_running_loop()._selector
    while len(selector.get_map()) > 1:  # the loop's own is one
        await asyncio.sleep(0.01)


def made_now(cluster: KubeCluster) -> dict[str, object]:
    anew = made(cluster)
    anew.refresh()
    return anew.state()


async def until_seen(cluster: KubeCluster, server: ApiServer) -> None:
    """Wait until the caches show the nodes that there are."""
    while {each["metadata"]["name"] for each in cluster.nodes()} != {
        each["metadata"]["name"] for each in (await asyncio.to_thread(server.get, "nodes"))["items"]
    }:
        await asyncio.sleep(0.05)
