"""An operator that dies right before or right after any write while a gang recovers: all end as undisturbed ones do."""

from contextlib import suppress

import pytest

from pipelinejob_operator.cluster import ClusterError, UnavailableError
from support.clusters.operatorworld import Mortal, World
from support.clusters.recoveringworld import (
    IN_PLACE,
    all_wait,
    assert_no_number_is_told_twice,
    changed,
    come_back,
    fail,
    hand_over,
    incarnations,
    lose_node,
    says,
    spread,
    stick,
    uids,
    where,
)
from support.manifests.jobs import nodes


def killed(world):
    fail(world, 1, 137)


def handed_over(world):
    hand_over(world, 1, step=7)


def node_lost(world):
    lose_node(world, where(world)["s1"], is_gone=True)
    _miss(world)


def stuck(world):
    """Lose a stage; the image of its replacement cannot be pulled on the first node."""
    fail(world, 1, 137)
    world.settle()
    world.cluster.finish_deletions()
    world.settle()
    world.cluster.bind()
    stick(world, 1, "ImagePullBackOff", "no such host")
    world.settle()
    world.cluster.pass_time(61)


def without_room(world):
    """Lose a node where no other has room, until one comes."""
    for name in sorted({f"n{number}" for number in range(4)} - set(where(world).values())):
        world.cluster.objects.pop(("Node", "", name))
    node_lost(world)
    world.settle()
    world.cluster.pass_time(5)
    world.cluster._put(nodes(9)[-1])


def _miss(world):
    world.cluster.answers.pop("gpt-r0-s1")
    for stage in (0, 2):
        says(world, stage, step=7, heard=1, lost=[1])


STORIES = [killed, handed_over, node_lost, stuck, without_room]


def live(story, *, verb=None, deadly=0):
    """Play a story; the controller dies at its n-th write. Return the world, what was before, and how many writes."""
    world, key = spread(4, recovery=IN_PLACE["recovery"] | {"noRoom": "Wait", "waitSeconds": 600})
    before = uids(world)
    mortal = Mortal.__new__(Mortal)
    mortal.__dict__ = world.__dict__
    mortal.deadly = deadly
    setattr(world.cluster, verb or "refuse", mortal.judge)
    story(mortal)
    for _ in range(3):
        come_back(mortal)
    all_wait(world, heard=1)
    mortal.settle()
    return world, key, before, deadly - mortal.deadly


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
@pytest.mark.parametrize("verb", ["refuse", "lose_answer"])
def test_an_operator_that_dies_at_any_write_ends_with_the_same_gang(story, verb, capsys):
    *_, positions = live(story)
    assert positions >= 5

    for deadly in range(1, positions + 1):
        world, key, before, _ = live(story, verb=verb, deadly=deadly)

        assert changed(world, before) == {"s1"}, f"killed at write {deadly}"
        assert world.status(key)["attempt"] == 1, f"killed at write {deadly}"
        assert_no_number_is_told_twice(world)
        last = max(number for _, number, _ in incarnations(world))
        assert world.status(key)["recovery"]["incarnation"] == last >= 2

    with capsys.disabled():
        print(f"\n{story.__name__}: killed at each of {positions} writes ({verb}), no breach of an invariant")


class Rivals(World):
    """Two controllers over one cluster, each with a cache of its own that shows what was before the other's pass."""

    def reconcile(self, key):
        mine = self.controller
        self.cache.freeze()
        try:
            super().reconcile(key)
            self.restart()
            super().reconcile(key)
        finally:
            self.controller = mine
            self.cache.thaw()


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_two_operators_at_once_end_with_the_gang_that_one_brings_together(story):
    world, key = spread(4, recovery=IN_PLACE["recovery"] | {"noRoom": "Wait", "waitSeconds": 600})
    before = uids(world)
    rivals = Rivals.__new__(Rivals)
    rivals.__dict__ = world.__dict__
    story(rivals)
    for _ in range(3):
        come_back(rivals)
    all_wait(world, heard=1)
    rivals.settle()

    assert changed(world, before) == {"s1"}
    assert world.status(key)["attempt"] == 1
    assert_no_number_is_told_twice(world)


@pytest.mark.parametrize("story", [killed, handed_over, node_lost], ids=lambda story: story.__name__)
def test_stages_that_die_while_the_api_server_is_away_for_five_minutes_are_replaced_once_it_is_back(story):
    world, key = spread(4, recovery=IN_PLACE["recovery"] | {"waitSeconds": 600})
    before = uids(world)
    world.cluster.refuse = lambda *_: UnavailableError("connection refused")
    story(world)
    for _ in range(10):
        with suppress(ClusterError):
            world.reconcile(key)
        world.cluster.pass_time(30)
    assert uids(world).items() <= before.items()  # nothing could be done
    world.cluster.refuse = lambda *_: None

    come_back(world)
    all_wait(world, heard=1)
    world.settle()

    assert changed(world, before) == {"s1"}
    status = world.status(key)
    assert (status["attempt"], status["restarts"], status["recovery"]["incarnation"]) == (1, 0, 2)
