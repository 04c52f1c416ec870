"""A controller that dies after any single write, or never hears whether one was done, ends where it would have."""

import copy
import json

import pytest

from pipelinejob_operator.cluster import ClusterError, ConflictError, UnavailableError
from support.clusters.fakecluster import phase
from support.clusters.operatorworld import World, check
from support.manifests.jobs import job, nodes, priority_class


class KilledError(Exception):
    """The controller's process is no more."""


def create(world, key):
    world.settle()


def run(world, key):
    world.train()
    for pod in world.cluster.all_pods():
        world.cluster.set_pod(pod, phase="Succeeded", code=0)
    world.settle()


def stage_crash(world, key):
    world.train()
    world.cluster.set_pod(world.cluster.pod("gpt-r0-s1"), phase="Failed", code=1, message="boom")
    come_back(world)


def node_loss(world, key):
    world.train()
    gone = world.cluster.pod("gpt-r0-s1")["spec"]["nodeName"]
    world.cluster.objects.pop(("Node", "", gone))
    world.cluster.objects.pop(("Pod", "default", "gpt-r0-s1"))
    come_back(world)


def suspend(world, key):
    world.train()
    world.cluster.edit(key, suspend=True)
    world.settle()
    world.cluster.finish_deletions()
    world.settle()


def resume(world, key):
    suspend(world, key)
    world.cluster.edit(key, suspend=False)
    come_back(world)


def preempt(world, key):
    world.train()
    world.cluster._put(priority_class("high", 100))
    urgent = world.submit(job("urgent", scheduling={"priorityClassName": "high"}))
    come_back(world)
    assert [world.status(each)["state"] for each in (key, urgent)] == ["Waiting", "Training"]


def choose_a_shape(world, key):
    shape = world.submit(job("open", parallelism={"gpus": 1}, schedule={"globalBatchSize": 4}))
    come_back(world)
    assert world.status(shape)["chosen"]["microBatches"] >= 1


def delete(world, key):
    world.train()
    world.cluster.remove(world.cluster.job(key))
    world.settle(key)
    world.cluster.finish_deletions()


def come_back(world):
    world.settle()
    world.cluster.finish_deletions()
    world.train()


LIVES = [create, run, stage_crash, node_loss, suspend, resume, preempt, choose_a_shape, delete]


class Mortal(World):
    """A world whose controller is killed right after its n-th write, and started again."""

    def __init__(self, death):
        super().__init__(nodes(3))
        self.death, self.done, self.is_dead = death, 0, False
        self.cluster.lose_answer = self._count
        self.cluster.refuse = lambda verb, item: KilledError() if self.is_dead else None

    def reconcile(self, key):
        try:
            super().reconcile(key)
        except KilledError:
            check(self)
            self.is_dead = False
            self.restart()

    def _count(self, verb, item):
        self.done += 1
        self.is_dead = self.done == self.death
        return KilledError() if self.is_dead else None


def outcome(world):
    """Return all objects, without what tells one writing of the same from another."""
    found = {}
    for name, item in world.cluster.objects.items():
        kept = copy.deepcopy(dict(item))
        for field in ("uid", "resourceVersion"):
            kept["metadata"].pop(field)
        found[str(name)] = kept
    return json.dumps(found, sort_keys=True, indent=1)


def live(life, world):
    key = world.submit(job())
    life(world, key)
    return outcome(world)


@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.__name__)
def test_a_controller_killed_after_any_write_ends_where_an_undisturbed_one_does(life):
    undisturbed = Mortal(death=None)
    expected = live(life, undisturbed)
    assert undisturbed.done >= 5

    for death in range(1, undisturbed.done + 1):
        assert live(life, Mortal(death=death)) == expected, f"killed after write {death}"


@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.__name__)
@pytest.mark.parametrize("kind", [ConflictError, UnavailableError])
def test_every_write_that_is_refused_at_first_is_done_at_last(life, kind):
    expected = live(life, World(nodes(3)))
    world = World(nodes(3))
    refused = set()

    def refuse_once(verb, item):
        attempt = (verb, str(item))
        is_first = attempt not in refused
        refused.add(attempt)
        return kind("not now") if is_first else None

    world.cluster.refuse = refuse_once

    assert live(life, world) == expected


@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.__name__)
def test_writes_that_are_done_but_whose_answers_are_all_lost_lead_to_the_same_end(life):
    expected = live(life, World(nodes(3)))
    world = World(nodes(3))
    world.cluster.lose_answer = lambda verb, item: ClusterError("connection reset by peer")

    assert live(life, world) == expected
    assert all(phase(pod) != "Pending" or life is create for pod in world.cluster.all_pods())
