"""Whatever happens, in whatever order: the invariants hold at every step, and once the world is kind all jobs end."""

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, precondition, rule

from pipelinejob_operator.admission.room import Room
from pipelinejob_operator.cluster import ClusterError, ConflictError, ForbiddenError, Key
from pipelinejob_operator.objects.job import read_job
from support.clusters.fakecluster import phase
from support.clusters.operatorworld import World, check
from support.examples import examples
from support.manifests.jobs import job, node, nodes

CODES = [1, 64, 75, 137, 143]


class Adversity(RuleBasedStateMachine):
    """Jobs on a small cluster, and all that can befall them between two passes."""

    jobs = Bundle("jobs")

    def __init__(self):
        super().__init__()
        self.world = World(nodes(4))
        self.count = 0

    # What users do

    @rule(target=jobs, stages=st.integers(1, 4), data=st.integers(1, 2), restarts=st.integers(0, 2))
    @precondition(lambda self: self.count < 4)
    def submit(self, stages, data, restarts):
        self.count += 1
        manifest = job(
            f"j{self.count}",
            parallelism={"pipeline": stages, "data": data},
            failurePolicy={"maxRestarts": restarts},
        )
        return self.world.submit(manifest)

    @rule(target=jobs, stages=st.integers(1, 3))
    @precondition(lambda self: self.count < 3)
    def submit_beside_one_that_backs_off(self, stages):
        """Both ask for the same nodes before the cache shows what the younger was given meanwhile."""
        older = self.submit(stages, 1, 1)
        self.a_pass_that_breaks_off(older, refusals=1, kind=ForbiddenError)
        younger = self.submit(stages, 1, 1)
        self.world.cluster.pass_time(31)
        self.two_passes_on_a_stale_cache(younger, older)
        return multiple(older, younger)

    @rule(target=jobs, data=st.sampled_from([1, 2, 4]), is_elastic=st.booleans())
    @precondition(lambda self: self.count < 4)
    def submit_one_that_can_be_scaled(self, data, is_elastic):
        self.count += 1
        manifest = job(
            f"j{self.count}",
            parallelism={"pipeline": 1, "data": data},
            schedule={"name": "GPipe", "globalBatchSize": 4, "microBatchSize": 1},
            **({"scheduling": {"minReplicas": 1}} if is_elastic else {}),
        )
        return self.world.submit(manifest)

    @rule(key=jobs, data=st.sampled_from([1, 2, 4]))
    def scale(self, key, data):
        found = self.world.cluster.job(key)
        if found and "globalBatchSize" in found["spec"]["schedule"]:
            self.world.cluster.edit(key, parallelism={"pipeline": 1, "data": data})

    @rule(key=jobs, suspend=st.booleans())
    def flip_suspend(self, key, suspend):
        if self.world.cluster.job(key):
            self.world.cluster.edit(key, suspend=suspend)

    @rule(key=jobs)
    def delete_job(self, key):
        found = self.world.cluster.job(key)
        if found:
            self.world.cluster.remove(found)

    # What the operator does

    @rule(key=jobs)
    def one_pass(self, key):
        self._pass(key)

    @rule(key=jobs, refusals=st.integers(0, 5), kind=st.sampled_from([ConflictError, ForbiddenError, ClusterError]))
    def a_pass_that_breaks_off(self, key, refusals, kind):
        left = iter(range(refusals))
        self.world.cluster.refuse = lambda verb, item: (
            kind("refused") if next(left, None) is None and not (verb == "status" and kind is ForbiddenError) else None
        )
        self._pass(key)
        self.world.cluster.refuse = lambda verb, item: None

    @rule(first=jobs, second=jobs)
    def two_passes_on_a_stale_cache(self, first, second):
        self.world.cache.freeze()
        self._pass(first)
        self._pass(second)
        self.world.cache.thaw()

    @rule()
    def restart_the_operator(self):
        self.world.restart()

    @rule()
    def settle(self):
        self.world.settle()

    @rule()
    def train(self):
        self.world.train()

    # What the cluster does

    @rule()
    def bind_and_start(self):
        self.world.cluster.bind()
        self.world.cluster.start()

    @rule(data=st.data(), code=st.sampled_from(CODES))
    def a_container_ends(self, data, code):
        running = [pod for pod in self.world.cluster.all_pods() if phase(pod) == "Running"]
        if running:
            self.world.cluster.set_pod(data.draw(st.sampled_from(running)), phase="Failed", code=code)

    @rule(data=st.data(), code=st.sampled_from([0, *CODES]))
    def a_trainer_ends_beside_a_container_that_lives_on(self, data, code):
        running = [pod for pod in self.world.cluster.all_pods() if phase(pod) == "Running"]
        if running:
            self.world.cluster.set_pod(data.draw(st.sampled_from(running)), phase="Running", code=code)

    @rule(data=st.data())
    def a_kubelet_refuses_a_pod(self, data):
        self.settle()
        self.world.cluster.bind()
        bound = [pod for pod in self.world.cluster.all_pods() if "nodeName" in pod["spec"] and phase(pod) == "Pending"]
        if bound:
            pod = data.draw(st.sampled_from(bound))
            self.world.cluster.set_pod(pod, phase="Failed", reason="UnexpectedAdmissionError")

    @rule(data=st.data())
    def a_container_ends_and_others_take_their_time(self, data):
        self.train()
        self.a_container_ends(data, code=1)
        self.settle()

    @rule(key=jobs)
    def a_gang_completes(self, key):
        gang = self.world.cluster.pods(key) if self.world.cluster.job(key) else []
        if gang and all(phase(pod) == "Running" for pod in gang):
            for pod in gang:
                self.world.cluster.set_pod(pod, phase="Succeeded", code=0)

    @rule(data=st.data())
    def a_pod_is_deleted(self, data):
        pods = self.world.cluster.all_pods()
        if pods:
            self.world.cluster.remove(data.draw(st.sampled_from(pods)))

    @rule()
    def deletions_end(self):
        self.world.cluster.finish_deletions()

    @rule(index=st.integers(0, 3))
    def a_node_is_lost(self, index):
        self.world.cluster.lose_node(f"n{index}")

    @rule(index=st.integers(0, 3))
    def a_node_comes_back(self, index):
        self._heal(index)

    @rule(seconds=st.sampled_from([1, 6, 31, 400]))
    def time_passes(self, seconds):
        self.world.cluster.pass_time(seconds)

    @invariant()
    def invariants_hold(self):
        check(self.world)
        assert "InvalidTemplate" not in str(self.world.cluster.jobs()), "a pod was written over another"

    @invariant()
    def the_room_that_is_kept_equals_one_that_is_made_anew(self):
        controller = self.world.controller
        kept = controller._room
        kept.refresh()
        anew = Room(
            self.world.cache,
            admitted=controller._admitted,
            settings=self.world.settings,
            read=read_job,
            clock=lambda: self.world.cluster.now,
        )
        anew.refresh()
        assert kept.has_unshown_promises or kept.state() == anew.state()

    def teardown(self):
        """Be kind for long enough: then every job that fits has ended, and nothing is left running."""
        for index in range(4):
            self._heal(index)
        for each in self.world.cluster.jobs():
            self.world.cluster.edit(_key(each), suspend=False)
        for _ in range(40):
            self.world.cluster.pass_time(400)
            self.world.cluster.finish_deletions()
            self.world.train()
            for each in self.world.cluster.jobs():
                self.a_gang_completes(_key(each))
            if all(self._is_over(each) for each in self.world.cluster.jobs()):
                break
        for each in self.world.cluster.jobs():
            assert self._is_over(each), each["status"]
        self.world.cluster.finish_deletions()
        assert not [pod for pod in self.world.cluster.all_pods() if phase(pod) in {"Pending", "Running"}]

    def _pass(self, key):
        try:
            self.world.reconcile(key)
        except ClusterError:
            check(self.world)

    def _heal(self, index):
        lost = self.world.cluster.objects["Node", "", f"n{index}"]
        self.world.cluster._put(lost | {"status": node("x")["status"]})

    def _is_over(self, each):
        conditions = {c["type"]: c for c in each.get("status", {}).get("conditions", ())}
        if not conditions:
            return False
        return conditions["Succeeded"]["status"] != "Unknown" or conditions["Placed"]["reason"] == "NeverFits"


def _key(manifest):
    return Key(manifest["metadata"]["namespace"], manifest["metadata"]["name"])


TestAdversity = Adversity.TestCase
TestAdversity.settings = settings(
    max_examples=examples(150), stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
