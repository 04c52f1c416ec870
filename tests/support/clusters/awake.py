"""A controller as the operator's process runs it: the admission loop decides, and wakes jobs for their passes."""

from pipelinejob_operator.cluster import Key
from pipelinejob_operator.controller.reconcile import Controller, ControllerSettings
from support.clusters.fakecluster import FakeCluster, Lagging
from support.manifests.jobs import job

SETTINGS = ControllerSettings(trainer_image="trainer:1")


class Counted:
    """Counts what the loop decides."""

    def __init__(self):
        self.decided, self.cycles = [], 0

    def cycle(self, seconds):
        self.cycles += 1

    def line(self, waiting, *, head_since):
        self.waiting, self.head_since = waiting, head_since

    def attempted(self, result):
        self.decided.append(result)


class Awake:
    """A controller whose line is worked through by the loop alone; `woken` are the jobs that it had passed over."""

    def __init__(self, nodes):
        self.cluster = FakeCluster(nodes)
        self.cache = Lagging(self.cluster)
        self.start()

    def start(self):
        self.woken, self.counted = [], Counted()
        self.controller = Controller(
            self.cache,
            settings=SETTINGS,
            clock=lambda: self.cluster.now,
            wake=self.woken.append,
            metrics=self.counted,
        )

    def submit(self, *names, **spec):
        keys = []
        for name in names:
            self.cluster.create(job(name, **spec))
            keys.append(Key("default", name))
            self.cluster.pass_time(1)
        return keys

    async def ask(self, *keys):
        return [await self.controller.reconcile(key) for key in keys]

    async def follow(self):
        """Pass over whoever is woken until nobody is."""
        while self.woken:
            await self.controller.reconcile(self.woken.pop(0))

    async def work(self, *keys):
        await self.ask(*keys)
        await self.controller.admissions.cycle()
        await self.follow()

    def state(self, key):
        return self.cluster.job(key).get("status", {}).get("state")

    def placed(self, key):
        return next(each for each in self.cluster.job(key)["status"]["conditions"] if each["type"] == "Placed")
