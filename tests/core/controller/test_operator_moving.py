"""Another number of replicas from memory: who comes up beside the gang, when all are told, and what is left alone."""

import pytest

from pipelinejob.base import names
from pipelinejob.contract.incarnation import Lost
from pipelinejob.contract.plan import Plan
from pipelinejob.contract.progress import Phase, Progress
from pipelinejob.spec.reported.plan_summary import PlannedStage, PlanSummary
from pipelinejob.spec.status import PipelineJobStatus
from pipelinejob_operator.cluster import ClusterError, ForbiddenError
from pipelinejob_operator.controller.turns import shapes
from support.clusters.operatorworld import World
from support.manifests.jobs import job, node, nodes

SPEC = {
    "device": "cpu",
    "schedule": {"name": "1F1B", "globalBatchSize": 48, "microBatchSize": 1},
    "recovery": {"inPlace": True, "waitSeconds": 120},
}


def shape(data):
    return {"pipeline": 2, "data": data}


def pod_name(replica, stage):
    return names.pod_name("gpt", replica=replica, stage=stage)


def says(world, replica, stage, **account):
    told = {"phase": Phase.TRAINING, "step": 7, "incarnation": 1, "control_port": 5000 + 10 * replica + stage}
    world.cluster.answers[pod_name(replica, stage)] = Progress(
        **{"replica": replica, "stage": stage, "attempt": 1} | told | account
    )


def waits(world, replica, **account):
    for stage in range(2):
        says(world, replica, stage, phase=Phase.STARTING, step=0, incarnation=0, awaits_incarnation=True, **account)


def trains(world, replica, incarnation, **account):
    for stage in range(2):
        says(world, replica, stage, incarnation=incarnation, **account)


def scaled(world, key, data):
    world.cluster.edit(key, parallelism=shape(data))
    world.settle()


def come_up(world):
    world.settle()
    world.cluster.bind()
    world.cluster.start()
    world.settle()


def pods(world):
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in world.cluster.all_pods()}


def plan(world):
    (config_map,) = (item for item in world.cluster.objects.values() if item["kind"] == "ConfigMap")
    return Plan.from_json(config_map["data"][names.PLAN_FILE])


def begun(data, cluster=None, **spec):
    world = World(cluster or nodes(6, gpus=8))
    key = world.submit(job(**SPEC, parallelism=shape(data), **spec))
    world.train()
    for replica in range(data):
        waits(world, replica)
    world.settle()
    for replica in range(data):
        trains(world, replica, 1)
    world.settle()
    assert world.status(key)["state"] == "Training"
    world.cluster.told.clear()
    return world, key


def told(world):
    return dict(world.cluster.told)


def test_more_replicas_come_up_beside_the_gang_and_all_go_over_at_a_border():
    world, key = begun(1)
    before, cuts = pods(world), plan(world).cuts
    scaled(world, key, 2)
    come_up(world)
    assert set(pods(world)) - set(before) == {pod_name(1, 0), pod_name(1, 1)}
    assert world.status(key)["state"] == "Training"
    assert (world.status(key)["replicas"], world.status(key)["stagesReady"]) == (1, "2/2")
    assert not told(world), "they do not wait yet"

    waits(world, 1)
    world.settle()
    assert set(told(world)) == {pod_name(replica, stage) for replica in range(2) for stage in range(2)}
    for each in told(world).values():
        assert (each.at_border, each.number, len(each.members)) == (True, 2, 4)
        assert Plan.from_json(each.plan) == plan(world)
    assert (plan(world).parallelism.data, plan(world).cuts) == (2, cuts)
    assert plan(world).schedule.sequences == 24
    num_told = len(world.cluster.told)
    world.settle()
    assert len(world.cluster.told) == num_told, "all know"

    for replica in range(2):
        trains(world, replica, 2, stall_s=0.4)
    world.settle()
    world.cluster.start()
    world.settle()
    status = world.status(key)
    assert (status["replicas"], status["attempt"], status["restarts"]) == (2, 1, 0)
    assert (status["recovery"]["stallSeconds"], status["recovery"]["resizes"]) == ("0.4000", 1)
    assert world.condition(key, "Resized")["status"] == "True"
    assert {name: uid for name, uid in pods(world).items() if name in before} == before
    (event,) = (each.message for each in world.cluster.events if each.reason == "Resized")
    assert event == "Trains with 2 replicas since about step 7, from memory; training stood still for 0.4 s"


def test_a_further_replica_stands_where_its_stages_are_as_near_as_the_job_requires():
    leaf = "topology.test/leaf"
    cluster = [node(f"n{n}", labels={leaf: f"leaf-{n // 2}"}, pods="1") for n in range(6)]
    world, key = begun(1, cluster, topology={"levels": [leaf], "pipeline": {"required": leaf}})
    scaled(world, key, 3)
    joining = world.status(key)["recovery"]["resizing"]["joining"]
    leaves = {
        replica: {each["path"].split("/")[0] for each in joining if each["replica"] == replica} for replica in (1, 2)
    }
    assert [len(each) for each in leaves.values()] == [1, 1]
    assert leaves[1] != leaves[2]

    come_up(world)
    for replica in (1, 2):
        waits(world, replica)
    world.settle()
    assert world.status(key)["crossings"] == {leaf: 0, "node": 3}


def test_fewer_leave_at_a_border_and_their_end_is_no_failure():
    world, key = begun(2)
    kept = {name: uid for name, uid in pods(world).items() if name.startswith("gpt-r0")}
    scaled(world, key, 1)
    assert {each.number for each in told(world).values()} == {2}
    assert len(told(world)) == 4
    assert all(len(each.members) == 2 for each in told(world).values())
    assert len(pods(world)) == 4, "those that leave do so themselves"

    for stage in range(2):
        world.cluster.set_pod(world.cluster.pod(pod_name(1, stage)), phase="Succeeded", code=0)
        world.cluster.answers.pop(pod_name(1, stage))
    trains(world, 0, 2)
    world.settle()
    assert pods(world) == kept
    assert (world.status(key)["state"], world.status(key)["replicas"]) == ("Training", 1)
    assert "Resized" in world.told()
    assert "StageFailed" not in world.told()


def test_no_pod_of_more_replicas_is_let_go_before_all_of_them_stand():
    world, key = begun(1)
    world.cluster.refuse = lambda verb, item: (
        ForbiddenError("exceeded quota") if verb == "apply" and item["metadata"]["name"] == pod_name(1, 1) else None
    )
    before = pods(world)
    scaled(world, key, 2)
    world.settle()

    assert pods(world) == before
    resized = world.condition(key, "Resized")
    assert (resized["status"], resized["reason"]) == ("False", "JoiningFailed")
    assert "exceeded quota" in resized["message"]
    assert (world.status(key)["state"], world.status(key)["attempt"]) == ("Training", 1)


def test_one_that_dies_before_it_joins_leaves_the_gang_as_it_is_and_it_is_tried_again():
    world, key = begun(1)
    before = pods(world)
    scaled(world, key, 2)
    come_up(world)
    world.cluster.set_pod(world.cluster.pod(pod_name(1, 0)), phase="Failed", code=137, message="OOMKilled")
    world.settle()
    world.cluster.finish_deletions()
    world.settle()

    assert pods(world) == before
    assert not told(world)
    assert "ended: OOMKilled" in world.condition(key, "Resized")["message"]
    assert (world.status(key)["state"], world.status(key)["replicas"]) == ("Training", 1)

    world.cluster.pass_time(3600)
    come_up(world)
    waits(world, 1)
    world.settle()
    assert len(told(world)) == 4


def test_new_replicas_that_do_not_come_up_in_time_are_taken_back():
    world, key = begun(1)
    before = pods(world)
    scaled(world, key, 2)
    come_up(world)
    world.cluster.pass_time(121)
    world.settle()
    (event,) = (each.message for each in world.cluster.events if each.reason == "ResizeWaits")
    assert "not up within 120 s, spec.recovery.waitSeconds" in event
    terminating = {
        pod["metadata"]["name"] for pod in world.cluster.all_pods() if "deletionTimestamp" in pod["metadata"]
    }
    assert terminating == set(pods(world)) - set(before)
    assert world.status(key)["attempt"] == 1


def test_a_wish_that_is_taken_back_takes_back_what_came_up_for_it():
    world, key = begun(1)
    before = pods(world)
    scaled(world, key, 2)
    come_up(world)
    scaled(world, key, 1)
    world.cluster.finish_deletions()
    world.settle()
    assert pods(world) == before
    assert world.condition(key, "Resized")["status"] == "True"


def test_a_stage_that_is_lost_between_the_decision_and_the_border_is_replaced_in_the_new_gang():
    world, key = begun(1)
    scaled(world, key, 2)
    come_up(world)
    waits(world, 1)
    world.settle()
    world.cluster.told.clear()

    world.cluster.set_pod(world.cluster.pod(pod_name(0, 1)), phase="Failed", code=137)
    world.cluster.answers.pop(pod_name(0, 1))
    says(
        world, 0, 0, phase=Phase.STARTING, awaits_incarnation=True, lost=(Lost(replica=0, stage=1, why="its end"),)
    )  # fmt: skip
    come_up(world)
    waits(world, 1, moves_to=2)
    says(world, 0, 1, phase=Phase.STARTING, step=0, incarnation=0, awaits_incarnation=True)
    world.settle()

    assert len(told(world)) == 4
    for each in told(world).values():
        assert (each.at_border, each.number, len(each.members)) == (False, 3, 4)
        assert Plan.from_json(each.plan).parallelism.data == 2
    for replica in range(2):
        trains(world, replica, 3)
    world.settle()
    world.cluster.start()
    world.settle()
    status = world.status(key)
    assert (status["state"], status["replicas"], status["attempt"]) == ("Training", 2, 1)
    assert "resizing" not in status["recovery"]


@pytest.mark.parametrize("verb", ["refuse", "lose_answer"])
@pytest.mark.parametrize("deadly", range(1, 10))  # what is written: 3 statuses, 2 pods made, 2 let go, a plan, a number
def test_at_whatever_write_the_operator_dies_the_next_goes_on_from_the_status(verb, deadly):
    world, key = begun(1)
    before, left = pods(world), [deadly]

    def judge(*_):
        left[0] -= 1
        return ClusterError("killed") if left[0] == 0 else None

    def settle():
        for _ in range(2):
            world.settle()
            world.restart()

    setattr(world.cluster, verb, judge)
    world.cluster.edit(key, parallelism=shape(2))
    settle()
    come_up(world)
    waits(world, 1)
    settle()
    number = world.status(key)["recovery"]["incarnation"]
    assert left[0] <= 0, "it never died"
    assert all(world.cluster.answers[name].moves_to == number for name in pods(world))
    assert all(Plan.from_json(each.plan) == plan(world) for each in told(world).values())
    for replica in range(2):
        trains(world, replica, number)
    settle()
    status = world.status(key)
    assert (status["replicas"], status["attempt"], "resizing" in status["recovery"]) == (2, 1, False)
    assert {name: uid for name, uid in pods(world).items() if name in before} == before


def test_where_memory_does_not_do_it_goes_through_a_checkpoint_and_says_why():
    world = World(nodes(6, gpus=8))
    key = world.submit(job(**SPEC, parallelism=shape(1)))
    world.train()  # but they have not met yet
    scaled(world, key, 2)
    resizing = next(each.message for each in world.cluster.events if each.reason == "Resizing")
    assert "(not from memory: its stages are not all up and training); the stages write a checkpoint" in resizing
    assert world.status(key)["attempt"] == 2


def test_a_replica_that_still_stands_at_the_border_does_not_train_yet():
    world, key = begun(1)
    scaled(world, key, 2)
    come_up(world)
    waits(world, 1)
    world.settle()
    trains(world, 0, 2, stands_still=True)
    trains(world, 1, 2, stands_still=True)
    world.settle()
    assert "resizing" in world.status(key)["recovery"]
    assert "Resized" not in world.told()


@pytest.mark.parametrize(
    ("texts", "layers"),
    [
        (("0-3", "4-4"), (4, 1)),
        (("0-1, 6-7", "2-3, 4-5"), (2, 2, 2, 2)),
        (("0-1", "0-1"), (2,)),
        (("0-1", "3-4"), ()),
        ((), ()),
    ],
)
def test_the_layers_of_each_stretch_are_read_from_what_the_status_says_of_the_stages(texts, layers):
    stages = tuple(PlannedStage(stage=number, layers=text) for number, text in enumerate(texts))
    summary = PlanSummary(stages=stages, source="analytic")
    assert shapes.kept_layers(PipelineJobStatus(plan=summary)) == layers
