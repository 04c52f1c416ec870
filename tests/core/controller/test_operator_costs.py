"""A job that names measured costs is planned with what the config map holds, and waits where it holds none."""

import json

import pytest

from pipelinejob.contract.plan import CostSource
from pipelinejob.costs.layers import LayerCost, Profile
from pipelinejob_operator.cluster import ForbiddenError
from pipelinejob_operator.objects.costs import costs_config_map
from support.clusters.operatorworld import World
from support.manifests.jobs import job, nodes

LAYERS = 8  # six blocks, embedding and head
COSTS = {"configMap": "measured"}


def profile(forward_s):
    layer = LayerCost(
        name="x",
        forward_s=forward_s,
        backward_input_s=forward_s,
        backward_weight_s=forward_s,
        parameter_bytes=100,
        activation_bytes=10,
        output_bytes=1,
    )
    return Profile(source=CostSource.PROFILED, layers=(layer,) * LAYERS)


def config_map(forward_s, **metadata):
    made = costs_config_map(profile(forward_s), name="measured", namespace="default")
    return {**made, "metadata": made["metadata"] | metadata}


def plan_of(world, key):
    (item,) = (each for each in world.cluster.furniture(key) if each["kind"] == "ConfigMap")
    return json.loads(next(iter(item["data"].values())))


def submitted(world):
    key = world.submit(job(costs=COSTS))
    world.settle(key)
    return key


def test_a_plan_is_made_from_the_costs_that_a_job_names():
    world = World(nodes(2))
    world.cluster.create(config_map(0.5))

    plan = plan_of(world, submitted(world))

    assert plan["prediction"]["source"] == "profiled"
    # 4 of 8 layers a stage, 3 x 0.5 s each, for (4 micro-batches + 1)
    assert plan["prediction"]["stepS"] == pytest.approx(4 * 1.5 * 5, rel=0.01)


def test_a_job_waits_for_costs_that_are_not_there_and_goes_on_when_they_come():
    world = World(nodes(2))
    key = submitted(world)
    waiting = world.condition(key, "Placed")
    world.cluster.create(config_map(0.5))
    world.settle(key)

    assert waiting["status"] == "False"
    assert "config map measured is not in the job's namespace; write it with `pipelinejob profile" in waiting["message"]
    assert world.condition(key, "Placed")["status"] == "True"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "has no entry profile.json, it holds nothing; name another in spec.costs.key"),
        ({"costs.json": "{}"}, "has no entry profile.json, it holds costs.json"),
        ({"profile.json": "seconds"}, "profile.json is no profile"),
        ({"profile.json": "{}"}, "profile.json is no profile: source: Field required"),
    ],
)
def test_a_config_map_that_holds_no_profile_is_told_of(data, said):
    world = World(nodes(2))
    world.cluster.create({**config_map(0.5), "data": data})

    key = submitted(world)

    assert said in world.condition(key, "Placed")["message"]


def test_costs_of_another_model_or_micro_batch_are_told_of_and_end_nothing():
    world = World(nodes(2))
    other = profile(0.5).model_copy(update={"micro_batch_size": 3})
    world.cluster.create(costs_config_map(other, name="measured", namespace="default"))
    layers = world.submit(job("layers", costs=COSTS, model={"gpt": {"numLayers": 3, "hiddenSize": 64, "numHeads": 4}}))
    rows = world.submit(job("rows", costs=COSTS))
    world.settle(layers, rows)

    assert "has 5 layers but the profile measured 8; profile this model again" in placed(world, layers)["message"]
    assert "is 1 but the profile measured micro-batches of 3; use 3, or profile" in placed(world, rows)["message"]
    assert [world.status(key)["state"] for key in (layers, rows)] == ["Waiting", "Waiting"]


def placed(world, key):
    return world.condition(key, "Placed")


def test_a_change_is_seen_at_the_next_plan():
    world = World(nodes(2))
    world.cluster.create(config_map(0.5))
    key = submitted(world)
    first = plan_of(world, key)["prediction"]["stepS"]
    world.cluster.create(config_map(0.25))
    world.settle(key)
    unchanged = plan_of(world, key)["prediction"]["stepS"]
    world.train(key)
    world.cluster.set_pod(world.cluster.pods(key)[0], phase="Failed", code=1)
    world.settle(key)
    world.cluster.finish_deletions()
    world.train(key)

    assert unchanged == first
    assert plan_of(world, key)["prediction"]["stepS"] == pytest.approx(first / 2, rel=0.01)


def test_an_operator_that_may_not_read_config_maps_says_so():
    world = World(nodes(2))

    async def refused(kind, namespace, name):
        raise ForbiddenError("configmaps is forbidden")

    world.cluster.look_up = refused
    key = submitted(world)

    assert "may not be read by the operator: configmaps is forbidden" in world.condition(key, "Placed")["message"]


def test_a_job_that_waits_for_its_costs_holds_up_nobody():
    world = World(nodes(2))
    first = submitted(world)
    second = world.submit(job("second"))
    world.settle(first, second)

    assert world.condition(first, "Placed")["status"] == "False"
    assert world.condition(second, "Placed")["status"] == "True"
