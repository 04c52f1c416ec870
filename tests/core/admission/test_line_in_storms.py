"""Whatever comes free while the line is worked through: no younger job ever has it before an older one that waits."""

import asyncio
import contextlib

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from pipelinejob_operator.cluster import ClusterError
from pipelinejob_operator.controller.admission import admission_loop
from support.clusters.awake import SETTINGS, Awake
from support.examples import examples
from support.manifests.jobs import foreign, node

FIRST = 1  # attempt
ONE_A_TURN = -1.0  # seconds: whoever waits for the event loop has a turn between any two jobs of the line


class FullPool(Awake):
    """Nodes of four GPUs that are full of jobs of two stages; as many younger jobs wait for the same nodes."""

    def __init__(self, num_nodes):
        super().__init__([node(f"n{index}", gpus=4) for index in range(num_nodes)])
        self.num_jobs = 2 * num_nodes
        self.cycle = None
        self.num_left = 0  # of the older, by their owners' wish

    async def fill(self):
        self.older = self.submit(*(f"runs-{index}" for index in range(self.num_jobs)))
        await self.settle()
        self.younger = self.submit(*(f"waits-{index}" for index in range(self.num_jobs)))
        await self.settle()
        assert self.placed_of(self.older) == self.older
        assert self.placed_of(self.younger) == []

    @property
    def keys(self):
        return [key for key in (*self.older, *getattr(self, "younger", ())) if self.cluster.job(key)]

    async def settle(self):
        """Do passes and cycles until nothing is written, on a cluster in which all that was begun comes to its end."""
        before = None
        while before != len(self.cluster.writes):
            before = len(self.cluster.writes)
            await self.work(*self.keys)
            self.cluster.finish_deletions()
            self.cluster.bind()
            self.cluster.start()

    async def do_pass(self, key):
        if self.cluster.job(key):
            with contextlib.suppress(ClusterError):  # it is called again
                await self.controller.reconcile(key)

    def has_room(self, key):
        found = self.cluster.job(key)
        stages = (found or {}).get("status", {}).get("stages") or ()
        is_promised = found is not None and self.controller._room.is_unshown(found["metadata"]["uid"])
        return is_promised or (bool(stages) and all(each.get("node") for each in stages))

    def placed_of(self, keys):
        return [key for key in keys if self.has_room(key)]

    def nodes_of(self, key):
        return [each["node"] for each in self.cluster.job(key)["status"]["stages"]]

    def lose_pods(self, *keys):
        for pod in (pod for key in keys for pod in self.cluster.pods(key)):
            self.cluster.remove(pod, at_once=True)

    # What happens

    def a_pod_is_gone(self, which):
        pods = [pod for pod in self.cluster.all_pods() if self._is_first(pod)]
        if pods:
            self.cluster.remove(pods[which % len(pods)], at_once=True)

    def a_pod_ends(self, which):
        pods = [pod for pod in self.cluster.all_pods() if self._is_first(pod)]
        if pods:
            self.cluster.remove(pods[which % len(pods)])

    def deletions_end(self, _):
        self.cluster.finish_deletions()

    def a_job_leaves(self, which):
        standing = [key for key in self.older if self.cluster.job(key)]
        if standing:
            self.num_left += 1
            self.cluster.remove(self.cluster.job(standing[which % len(standing)]))

    async def a_pass(self, which):
        await self.do_pass(self.keys[which % len(self.keys)])

    async def a_pass_over_who_is_woken(self, which):
        if self.woken:
            await self.do_pass(self.woken.pop(which % len(self.woken)))

    def a_cycle_begins(self, _):
        if self.cycle is None or self.cycle.done():
            self.cycle = asyncio.create_task(self.controller.admissions.cycle())

    def the_cache_lags(self, _):
        self.cache.freeze()

    def the_cache_catches_up(self, _):
        self.cache.thaw()

    @staticmethod
    def _is_first(pod):
        return pod["metadata"]["labels"]["pipelinejob.io/attempt"] == str(FIRST)

    # What must hold

    def nobody_is_out_of_turn(self):
        given = self.placed_of(self.younger)
        assert given == self.younger[: len(given)], "they, too, are given room in the order of the line"
        assert len(given) <= self.num_left, "a younger job took the room of an older one that restarts"

    async def calm(self):
        """Have what was begun end, and all that is to follow from it."""
        self.cache.thaw()
        if self.cycle is not None:
            await self.cycle
        await self.settle()


EVENTS = [
    FullPool.a_pod_is_gone,
    FullPool.a_pod_is_gone,
    FullPool.a_pod_ends,
    FullPool.deletions_end,
    FullPool.a_job_leaves,
    FullPool.a_pass,
    FullPool.a_pass,
    FullPool.a_pass_over_who_is_woken,
    FullPool.a_cycle_begins,
    FullPool.the_cache_lags,
    FullPool.the_cache_catches_up,
]


@pytest.fixture(autouse=True)
def _others_have_their_turn(monkeypatch):
    monkeypatch.setattr(admission_loop, "_BREATH_S", ONE_A_TURN)


async def _turns(number):
    for _ in range(number):
        await asyncio.sleep(0)


async def test_who_restarts_while_the_line_is_worked_through_does_not_lose_its_room_to_a_younger_job():
    world = FullPool(2)
    await world.fill()
    first, second, *_ = world.older
    world.lose_pods(first, second)
    await world.do_pass(first)

    world.a_cycle_begins(0)
    await _turns(2)  # the first was decided
    await world.do_pass(second)  # whose room comes free only now
    await world.cycle

    world.nobody_is_out_of_turn()
    await world.settle()
    assert world.placed_of(world.older) == world.older


async def test_a_node_that_comes_while_the_line_is_worked_through_is_the_heads():
    world = FullPool(1)
    await world.fill()
    head, second = world.younger
    world.cluster._put(node("late", gpus=1))

    world.a_cycle_begins(0)
    await _turns(2)  # there was no room for the head
    world.cluster._put(node("later", gpus=2))
    await world.cycle
    assert world.placed_of([head, second]) == []

    await world.settle()
    assert world.placed_of([head, second]) == [head]


async def test_room_is_kept_where_it_stood_for_one_that_restarts():
    world = FullPool(2)
    await world.fill()
    leaving, *_, first, second = world.older
    stood = world.nodes_of(first)
    world.cluster.remove(world.cluster.job(leaving))  # which leaves room elsewhere that would just suffice
    world.lose_pods(first, second)
    for key in (first, second, second):  # the second has asked for room, the first not yet
        await world.do_pass(key)

    await world.controller.admissions.cycle()
    await world.settle()

    assert world.nodes_of(first) == world.nodes_of(second) == stood
    assert world.placed_of(world.younger) == world.younger[:1]


async def test_one_whose_room_others_took_says_that_its_node_is_full_and_not_that_it_was_lost():
    world = FullPool(1)
    await world.fill()
    first, *_ = world.older
    world.lose_pods(first)
    world.cluster._put(foreign("busy", "n0", **{"nvidia.com/gpu": "2"}))

    await world.settle()

    message = world.placed(first)["message"]
    assert "the closest, n0, has 0 nvidia.com/gpu free" in message
    assert "lost" not in message


async def test_room_that_came_free_is_kept_for_an_older_one_that_did_not_ask_yet():
    world = FullPool(2)
    await world.fill()
    first, *_, last = world.older
    (stood,) = set(world.nodes_of(last))
    world.lose_pods(last)
    world.cluster._put(foreign("busy", stood, **{"nvidia.com/gpu": "1"}))
    await world.settle()
    world.cluster.pass_time(SETTINGS.waiting_retry_s)
    await world.settle()
    assert world.cluster.job(last)["status"]["waitsFor"] == [str(first)]

    world.cluster.remove(world.cluster.pod("busy", "other"), at_once=True)
    world.start()
    for key in world.younger:
        await world.do_pass(key)
    await world.controller.admissions.cycle()

    world.nobody_is_out_of_turn()
    await world.settle()
    assert world.placed_of(world.older) == world.older


@given(
    num_nodes=st.integers(1, 2),
    happenings=st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 15)), max_size=60),
)
@settings(max_examples=examples(150), deadline=None, suppress_health_check=list(HealthCheck))
def test_in_any_storm_room_goes_to_the_older_first(num_nodes, happenings):
    async def weather():
        world = FullPool(num_nodes)
        await world.fill()
        for happen, which in happenings:
            found = happen(world, which)
            if found is not None:
                await found
            await _turns(1)
            world.nobody_is_out_of_turn()
        await world.calm()
        world.nobody_is_out_of_turn()
        assert world.placed_of(world.older) == [key for key in world.older if world.cluster.job(key)]
        assert len(world.placed_of(world.younger)) == world.num_left

    asyncio.run(weather())
