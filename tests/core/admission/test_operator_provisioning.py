"""A job that waits for nodes which do not exist asks an autoscaler for them, says what came of it, and stops asking."""

import pytest

from pipelinejob.base.errors import InvalidManifestError
from pipelinejob_operator.cluster import InvalidError
from pipelinejob_operator.objects.peers.provisioning import request_name
from pipelinejob_operator.validation.validate import validate
from support.clusters.operatorworld import World
from support.manifests.jobs import job, node

CONSUMES = "autoscaling.x-k8s.io/consume-provisioning-request"
CLASS = "autoscaling.x-k8s.io/provisioning-class-name"
ATOMIC = "best-effort-atomic-scale-up.autoscaling.x-k8s.io"


@pytest.fixture
def world():
    world = World([node("n0", gpus=1)])
    world.cluster.provisioning = True
    return world


def asking(**provisioning):
    return job(scheduling={"provisioning": provisioning})


def requests(world):
    return [item for (kind, _, _), item in world.cluster.objects.items() if kind == "ProvisioningRequest"]


def templates(world):
    return [item for (kind, _, _), item in sorted(world.cluster.objects.items()) if kind == "PodTemplate"]


def answer(world, **conditions):
    """Have the autoscaler say so of the job's request."""
    (made,) = requests(world)
    time = world.cluster._time()
    told = [
        {"type": kind, "status": "True", "reason": kind, "message": message, "lastTransitionTime": time}
        for kind, message in conditions.items()
    ]
    world.cluster._put(made | {"status": {"conditions": told}})


def message(world, key):
    return world.condition(key, "Placed")["message"]


def test_a_job_without_room_asks_for_the_nodes_of_the_whole_gang(world):
    key = world.submit(asking(parameters={"ValidUntilSeconds": "3600"}))
    world.settle()

    (made,) = requests(world)
    (template,) = templates(world)
    assert made["spec"] == {
        "provisioningClassName": ATOMIC,
        "parameters": {"ValidUntilSeconds": "3600"},
        "podSets": [{"count": 2, "podTemplateRef": {"name": template["metadata"]["name"]}}],
    }
    container = template["template"]["spec"]["containers"][0]
    assert container["resources"]["requests"]["nvidia.com/gpu"] == "1"
    assert "schedulingGates" not in template["template"]["spec"]
    assert f"asked for nodes by ProvisioningRequest {made['metadata']['name']}" in message(world, key)
    assert world.condition(key, "Stalled")["status"] == "False"
    assert world.cluster.all_pods() == []


def test_a_second_pass_asks_for_nothing_more(world):
    world.submit(asking())
    world.settle()
    before = len(world.cluster.writes)

    world.settle()

    assert len(world.cluster.writes) == before


def test_a_job_that_does_not_want_nodes_asks_for_none(world):
    world.submit(job())
    world.settle()

    assert requests(world) == []


def test_a_job_that_has_room_asks_for_no_nodes(world):
    world.cluster._put(node("n1", gpus=1))
    world.submit(asking())
    world.settle()

    assert requests(world) == []


@pytest.mark.parametrize(
    ("conditions", "said", "stalled"),
    [
        ({"Accepted": "in line"}, ": accepted", "False"),
        ({"Accepted": "in line", "Provisioned": "2 nodes"}, ": provisioned; waits until the nodes are ready", "False"),
        ({"Failed": "no quota in zone a"}, ": Failed: no quota in zone a; it is made anew in 5 minutes", "True"),
    ],
)
def test_what_the_autoscaler_answers_is_in_the_jobs_sentence(world, conditions, said, stalled):
    key = world.submit(asking())
    world.settle()

    answer(world, **conditions)
    world.settle()

    assert message(world, key).endswith(said)
    assert world.condition(key, "Stalled")["status"] == stalled


def test_pods_that_take_the_nodes_say_so_and_the_request_goes_when_all_are_up(world):
    key = world.submit(asking())
    world.settle()
    name = requests(world)[0]["metadata"]["name"]
    answer(world, Provisioned="2 nodes")
    world.cluster._put(node("n1", gpus=1))
    world.settle()

    pods = world.cluster.all_pods()
    assert [pod["metadata"]["annotations"] for pod in pods] == [{CONSUMES: name, CLASS: ATOMIC}] * 2
    assert len(requests(world)) == 1

    world.train()
    assert world.status(key)["state"] == "Training"
    assert (requests(world), templates(world)) == ([], [])


@pytest.mark.parametrize("kind", ["BookingExpired", "CapacityRevoked"])
def test_nodes_that_went_are_asked_for_anew(world, kind):
    world.submit(asking())
    world.settle()
    (before,) = requests(world)

    answer(world, Provisioned="2 nodes", **{kind: "too late"})
    world.settle()

    (made,) = requests(world)
    assert made["metadata"]["uid"] != before["metadata"]["uid"]
    assert made["metadata"]["name"] == before["metadata"]["name"]
    assert templates(world)[0]["metadata"]["ownerReferences"][0]["uid"] == made["metadata"]["uid"]


def test_after_a_failure_it_asks_again_but_not_at_once(world):
    world.submit(asking())
    world.settle()
    (before,) = requests(world)
    answer(world, Failed="no quota")
    world.settle()
    assert requests(world)[0]["metadata"]["uid"] == before["metadata"]["uid"]

    world.cluster.pass_time(300)
    world.settle()

    assert requests(world)[0]["metadata"]["uid"] != before["metadata"]["uid"]


def test_a_changed_wish_is_asked_for_anew(world):
    key = world.submit(asking())
    world.settle()

    world.cluster.edit(key, scheduling={"provisioning": {"className": "check-capacity.autoscaling.x-k8s.io"}})
    world.settle()

    assert requests(world)[0]["spec"]["provisioningClassName"] == "check-capacity.autoscaling.x-k8s.io"


@pytest.mark.parametrize("change", [{"suspend": True}, {"scheduling": {}}], ids=["suspended", "taken back"])
def test_who_waits_for_nodes_no_more_asks_no_more(world, change):
    key = world.submit(asking())
    world.settle()
    assert requests(world)

    world.cluster.edit(key, **change)
    world.settle()

    assert (requests(world), templates(world)) == ([], [])


@pytest.mark.parametrize(
    ("served", "said"),
    [(None, "the operator was not told to ask (--provisioning"), (False, "serves no ProvisioningRequest")],
)
def test_where_nobody_can_be_asked_the_job_says_so(world, served, said):
    world.cluster.provisioning = served
    key = world.submit(asking())
    world.settle()

    assert said in message(world, key)
    assert world.condition(key, "Stalled")["status"] == "True"
    assert requests(world) == []


def test_a_request_that_is_refused_is_told_of_and_tried_again(world):
    world.cluster.refuse = lambda verb, item: (
        InvalidError("spec.parameters: too many") if verb == "apply" and item["kind"] == "ProvisioningRequest" else None
    )
    key = world.submit(asking())
    world.reconcile(key)
    world.reconcile(key)
    placed = world.condition(key, "Placed")
    assert placed["reason"] == "ProvisioningRefused"
    assert "refused the ProvisioningRequest that asks for nodes: spec.parameters: too many" in placed["message"]
    statuses = [verb for verb, _ in world.cluster.writes].count("status")
    world.reconcile(key)
    assert [verb for verb, _ in world.cluster.writes].count("status") == statuses

    world.cluster.refuse = lambda verb, item: None
    world.settle()

    assert world.condition(key, "Placed")["reason"] == "NeverFits"
    assert len(requests(world)) == 1


def test_a_request_that_another_made_under_the_name_is_left_alone(world):
    key = world.submit(asking())
    name = request_name(key.name, world.cluster.job(key)["metadata"]["uid"])
    foreign = {"kind": "ProvisioningRequest", "metadata": {"name": name, "namespace": "default"}, "spec": {"a": 1}}
    world.cluster.create(foreign)
    world.reconcile(key)

    assert requests(world)[0]["spec"] == {"a": 1}
    assert world.condition(key, "Placed")["reason"] == "ProvisioningRefused"


def test_a_late_bound_job_needs_no_request_and_may_not_ask():
    with pytest.raises(InvalidManifestError, match="provisioning is for jobs that bind Early"):
        validate(job(scheduling={"binding": "Late", "provisioning": {}}))
