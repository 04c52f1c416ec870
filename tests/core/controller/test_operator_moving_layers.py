"""Other stages, layers or another schedule from memory: who joins, who leaves, when, and what interrupts it."""

import pytest

from pipelinejob.base import names
from pipelinejob.contract.incarnation import Lost
from pipelinejob.contract.plan import Plan
from pipelinejob.contract.progress import Phase, Progress, Spent
from pipelinejob_operator.cluster import ClusterError
from support.clusters.operatorworld import World
from support.manifests.jobs import job, nodes

SPEC = {
    "device": "cpu",
    "schedule": {"name": "1F1B", "globalBatchSize": 48, "microBatchSize": 1},
    "recovery": {"inPlace": True, "waitSeconds": 120},
}


def shape(stages, data=1):
    return {"pipeline": stages, "data": data}


def pod_name(stage, replica=0):
    return names.pod_name("gpt", replica=replica, stage=stage)


class Gang:
    """A job of one replica in a world, and what its stages say."""

    def __init__(self, stages, *, num_nodes=8, **spec):
        self.world = World(nodes(num_nodes, gpus=8) if num_nodes > stages else nodes(num_nodes, pods="1"))
        self.key = self.world.submit(job(**{**SPEC, "parallelism": shape(stages), **spec}))
        self.cluster = self.world.cluster
        self.world.train()
        self.wait(range(stages), incarnation=0)
        self.world.settle()
        self.train(range(stages), 1)
        self.world.settle()
        assert self.status()["state"] == "Training"
        self.cluster.told.clear()

    def say(self, stage, **account):
        told = {"phase": Phase.TRAINING, "step": 7, "control_port": 5000 + stage}
        answer = Progress(**{"replica": 0, "stage": stage, "attempt": 1} | told | account)
        self.cluster.answers[pod_name(stage)] = answer

    def wait(self, stages, **account):
        for stage in stages:
            self.say(stage, phase=Phase.STARTING, awaits_incarnation=True, **account)

    def train(self, stages, incarnation, **account):
        for stage in stages:
            self.say(stage, incarnation=incarnation, **account)

    def ask(self, **spec):
        self.cluster.edit(self.key, **spec)
        self.world.settle()

    def come_up(self):
        self.world.settle()
        self.cluster.bind()
        self.cluster.start()
        self.world.settle()

    def leave(self, stages):
        for stage in stages:
            self.cluster.set_pod(self.cluster.pod(pod_name(stage)), phase="Succeeded", code=0)
            self.cluster.answers.pop(pod_name(stage))

    def die(self, stage):
        self.cluster.set_pod(self.cluster.pod(pod_name(stage)), phase="Failed", code=137)
        self.cluster.answers.pop(pod_name(stage))

    def status(self):
        return self.world.status(self.key)

    def pods(self):
        return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in self.cluster.all_pods()}

    def plan(self):
        (config_map,) = (item for item in self.cluster.objects.values() if item["kind"] == "ConfigMap")
        return Plan.from_json(config_map["data"][names.PLAN_FILE])

    def told(self):
        return dict(self.cluster.told)

    def events(self, reason):
        return [each.message for each in self.cluster.events if each.reason == reason]


def layers_of(plan):
    return [end - first for first, end in plan.cuts]


def test_a_further_stage_comes_up_beside_the_gang_and_all_go_over_at_a_border_with_the_layers_divided_anew():
    gang = Gang(2)
    before = gang.pods()
    gang.ask(parallelism=shape(3))
    gang.come_up()
    assert set(gang.pods()) - set(before) == {pod_name(2)}
    assert (gang.status()["state"], gang.status()["stagesReady"]) == ("Training", "2/2")
    assert not gang.told(), "it does not wait yet"

    gang.wait([2], incarnation=0)
    gang.world.settle()
    assert set(gang.told()) == {pod_name(stage) for stage in range(3)}
    for each in gang.told().values():
        assert (each.at_border, each.number, [m.stage for m in each.members]) == (True, 2, [0, 1, 2])
        assert Plan.from_json(each.plan) == gang.plan()
    plan = gang.plan()
    assert (plan.parallelism.pipeline, len(plan.cuts), plan.schedule.micro_batches) == (3, 3, 48)

    gang.train(range(3), 2, stall_s=0.4)
    gang.world.settle()
    gang.cluster.start()
    gang.world.settle()
    status = gang.status()
    assert (status["attempt"], status["restarts"], status["chosen"]["pipeline"]) == (1, 0, 3)
    assert (status["recovery"]["stallSeconds"], status["stagesReady"]) == ("0.4000", "3/3")
    assert {name: uid for name, uid in gang.pods().items() if name in before} == before
    assert gang.world.condition(gang.key, "Resized")["status"] == "True"
    listed = "/".join(map(str, layers_of(plan)))
    (begun,), (done,) = gang.events("Resizing"), gang.events("Resized")
    assert begun.startswith("Goes from 2 to 3 stages from memory: 1 more stage comes up, and joins at a step border;")
    assert done.startswith(f"Trains with 3 stages of {listed} layers, 1F1B, since about step 7, from memory;")
    assert done.endswith("training stood still for 0.4 s")


def test_stages_that_are_not_needed_any_more_leave_at_a_border_and_their_end_is_no_failure():
    gang = Gang(4)
    kept = {name: uid for name, uid in gang.pods().items() if name in {pod_name(0), pod_name(1)}}
    gang.ask(parallelism=shape(2))
    assert len(gang.told()) == 4
    assert all(len(each.members) == 2 for each in gang.told().values())

    gang.leave([2, 3])
    gang.train(range(2), 2)
    gang.world.settle()
    assert gang.pods() == kept
    assert (gang.status()["state"], gang.status()["attempt"]) == ("Training", 1)
    assert "StageFailed" not in gang.world.told()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"partition": {"layers": [1, 7]}}, "Goes from 4/4 to 1/7 layers from memory"),
        ({"schedule": {**SPEC["schedule"], "name": "ZB-H1"}}, "Goes from 1F1B to ZB-H1 from memory"),
        ({"schedule": {**SPEC["schedule"], "name": "ZB-V"}}, "Goes from 1F1B to ZB-V from memory"),
    ],
)
def test_another_partition_or_schedule_is_gone_over_to_by_the_same_stages(change, words):
    gang = Gang(2)
    before = gang.pods()
    gang.ask(**change)
    assert gang.events("Resizing") == [f"{words}: all go over at the next step border"]
    plan = gang.plan()
    if "partition" in change:
        assert layers_of(plan) == [1, 7]
    else:
        assert plan.schedule.name == change["schedule"]["name"]
    gang.train(range(2), 2, stall_s=0.1)
    gang.world.settle()
    assert gang.pods() == before
    assert gang.world.condition(gang.key, "Resized")["status"] == "True"
    num_told = len(gang.cluster.told)
    gang.world.settle()
    assert len(gang.cluster.told) == num_told, "it is what was asked for"


def test_a_stage_lost_before_stages_leave_is_replaced_in_the_gang_as_it_was_and_the_change_comes_later():
    gang = Gang(4)
    before = gang.pods()
    gang.ask(parallelism=shape(2))
    assert gang.status()["chosen"]["pipeline"] == 2
    gang.die(3)  # which was to leave, with what only it and its buddy have
    gang.wait(range(3), incarnation=1, lost=(Lost(replica=0, stage=3, why="its end"),))
    gang.world.settle()
    assert gang.status()["chosen"]["pipeline"] == 4
    gang.come_up()
    gang.wait([3], incarnation=0)
    gang.cluster.told.clear()
    gang.world.settle()
    for each in gang.told().values():
        assert (each.at_border, len(each.members)) == (False, 4)
        assert Plan.from_json(each.plan).parallelism.pipeline == 4
    number = gang.status()["recovery"]["incarnation"]
    gang.train(range(4), number)
    gang.world.settle()
    status = gang.status()
    assert (status["attempt"], "resizing" in status["recovery"]) == (1, False)
    assert {name: uid for name, uid in gang.pods().items() if name != pod_name(3)} == {
        name: uid for name, uid in before.items() if name != pod_name(3)
    }
    assert "all go on as they were" in gang.world.condition(gang.key, "Resized")["message"]

    gang.cluster.pass_time(3600)
    gang.world.settle()
    assert gang.status()["chosen"]["pipeline"] == 2


def test_a_stage_lost_once_others_have_left_is_replaced_in_the_new_gang():
    gang = Gang(4)
    gang.ask(parallelism=shape(2))
    gang.leave([2, 3])
    gang.die(1)
    gang.wait([0], incarnation=2, lost=(Lost(replica=0, stage=1, why="its end"),))
    gang.come_up()
    gang.wait([1], incarnation=0)
    gang.cluster.told.clear()
    gang.world.settle()
    assert {len(each.members) for each in gang.told().values()} == {2}
    gang.train(range(2), gang.status()["recovery"]["incarnation"])
    gang.world.settle()
    assert (gang.status()["state"], gang.status()["attempt"]) == ("Training", 1)
    assert "resizing" not in gang.status()["recovery"]


def test_a_straggler_is_given_fewer_layers_from_memory():
    spec = {"recovery": SPEC["recovery"] | {"stragglers": "Repartition"}, "training": {"steps": 10_000}}
    alike = {"entrypoint": "model:build", "numLayers": 12}
    gang = Gang(4, model=alike, schedule={"microBatches": 8, "microBatchSize": 1}, **spec)
    before = gang.pods()
    for step in (8, 9):
        for stage, compute in enumerate((0.3, 0.9, 0.3, 0.3)):
            spent = Spent(step_s=2.0, compute_s=2.0 * compute, waiting_s=0.5)
            gang.say(stage, incarnation=1, step=step, step_s=2.0, utilization_ratio=compute, spent=spent)
        gang.cluster.pass_time(60)
        gang.world.settle()

    (said,) = gang.events("Repartitioning")
    assert "all go over at the next step border with 4/1/4/3 layers instead of 3/3/3/3: predicted to gain" in said
    assert layers_of(gang.plan()) == [4, 1, 4, 3]
    assert {each.at_border for each in gang.told().values()} == {True}
    gang.train(range(4), 2, stall_s=0.1)
    gang.world.settle()
    status = gang.status()
    assert (status["attempt"], gang.pods()) == (1, before)
    assert status["recovery"]["speeds"] == ["1", "0.333", "1", "1"]


def test_a_wish_that_changes_takes_back_what_came_up_for_it():
    gang = Gang(2)
    before = gang.pods()
    gang.ask(parallelism=shape(3))
    gang.come_up()
    gang.ask(parallelism=shape(2))
    gang.cluster.finish_deletions()
    gang.world.settle()
    assert gang.pods() == before
    assert gang.world.condition(gang.key, "Resized")["status"] == "True"


def test_layers_that_do_not_go_with_the_stages_change_nothing_and_it_says_why():
    gang = Gang(2)
    before = gang.pods()
    gang.ask(partition={"layers": [1, 1, 6]})
    assert gang.pods() == before
    assert gang.status()["attempt"] == 1
    stalled = gang.world.condition(gang.key, "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "InvalidSpec")
    assert "partition.layers" in stalled["message"]

    gang.ask(partition={"layers": [1, 7]})
    assert layers_of(gang.plan()) == [1, 7]


def test_a_stage_that_finds_no_room_beside_the_others_is_waited_for():
    gang = Gang(2, num_nodes=2)
    before = gang.pods()
    gang.ask(parallelism=shape(3))
    assert gang.pods() == before
    resized = gang.world.condition(gang.key, "Resized")
    assert (resized["status"], resized["reason"]) == ("False", "NoRoom")
    assert resized["message"].startswith("stays with 2 stages and 1F1B, though others are asked for: ")


def test_where_memory_does_not_do_it_goes_through_a_checkpoint_and_says_why():
    gang = Gang(2, training={"steps": 1000, "compile": "Layers"})
    gang.ask(parallelism=shape(3))
    (message,) = gang.events("Resizing")
    assert message.startswith("Goes from 2 to 3 stages (not from memory: spec.training.compile: layers that move")
    assert gang.status()["attempt"] == 2
    assert gang.status()["chosen"]["pipeline"] == 3


@pytest.mark.parametrize("verb", ["refuse", "lose_answer"])
@pytest.mark.parametrize("deadly", range(1, 8))
def test_at_whatever_write_the_operator_dies_the_next_goes_on_from_the_status(verb, deadly):
    gang = Gang(2)
    before, left = gang.pods(), [deadly]

    def judge(*_):
        left[0] -= 1
        return ClusterError("killed") if left[0] == 0 else None

    def settle():
        for _ in range(2):
            gang.world.settle()
            gang.world.restart()

    setattr(gang.cluster, verb, judge)
    gang.cluster.edit(gang.key, parallelism=shape(3))
    settle()
    gang.come_up()
    gang.wait([2], incarnation=0)
    settle()
    number = gang.status()["recovery"]["incarnation"]
    assert left[0] <= 0, "it never died"
    assert all(gang.cluster.answers[name].moves_to == number for name in gang.pods())
    assert all(Plan.from_json(each.plan) == gang.plan() for each in gang.told().values())
    gang.train(range(3), number)
    settle()
    status = gang.status()
    assert (status["chosen"]["pipeline"], status["attempt"], "resizing" in status["recovery"]) == (3, 1, False)
    assert {name: uid for name, uid in gang.pods().items() if name in before} == before
