"""A controller over a fake cluster: passes until nothing changes, and the invariants that hold at every step."""

import asyncio

from pipelinejob.base import names
from pipelinejob_operator.cluster import ClusterError, Key
from pipelinejob_operator.controller.reconcile import Controller, ControllerSettings
from support.clusters.fakecluster import FakeCluster, Lagging, phase
from support.clusters.operatorlaws import Lawful, check_room

SETTINGS = ControllerSettings(trainer_image="trainer:1")


class World:
    """One cluster and one controller; `restart()` gives it a fresh one that remembers nothing."""

    def __init__(self, nodes=(), settings=SETTINGS):
        self.cluster = FakeCluster(nodes)
        self.cache = Lagging(self.cluster)
        self.settings = settings
        self.finished, self.ran = {}, {}
        self.restart()

    def restart(self):
        lawful = Lawful(self.cache, self.cluster)
        self.controller = Controller(lawful, settings=self.settings, clock=lambda: self.cluster.now)

    def submit(self, manifest):
        self.cluster.create(manifest)
        return Key(manifest["metadata"]["namespace"], manifest["metadata"]["name"])

    def reconcile(self, key):
        """Do one pass."""
        wait = asyncio.run(self.controller.reconcile(key))
        check(self)
        return wait

    def settle(self, *keys):
        """Do passes over these jobs, or all, until none of them writes anything."""
        for _ in range(60):
            before = len(self.cluster.writes)
            for key in keys or [Key(j["metadata"]["namespace"], j["metadata"]["name"]) for j in self.cluster.jobs()]:
                try:
                    self.reconcile(key)
                except ClusterError:
                    check(self)
            if len(self.cluster.writes) == before:
                return
        raise AssertionError(f"still writing: {self.cluster.writes[-5:]}")

    def train(self, *keys):
        """Bring everything that can be up to training."""
        self.settle(*keys)
        self.cluster.bind()
        self.cluster.start()
        self.settle(*keys)

    def status(self, key):
        return self.cluster.job(key)["status"]

    def condition(self, key, kind):
        return next(each for each in self.status(key)["conditions"] if each["type"] == kind)

    def told(self):
        return [event.reason for event in self.cluster.events]


def check(world):
    """Hold the invariants between passes; `operatorlaws` holds those of each write."""
    cluster = world.cluster
    for pod in cluster.all_pods():
        labels = pod["metadata"].get("labels") or {}
        if names.LABEL_JOB not in labels:
            continue  # not ours
        job = cluster.job(Key(pod["metadata"]["namespace"], labels[names.LABEL_JOB]))
        assert job is not None, "an orphan"
        assert int(labels[names.LABEL_ATTEMPT]) <= job["status"]["attempt"], "a pod before its attempt was stored"
        # By the number of each meeting; of a chain that serves, by who is connected to its first
        # stage.
        fences_more = job["spec"].get("recovery", {}).get("inPlace") or job["spec"].get("mode") == "Serve"
        if phase(pod) == "Running" and names.LABEL_STAGE in labels and not fences_more:
            run = (job["metadata"]["uid"], *(labels[label] for label in _RUN_LABELS))
            first = world.ran.setdefault(run, pod["metadata"]["uid"])
            assert first == pod["metadata"]["uid"], f"two pods ran as {run}: the attempt fences nothing"
    check_room(cluster)
    for job in cluster.jobs():
        _check_finished(world, job)


_RUN_LABELS = (names.LABEL_ATTEMPT, names.LABEL_REPLICA, names.LABEL_STAGE)


def _check_finished(world, job):
    summary = {c["type"]: c["status"] for c in job.get("status", {}).get("conditions", ())}.get("Succeeded")
    uid = job["metadata"]["uid"]
    if uid in world.finished:
        assert summary == world.finished[uid], "a finished job came back to life"
    if summary in {"True", "False"}:
        world.finished[uid] = summary


class Mortal(World):
    """Its controller dies right before, or right after, its n-th write, and starts again knowing nothing."""

    def __init__(self, *arguments, deadly, verb):
        super().__init__(*arguments)
        self.deadly = deadly
        setattr(self.cluster, verb, self.judge)

    def judge(self, verb, item):
        self.deadly -= 1
        return ClusterError("killed") if self.deadly == 0 else None

    def settle(self, *keys):
        for _ in range(4):
            super().settle(*keys)
            self.restart()
