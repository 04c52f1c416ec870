"""What admission makes of a gang's pods: reckoned with before they are made, looked at before they go, never undone."""

import copy
from itertools import pairwise

import pytest

from pipelinejob.base import names
from pipelinejob_operator.admission.pods.alike import KEEP_S
from pipelinejob_operator.cluster import ForbiddenError, UnavailableError
from support.clusters.operatorworld import World
from support.manifests.jobs import job, node, nodes

TOLERATION = {"key": "sandbox", "operator": "Equal", "value": "kata", "effect": "NoSchedule"}


def mirrored(pod):
    pod["spec"]["containers"][0]["image"] = "mirror.corp/trainer:1"
    return pod


def with_toleration(pod):
    pod["spec"]["tolerations"].append(TOLERATION)
    return pod


def with_sidecar(pod):
    pod["spec"]["initContainers"] = [
        {"name": "mesh", "image": "mesh:1", "restartPolicy": "Always", "resources": {"requests": {"cpu": "2"}}}
    ]
    return pod


def with_selector(pod):
    pod["spec"]["nodeSelector"] = {"pool": "kata"}
    return pod


def with_memory(amount):
    def change(pod):
        pod["spec"]["containers"][0]["resources"]["requests"]["memory"] = amount
        return pod

    return change


def with_overhead(pod):
    pod["spec"]["overhead"] = {"memory": "6Gi", "cpu": "1"}
    return pod


def with_host_network(pod):
    pod["spec"]["hostNetwork"] = True
    for port in pod["spec"]["containers"][0]["ports"]:
        port["hostPort"] = port["containerPort"]
    return pod


def placed_on(world, key):
    return [stage.get("node") for stage in world.status(key)["stages"]]


@pytest.mark.parametrize(
    "change", [mirrored, with_toleration, with_sidecar, with_selector, with_memory("2Gi"), with_overhead]
)
@pytest.mark.parametrize("tells", [True, False], ids=["told by a dry run", "seen on the pods"])
def test_nothing_that_admission_added_is_undone_when_a_gang_goes(change, tells):
    world = World([node("n0", gpus=2, labels={"pool": "kata"})])
    world.cluster.mutate, world.cluster.tells_admission = change, tells
    world.reconcile(world.submit(job()))
    made = {pod["metadata"]["name"]: copy.deepcopy(pod["spec"]) for pod in world.cluster.all_pods()}

    world.train()

    for pod in world.cluster.all_pods():
        spec = {field: value for field, value in pod["spec"].items() if field not in {"nodeName", "affinity"}}
        before = {field: value for field, value in made[pod["metadata"]["name"]].items() if field != "schedulingGates"}
        assert spec == before
        assert pod["status"]["phase"] == "Running"


@pytest.mark.parametrize("tells", [True, False], ids=["told by a dry run", "seen on the pods"])
@pytest.mark.parametrize(
    ("change", "poor", "rich"),
    [
        (with_memory("32Gi"), {"memory": "8Gi"}, {}),
        (with_overhead, {"memory": "8Gi"}, {}),
        (with_sidecar, {"cpu": "2"}, {}),
        (with_selector, {}, {"labels": {"pool": "kata"}}),
    ],
    ids=["requests", "overhead", "sidecar", "selector"],
)
def test_a_gang_is_placed_by_what_its_pods_ask_for_once_admitted(change, poor, rich, tells):
    """The first node would do for the pods as they are written; the second for those that admission makes of them."""
    world = World([node("n0", **poor), node("n1", **rich)])
    world.cluster.mutate, world.cluster.tells_admission = change, tells
    key = world.submit(job(parallelism={"pipeline": 1}))
    world.settle()
    if not tells:
        assert world.condition(key, "Placed")["reason"] == "NoLongerFits"
        assert "stage 0 of replica 0 does not fit node n0" in world.condition(key, "Placed")["message"]
        assert world.cluster.all_pods() == []
        world.cluster.pass_time(10)
    world.train()

    assert (world.status(key)["state"], placed_on(world, key)) == ("Training", ["n1"])


def test_a_toleration_that_admission_adds_opens_the_nodes_that_it_tolerates():
    tainted = node("n0", gpus=2)
    tainted["spec"]["taints"] = [{"key": "sandbox", "value": "kata", "effect": "NoSchedule"}]
    world = World([tainted])
    world.cluster.mutate = with_toleration
    key = world.submit(job())
    world.train()

    assert world.status(key)["state"] == "Training"


def test_what_admission_asks_for_is_said_where_no_node_has_it():
    world = World(nodes(1))
    world.cluster.mutate = with_memory("96Gi")
    key = world.submit(job(parallelism={"pipeline": 1}))
    world.settle()

    assert world.condition(key, "Placed")["reason"] == "NeverFits"
    assert "has 64Gi memory free" in world.condition(key, "Placed")["message"]
    assert world.cluster.all_pods() == []


def test_admission_is_asked_once_for_each_attempt():
    world = World(nodes(1))
    asked = []
    world.cluster.mutate = lambda pod: asked.append(pod["metadata"]["name"]) or pod
    running = world.submit(job("running", parallelism={"pipeline": 1}))
    world.settle()
    asked.clear()
    world.cluster.pass_time(KEEP_S)  # until then, what was told of the first job's pod counts for this one's
    waits = world.submit(job("waits", parallelism={"pipeline": 1}))
    world.settle()
    for _ in range(5):
        world.reconcile(waits)
        world.reconcile(running)

    assert asked == ["waits-r0-s0"]


def test_what_admission_adds_costs_a_new_plan_only_if_it_changes_where_pods_may_stand():
    world = World(nodes(2))
    drafts = []
    planner = world.controller._planner
    draft = planner._draft
    planner._draft = lambda job, ground: drafts.append(job.key.name) or draft(job, ground)
    world.cluster.mutate = mirrored
    world.submit(job("mirrored"))
    world.settle()
    world.cluster.pass_time(KEEP_S)
    world.cluster.mutate = with_memory("8Gi")
    world.submit(job("enlarged"))
    world.settle()

    assert drafts == ["mirrored", "enlarged"]  # as long as both look alike, they share a draft


def test_what_is_promised_is_what_admission_makes_of_it():
    """Two jobs for one node: as written both fit, as admitted one of them does."""
    world = World([node("n0", gpus=2, memory="64Gi")])
    world.cluster.mutate = with_memory("48Gi")
    first, second = (world.submit(job(name, parallelism={"pipeline": 1})) for name in ("first", "second"))
    world.reconcile(first)
    world.cache.freeze()
    world.reconcile(second)
    world.cache.thaw()
    world.settle()

    assert [world.status(key)["state"] for key in (first, second)] == ["Starting", "Waiting"]


def test_a_webhook_that_fails_is_told_of_and_the_job_holds_nothing_meanwhile():
    world = World(nodes(2))
    words = '500 failed calling webhook "mesh.example.org": connection refused'

    def fail(_):
        raise UnavailableError(words)

    world.cluster.mutate = fail
    key = world.submit(job())
    world.settle()

    assert world.condition(key, "Placed")["reason"] == "NotAdmitted"
    assert world.condition(key, "Placed")["message"].endswith(words)
    assert world.cluster.all_pods() == []

    world.cluster.mutate = lambda pod: pod
    world.cluster.pass_time(10)
    world.train()
    assert world.status(key)["state"] == "Training"


def test_what_the_cluster_would_refuse_is_said_before_anything_is_held_and_asked_again_ever_more_seldom():
    world = World(nodes(2))
    asked = []

    def refuse(_):
        asked.append(world.cluster.now)
        raise ForbiddenError("exceeded quota: compute")

    world.cluster.mutate = refuse
    key = world.submit(job())
    for _ in range(80):
        world.settle()
        world.cluster.pass_time(10)

    assert world.condition(key, "Placed")["reason"] == "Refused"
    assert world.condition(key, "Placed")["message"] == (
        "the cluster would refuse the job's pods: exceeded quota: compute"
    )
    assert [(later - earlier).total_seconds() for earlier, later in pairwise(asked)] == [10, 20, 40, 80, 160, 300]
    assert (world.status(key)["attempt"], world.cluster.all_pods()) == (0, [])


def test_a_gang_whose_room_was_taken_before_it_was_let_go_is_placed_anew():
    world = World([node("n0", gpus=2), node("n1", gpus=2)])
    key = world.submit(job(parallelism={"pipeline": 1}))
    world.reconcile(key)
    (place,) = placed_on(world, key)
    taken = {"containers": [{"name": "x", "resources": {"requests": {"nvidia.com/gpu": "2"}}}], "nodeName": place}
    world.cluster._put({"kind": "Pod", "metadata": {"name": "thief", "namespace": "other"}, "spec": taken})
    world.settle()
    assert world.condition(key, "Placed")["reason"] == "NoLongerFits"

    world.cluster.pass_time(10)
    world.train()
    assert placed_on(world, key) == [({"n0", "n1"} - {place}).pop()]


# Volumes


def claim(name, volume=None):
    spec = {"volumeName": volume} if volume else {}
    return {"kind": "PersistentVolumeClaim", "metadata": {"namespace": "default", "name": name}, "spec": spec}


def volume(name, zone):
    requirement = {"key": "topology.kubernetes.io/zone", "operator": "In", "values": [zone]}
    required = {"nodeSelectorTerms": [{"matchExpressions": [requirement]}]}
    return {"kind": "PersistentVolume", "metadata": {"name": name}, "spec": {"nodeAffinity": {"required": required}}}


def test_a_gang_goes_where_its_bound_volume_can_be_reached():
    world = World([node(f"n{zone}", gpus=2, labels={"topology.kubernetes.io/zone": zone}) for zone in "ab"])
    world.cluster._put(claim("shared", "pv-1"))
    world.cluster._put(volume("pv-1", "b"))
    key = world.submit(job(checkpoint={"volume": {"claimName": "shared"}}))
    world.train()

    assert placed_on(world, key) == ["nb", "nb"]


def test_a_claim_that_nobody_made_is_named_and_the_job_holds_nothing_until_it_is_made():
    world = World(nodes(2))
    key = world.submit(job(checkpoint={"volume": {"claimName": "typo"}}))
    world.settle()

    assert world.condition(key, "Placed")["reason"] == "NoVolume"
    assert world.condition(key, "Placed")["message"] == (
        "there is no PersistentVolumeClaim typo in namespace default; create it"
    )
    assert world.cluster.all_pods() == []

    world.cluster._put(claim("typo"))
    world.train()
    assert world.status(key)["state"] == "Training"


def test_the_gate_of_another_stays_when_a_gang_goes():
    world = World(nodes(2))
    others = {"name": "quota.example.org/held"}
    world.submit(job(template={"spec": {"schedulingGates": [others]}}))
    world.settle()

    assert [pod["spec"]["schedulingGates"] for pod in world.cluster.all_pods()] == [[others], [others]]
    assert names.GATE_GANG not in str(world.cluster.all_pods())
