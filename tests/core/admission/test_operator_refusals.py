"""A node that refused a gang's pod is left out for a time, by every operator that reads the status; the rest is not."""

from datetime import UTC, datetime, timedelta

from pipelinejob.spec.status import PipelineJobStatus
from pipelinejob_operator.admission.refusals import MAX_REFUSALS, standing_refusals, why_left_out, with_refusals
from support.clusters.operatorworld import World
from support.manifests.jobs import job, node, nodes

NOW = datetime(2026, 1, 1, tzinfo=UTC)
UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/3 nodes are available: 1 node(s) had a device claim that nobody can meet",
}


def refuse(world):
    for pod in world.cluster.all_pods():
        world.cluster.set_pod(pod, phase="Pending", conditions=[UNSCHEDULABLE])
    world.cluster.pass_time(300)
    world.settle()


def placed_on(world, key):
    return [stage.get("node") for stage in world.status(key)["stages"]]


def test_after_a_refusal_a_fitting_node_that_is_free_is_taken():
    world = World([node("n0", gpus=2), node("n1", gpus=2)])
    key = world.submit(job())
    world.settle()
    (first,) = set(placed_on(world, key))
    refuse(world)

    assert world.condition(key, "Placed")["reason"] == "GangTimeout"
    assert world.condition(key, "Placed")["message"].endswith(
        f"; node {first} will be left out until {later(300 + 120)}"
    )

    world.restart()
    world.cluster.pass_time(10)
    world.train()
    assert world.status(key)["state"] == "Training"
    assert set(placed_on(world, key)) == {"n0", "n1"} - {first}


def later(seconds):
    return (NOW + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_where_no_other_node_is_free_the_job_says_which_is_left_out_until_when_and_holds_nobody_up():
    world = World([node("n0", gpus=2)])
    key = world.submit(job())
    world.settle()
    refuse(world)
    world.cluster.pass_time(10)
    world.settle()

    assert world.condition(key, "Placed")["reason"] == "NoRoom"
    assert world.condition(key, "Placed")["message"] == (
        f"no node can take a pod: n0 refused it and is left out until {later(420)}: stage 0 of replica 0: "
        f"{UNSCHEDULABLE['message']}; make one ready, or add some"
    )
    other = world.submit(job("other"))
    world.train()
    assert world.status(other)["state"] == "Training"


def test_a_node_is_tried_again_after_the_time_that_was_stated():
    world = World([node("n0", gpus=2)])
    key = world.submit(job())
    world.settle()
    refuse(world)
    world.cluster.pass_time(121)
    world.train()

    assert (world.status(key)["state"], placed_on(world, key)) == ("Training", ["n0", "n0"])


def test_a_scheduler_that_says_nothing_makes_no_node_suspect():
    world = World(nodes(2))
    key = world.submit(job())
    world.settle()
    world.cluster.pass_time(300)
    world.settle()

    assert world.condition(key, "Placed")["reason"] == "GangTimeout"
    assert not world.status(key).get("refusedNodes")


def test_a_node_that_refuses_again_and_again_is_left_out_longer_each_time():
    status, now, lengths = PipelineJobStatus(), NOW, []
    for _ in range(8):
        status = with_refusals(status, {"n0": "no"}, now=now, for_s=120)
        until = datetime.fromisoformat(status.refused_nodes[0].until)
        lengths.append((until - now).total_seconds() / 60)
        now = until + timedelta(seconds=1)

    assert lengths == [2, 4, 8, 16, 32, 64, 64, 64]


def test_a_node_that_was_well_for_long_begins_anew():
    status = with_refusals(PipelineJobStatus(), {"n0": "no"}, now=NOW, for_s=120)
    status = with_refusals(status, {"n1": "no"}, now=NOW + timedelta(hours=1), for_s=120)

    assert [each.node for each in status.refused_nodes] == ["n1"]


def test_what_is_remembered_is_bounded_and_the_latest_counts():
    status = PipelineJobStatus()
    for number in range(MAX_REFUSALS + 10):
        status = with_refusals(status, {f"n{number:03}": "x" * 5000}, now=NOW, for_s=120)

    assert len(status.refused_nodes) == MAX_REFUSALS
    assert status.refused_nodes[-1].node == f"n{MAX_REFUSALS + 9:03}"
    assert len(status.model_dump_json()) < 40_000


def test_what_refused_is_said_until_its_time_is_over():
    status = with_refusals(PipelineJobStatus(), {"n0": "stage 0: no such device"}, now=NOW, for_s=120)

    assert why_left_out(status, NOW) == {
        "n0": "refused it and is left out until 2026-01-01T00:02:00Z: stage 0: no such device"
    }
    assert standing_refusals(status, NOW + timedelta(seconds=120)) == ()
