"""The plan follows the place, what a spec leaves open is chosen for the cluster, and a broken gang comes back."""

import json

import pytest

from pipelinejob.contract.plan import Plan
from support.clusters.operatorworld import World
from support.manifests.jobs import job, node, nodes

RACK = "topology.kubernetes.io/rack"
PRODUCT = "nvidia.com/gpu.product"
ON_H100 = {"nodeSelector": {PRODUCT: "NVIDIA-H100-80GB-HBM3"}}
LAYERS = {"gpt": {"numLayers": 22, "hiddenSize": 1024, "numHeads": 16}}


def racks(**sizes):
    """Build nodes of one GPU: `racks(a=2)` gives a0 and a1."""
    return [node(f"{name}{index}", labels={RACK: name}) for name, size in sizes.items() for index in range(size)]


def lose(world, *names):
    for name in names:
        world.cluster.objects.pop(("Node", "", name))
        for pod in world.cluster.all_pods():
            if pod["spec"].get("nodeName") == name:
                world.cluster.objects.pop(("Pod", "default", pod["metadata"]["name"]))


def come_back(world):
    world.settle()
    world.cluster.finish_deletions()
    world.train()


def stood(world, key):
    return [stage["node"] for stage in world.status(key)["stages"]]


def plan_of(world, name="gpt"):
    config_map = world.cluster.objects["ConfigMap", "default", f"{name}-plan"]
    return Plan.from_json(config_map["data"]["plan.json"])


# The plan follows the place


def test_a_stage_on_a_slower_gpu_gets_fewer_layers():
    labels = [{PRODUCT: "NVIDIA-H100-80GB-HBM3"}, {PRODUCT: "NVIDIA-A100-SXM4-80GB"}]
    world = World([node(f"n{index}", labels=each) for index, each in enumerate(labels)])
    key = world.submit(job(model=LAYERS))
    world.train()

    plan = plan_of(world)
    by_device = {stage.device: stage.num_layers for stage in plan.stages}
    assert by_device["H100-SXM"] > 1.5 * by_device["A100-SXM-80GB"]
    shown = [each["layers"] for each in world.status(key)["plan"]["stages"]]
    assert shown == [f"{stage.chunks[0][0]}-{stage.chunks[0][1] - 1}" for stage in plan.stages]


def test_a_prediction_counts_the_links_that_the_place_has():
    """Two nodes of one rack, or one in each of two: the latter's boundary crosses what joins racks."""
    spec = {"model": LAYERS, "topology": {"levels": [RACK]}}
    near, far = World(racks(a=2)), World(racks(a=1, b=1))
    steps = []
    for world in (near, far):
        key = world.submit(job(**spec))
        world.train()
        steps.append(plan_of(world).links[0].bytes_per_s)
        assert world.status(key)["placement"]["penalty"] is not None

    assert plan_of(far).prediction.step_s >= plan_of(far).prediction.closest_step_s > 0
    assert steps[0] >= steps[1]


def test_a_device_that_cannot_hold_its_stage_is_no_place_for_it():
    large = {"gpt": {"numLayers": 40, "hiddenSize": 5120, "numHeads": 40}}
    world = World([node("n0", labels={PRODUCT: "Tesla-T4"}), node("n1", labels={PRODUCT: "Tesla-T4"})])
    key = world.submit(job(model=large))
    world.settle()

    assert world.condition(key, "Succeeded")["reason"] == "InvalidSpec"
    assert "no split of the layers over 2 stages fits into 14.9 GiB a stage" in str(world.status(key)["conditions"])


def test_nodes_whose_devices_are_too_small_are_left_to_others():
    """Most of the cluster could hold it, but only what could not is free now."""
    large = {"gpt": {"numLayers": 40, "hiddenSize": 3072, "numHeads": 24}}
    many = [node(f"h{index}", labels={PRODUCT: "NVIDIA-H100-80GB-HBM3"}) for index in range(4)]
    world = World([*many, *(node(f"t{index}", labels={PRODUCT: "Tesla-T4"}) for index in range(2))])
    running = world.submit(job("running", parallelism={"pipeline": 4}, template={"spec": ON_H100}))
    world.train()
    key = world.submit(job("large", model=large))
    world.settle()

    placed = world.condition(key, "Placed")
    assert (placed["status"], placed["reason"]) == ("False", "NoPlan")
    assert placed["message"].startswith("there are nodes for it, but no plan for them: spec.parallelism.pipeline: no ")
    small = world.submit(job("small"))
    world.train()
    assert stood(world, small) == ["t0", "t1"]

    for pod in world.cluster.pods(running):
        world.cluster.set_pod(pod, phase="Succeeded", code=0)
    world.train()
    assert all(name.startswith("h") for name in stood(world, key))


def test_tensor_parallelism_that_cannot_be_is_refused_with_the_way_out():
    world = World(nodes(2, gpus=2))
    key = world.submit(job(parallelism={"pipeline": 2, "tensor": 3}))
    world.settle()

    refused = world.condition(key, "Stalled")
    assert (refused["status"], refused["reason"]) == ("True", "InvalidSpec")
    assert refused["message"].startswith(
        "spec.parallelism.tensor: 3 ranks cannot share 4 heads equally; use a divisor of 4, or other sizes"
    )
    assert not world.cluster.all_pods()


def test_more_gpus_for_a_stage_than_any_node_has_are_refused_with_the_way_out():
    world = World(nodes(4, gpus=2))
    key = world.submit(job(parallelism={"pipeline": 2, "tensor": 4}))
    world.settle()

    told = world.condition(key, "Stalled")
    assert (told["status"], told["reason"]) == ("True", "NeverFits")
    assert "4 nvidia.com/gpu on one node; the closest, n0, has 2 nvidia.com/gpu free" in told["message"]
    assert told["message"].endswith("ask for less, or add a larger node")


def test_a_stages_pod_asks_for_the_gpus_that_share_its_layers():
    world = World(nodes(2, gpus=2))
    world.submit(job(parallelism={"pipeline": 2, "tensor": 2}))
    world.settle()

    pods = world.cluster.all_pods()
    assert [pod["spec"]["containers"][0]["resources"]["limits"] for pod in pods] == [{"nvidia.com/gpu": "2"}] * 2
    assert not any(pod["spec"].get("schedulingGates") for pod in pods)


def test_a_topology_profile_that_is_not_there_yet_is_waited_for():
    world = World(nodes(2))
    key = world.submit(job(topology={"profile": "ours"}))
    world.settle()

    assert world.condition(key, "Placed")["reason"] == "NoPlan"
    assert "there is no profile 'ours'" in world.condition(key, "Placed")["message"]


def test_a_topology_profile_of_the_cluster_says_what_is_near():
    world = World([node(f"n{index}", labels={"example.org/row": "xy"[index % 2]}) for index in range(4)])
    profile = {"levels": [{"name": "row", "keys": ["example.org/row"]}]}
    world.cluster._put({"kind": "TopologyProfile", "metadata": {"name": "ours"}, "spec": profile})
    key = world.submit(job(topology={"profile": "ours", "pipeline": {"required": "row"}}))
    world.settle()

    assert stood(world, key) in (["n0", "n2"], ["n1", "n3"])
    assert world.status(key)["stages"][0]["path"].split("/")[0] in {"x", "y"}


# What a spec leaves open

OPEN = {"model": LAYERS, "parallelism": {"gpus": 4}, "schedule": {"globalBatchSize": 16}}


def test_what_a_spec_leaves_open_is_stored_before_the_first_pod_exists():
    world = World(nodes(4))
    key = world.submit(job(**OPEN))
    first = []
    world.cluster.refuse = lambda verb, item: first.append((verb, len(world.cluster.all_pods())))
    world.settle()
    world.cluster.refuse = lambda verb, item: None

    chosen = world.status(key)["chosen"]
    assert first[0] == ("status", 0)
    assert chosen["pipeline"] * chosen["data"] <= 4
    assert chosen["tensor"] == 1
    assert chosen["microBatches"] * chosen["microBatchSize"] * chosen["data"] == 16
    assert len(world.cluster.all_pods()) == chosen["pipeline"] * chosen["data"]
    assert "Chosen" in world.told()


def test_the_choice_is_for_the_cluster_and_not_for_more_than_it_has():
    world = World(nodes(2))
    key = world.submit(job(**OPEN))
    world.settle()

    chosen = world.status(key)["chosen"]
    assert chosen["pipeline"] * chosen["data"] == 2


def test_a_choice_is_kept_over_restarts_and_made_anew_after_a_suspension():
    world = World(nodes(4))
    key = world.submit(job(**OPEN))
    world.train()
    chosen = world.status(key)["chosen"]
    for index in range(4):
        world.cluster._put(node(f"more{index}"))

    pods = world.cluster.all_pods()
    words = json.dumps({"exitCode": 0, "reason": "Stopped", "message": "after a checkpoint", "step": 5})
    world.cluster.set_pod(pods[0], phase="Failed", code=1, message="boom")
    come_back(world)
    assert world.status(key)["attempt"] == 2
    assert world.status(key)["chosen"] == chosen

    world.cluster.edit(key, suspend=True)
    world.settle()
    for pod in world.cluster.all_pods():
        world.cluster.set_pod(pod, phase="Failed", code=143, message=words)
    world.settle()
    world.cluster.finish_deletions()
    world.settle()
    assert "chosen" not in world.status(key)

    world.cluster.edit(key, suspend=False, parallelism={"gpus": 8})
    world.train()
    anew = world.status(key)["chosen"]
    assert anew["pipeline"] * anew["data"] == 8
    assert world.status(key)["state"] == "Training"


def test_a_cluster_without_gpus_yet_is_waited_for():
    world = World([node("n0", gpus=0)])
    key = world.submit(job(**OPEN))
    world.settle()
    assert world.condition(key, "Placed")["reason"] == "NoPlan"
    assert world.status(key)["state"] == "Waiting"

    for each in nodes(4):
        world.cluster._put(each)
    world.train()
    assert world.status(key)["state"] == "Training"


# A broken gang comes back


@pytest.mark.parametrize("num_lost", [1, 2, 3])
def test_lost_nodes_are_made_up_for_nearby_at_once_and_healthy_stages_stay(num_lost):
    world = World(racks(a=8, b=8))
    key = world.submit(job(model=LAYERS, parallelism={"pipeline": 6}, topology={"levels": [RACK]}))
    world.train()
    before = stood(world, key)
    rack = before[0][0]
    lost = before[1 : 1 + num_lost]

    lose(world, *lost)
    come_back(world)

    after = stood(world, key)
    status = world.status(key)
    assert status["state"] == "Training"
    assert (status["attempt"], status["disruptions"]) == (2, 1)
    kept = [(old, new) for old, new in zip(before, after, strict=True) if old not in lost]
    assert all(old == new for old, new in kept)
    near = sum(each[0] == rack for each in after)
    assert near == min(6, 8 - num_lost)


def test_a_stage_that_crashed_comes_back_to_its_node():
    world = World(nodes(8))
    key = world.submit(job(parallelism={"pipeline": 3}))
    world.train()
    before = stood(world, key)
    world.cluster.set_pod(world.cluster.pod("gpt-r0-s1"), phase="Failed", code=1, message="boom")

    world.settle()
    assert [stage["lastNode"] for stage in world.status(key)["stages"]] == before
    come_back(world)

    assert stood(world, key) == before
    assert "lastNode" not in world.status(key)["stages"][0]


def test_a_place_that_another_took_meanwhile_is_made_up_for_like_a_lost_one():
    world = World(nodes(4))
    key = world.submit(job(parallelism={"pipeline": 2}))
    world.train()
    before = stood(world, key)
    world.cluster.set_pod(world.cluster.pod("gpt-r0-s1"), phase="Failed", code=1, message="boom")
    world.settle()
    busy = {"name": "busy", "resources": {"requests": {"nvidia.com/gpu": "1"}}}
    taken = {"kind": "Pod", "metadata": {"name": "foreign", "namespace": "other"}}
    world.cluster._put(taken | {"spec": {"nodeName": before[1], "containers": [busy]}, "status": {"phase": "Running"}})
    come_back(world)

    after = stood(world, key)
    assert after[0] == before[0]
    assert after[1] not in before
