"""N jobs race for room for k < N, of any size and priority, under an operator that dies at any write: all finish."""

import math

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings

from pipelinejob_operator.cluster import ClusterError, Key
from support.clusters.fakecluster import phase
from support.clusters.operatorworld import World, check
from support.examples import examples
from support.manifests.jobs import job, node, priority_class

RACK = "topology.kubernetes.io/rack"
CLASSES = {"low": 1, "middle": 10, "high": 100}


class KilledError(Exception):
    """The operator's process is no more."""


class Race(World):
    """Two racks of nodes with two GPUs; the operator is killed at each of these writes, counted from the last death."""

    def __init__(self, *, num_nodes, deaths):
        racks = [node(f"{rack}{index}", gpus=2, labels={RACK: rack}) for rack in "ab" for index in range(num_nodes)]
        super().__init__(racks)
        self.deaths, self.writes, self.is_dead = iter(deaths), 0, False
        self.next_death = next(self.deaths, math.inf)
        self.waits, self.seen_running = {}, {}
        self.cluster.refuse = lambda verb, item: KilledError() if self.is_dead else None
        self.cluster.lose_answer = self._count
        for name, value in CLASSES.items():
            self.cluster._put(priority_class(name, value))

    def reconcile(self, key):
        try:
            super().reconcile(key)
        except (KilledError, ClusterError):
            check(self)
            if self.is_dead:
                self.is_dead = False
                self.restart()

    def _count(self, verb, item):
        self.writes += 1
        if self.writes < self.next_death:
            return None
        self.writes, self.next_death, self.is_dead = 0, next(self.deaths, math.inf), True
        return KilledError()

    def running(self):
        return [each for each in self.cluster.jobs() if any(phase(pod) == "Running" for pod in self.gang(each))]

    def gang(self, manifest):
        return self.cluster.pods(key_of(manifest))

    def no_gang_is_partial(self):
        """Between passes, what runs of a job that was not told to leave is its whole gang."""
        for each in self.running():
            pods = [pod for pod in self.gang(each) if "deletionTimestamp" not in pod["metadata"]]
            parallelism = each["spec"]["parallelism"]
            assert len(pods) in {0, parallelism["pipeline"] * parallelism.get("data", 1)}


def key_of(manifest):
    return Key(manifest["metadata"]["namespace"], manifest["metadata"]["name"])


def is_over(manifest):
    conditions = {each["type"]: each for each in manifest.get("status", {}).get("conditions", ())}
    return conditions.get("Succeeded", {}).get("status") in {"True", "False"}


sizes = st.fixed_dictionaries(
    {
        "stages": st.integers(1, 5),
        "replicas": st.integers(1, 2),
        "priority": st.sampled_from([None, *CLASSES]),
        "rack": st.booleans(),  # all of a replica in one
        "after": st.integers(0, 6),  # ticks from the one before
        "ticks": st.integers(1, 5),  # that it has to run in one go
    }
)


def manifest(index, each):
    scheduling = {"scheduling": {"priorityClassName": each["priority"]}} if each["priority"] else {}
    topology = {"topology": {"levels": [RACK], "pipeline": {"required": RACK}}} if each["rack"] else {}
    parallelism = {"pipeline": each["stages"], "data": each["replicas"]}
    return job(f"j{index}", parallelism=parallelism, **scheduling, **topology)


def fits_empty(each, *, num_nodes):
    rack = 2 * num_nodes
    if not each["rack"]:
        return each["stages"] * each["replicas"] <= 2 * rack
    return 2 * (rack // each["stages"]) >= each["replicas"]


@settings(max_examples=examples(15), deadline=None, suppress_health_check=list(HealthCheck))
@given(
    num_nodes=st.integers(1, 3),
    jobs=st.lists(sizes, min_size=3, max_size=8),
    deaths=st.lists(st.integers(1, 40), max_size=4),
)
def test_n_jobs_that_race_for_room_for_fewer_all_finish(num_nodes, jobs, deaths):
    world = Race(num_nodes=num_nodes, deaths=deaths)
    jobs = [each for each in jobs if fits_empty(each, num_nodes=num_nodes)]
    due, at = {}, 0
    for index, each in enumerate(jobs):
        at += each["after"]
        due.setdefault(at, []).append((index, each))
    ran: dict[str, int] = {}

    for tick in range(at + 40 * len(jobs) + 40):
        for index, each in due.get(tick, ()):
            world.submit(manifest(index, each))
        world.cluster.pass_time(1)
        world.train()
        world.no_gang_is_partial()
        for each in world.cluster.jobs():
            name, gang = each["metadata"]["name"], world.gang(each)
            is_up = bool(gang) and all(phase(pod) == "Running" for pod in gang)
            ran[name] = ran.get(name, 0) + 1 if is_up else 0
            if ran[name] >= jobs[int(name[1:])]["ticks"]:
                for pod in gang:
                    world.cluster.set_pod(pod, phase="Succeeded", code=0)
        world.cluster.finish_deletions()
        if tick > at and all(is_over(each) for each in world.cluster.jobs()):
            break

    unfinished = {each["metadata"]["name"]: each["status"] for each in world.cluster.jobs() if not is_over(each)}
    assert not unfinished
    assert len(world.cluster.jobs()) == len(jobs)
    assert {each["status"].get("restarts", 0) for each in world.cluster.jobs()} <= {0}


@settings(max_examples=examples(8), deadline=None, suppress_health_check=list(HealthCheck))
@given(
    passers=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=12), big=st.integers(2, 6)
)
def test_a_large_job_starts_once_those_that_ran_before_it_have_ended_whoever_goes_past(passers, big):
    """Jobs that go past run for ever here, and still the large one never waits for any of them."""
    world = Race(num_nodes=2, deaths=())
    first = [world.submit(job(f"first{index}", parallelism={"pipeline": 2})) for index in range(3)]
    world.train()
    world.cluster.pass_time(1)
    large = world.submit(job("large", parallelism={"pipeline": big + 2}))
    world.settle()
    for index, (stages, seconds) in enumerate(passers):
        world.cluster.pass_time(seconds)
        world.submit(job(f"passer{index}", parallelism={"pipeline": stages}))
        world.train()

    waited_for = world.status(large)["waitsFor"]
    assert {name.removesuffix(name[-1]) for name in waited_for} <= {"default/first"}
    for key in first:
        if str(key) in waited_for:
            for pod in world.cluster.pods(key):
                world.cluster.set_pod(pod, phase="Succeeded", code=0)
    world.train()

    assert world.status(large)["state"] == "Training"


@settings(max_examples=examples(10), deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_nobody_who_made_way_makes_the_other_leave_again(data):
    """Until the higher jobs end, a lower one leaves at most once for each of them."""
    world = Race(num_nodes=2, deaths=())
    names = list(CLASSES)
    count = data.draw(st.integers(2, 6))
    for index in range(count):
        world.cluster.pass_time(1)
        scheduling = {"priorityClassName": data.draw(st.sampled_from(names))}
        parallelism = {"pipeline": data.draw(st.integers(1, 8))}
        world.submit(job(f"j{index}", parallelism=parallelism, scheduling=scheduling))
        world.train()
        world.cluster.finish_deletions()
    for _ in range(6):
        world.cluster.pass_time(31)
        world.train()
        world.cluster.finish_deletions()

    before = [each["status"]["preemptions"] for each in world.cluster.jobs()]
    for _ in range(4):
        world.cluster.pass_time(31)
        world.train()
        world.cluster.finish_deletions()

    assert [each["status"]["preemptions"] for each in world.cluster.jobs()] == before
    assert all(number <= count - 1 for number in before)
