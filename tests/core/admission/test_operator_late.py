"""Late binding: another scheduler chooses the nodes, and the stages are numbered along them, once for each attempt."""

from datetime import timedelta

import pytest

from pipelinejob.base import names
from pipelinejob.contract.plan import Plan
from pipelinejob_operator.cluster import ConflictError, InvalidError
from support.clusters.operatorworld import Mortal, World
from support.manifests.jobs import job, node, nodes

LATE = {"scheduling": {"binding": "Late"}}
# Where a scheduler that knows nothing of stages puts four pods: at each step into the other leaf.
SCATTERED = {"p0": "a0", "p1": "b0", "p2": "a1", "p3": "b1"}


def leaves(*, gpus=1):
    return [node(f"{leaf}{n}", gpus=gpus, labels={"topology.kubernetes.io/rack": leaf}) for leaf in "ab" for n in "01"]


def late(name="gpt", stages=4, **spec):
    return job(name, parallelism={"pipeline": stages}, **(LATE | spec))


def begin(world, **where):
    """Let another scheduler bind the pods, and the operator see it."""
    world.settle()
    world.cluster.bind(**(where or SCATTERED))
    world.settle()


def train(world, **where):
    begin(world, **where)
    world.cluster.start()
    world.settle()


def ranks(world):
    """Return what each pod was told."""
    return {
        pod["metadata"]["name"]: pod["metadata"].get("annotations", {}).get(names.ANNOTATION_RANK)
        for pod in world.cluster.all_pods()
    }


def path(world, key):
    return [each["path"].split("/")[0] for each in world.status(key)["stages"]]


def test_pods_are_made_free_to_go_without_a_node_or_a_rank():
    world = World(leaves())
    key = world.submit(late())

    world.settle()

    pods = world.cluster.all_pods()
    assert [pod["metadata"]["name"] for pod in pods] == ["gpt-p0", "gpt-p1", "gpt-p2", "gpt-p3"]
    for pod in pods:
        assert not {"schedulingGates", "affinity", "nodeName"} & pod["spec"].keys()
        assert pod["spec"]["hostname"] == pod["metadata"]["name"]
        assert not {names.LABEL_STAGE, names.LABEL_REPLICA} & pod["metadata"]["labels"].keys()
        variables = {each["name"] for each in pod["spec"]["containers"][0]["env"]}
        assert not {names.ENV_STAGE, names.ENV_REPLICA, names.ENV_RENDEZVOUS} & variables
        assert names.ENV_RANK in variables
    assert world.condition(key, "Placed")["reason"] == "NotBound"
    assert world.condition(key, "Placed")["message"] == "0 of 4 pods are bound; the stages are numbered when all are"


def test_what_the_other_scheduler_is_told_in_the_template_stays():
    world = World(leaves())
    template = {
        "metadata": {"annotations": {"scheduling.k8s.io/group-name": "mine"}, "labels": {"kai.scheduler/queue": "q"}},
        "spec": {"schedulerName": "volcano", "schedulingGates": [{"name": "theirs"}]},
    }
    world.submit(late(template=template))

    world.settle()

    pod = world.cluster.pod("gpt-p0")
    assert pod["spec"]["schedulerName"] == "volcano"
    assert pod["spec"]["schedulingGates"] == [{"name": "theirs"}]
    assert pod["metadata"]["annotations"]["scheduling.k8s.io/group-name"] == "mine"
    assert pod["metadata"]["labels"]["kai.scheduler/queue"] == "q"


def test_pods_keep_off_nodes_that_refused_one_of_late():
    world = World(leaves())
    key = world.submit(late())
    until = (world.cluster.now + timedelta(seconds=60)).strftime("%Y-%m-%dT%H:%M:%SZ")
    refusal = {"node": "a0", "until": until, "message": "no healthy devices present"}
    world.cluster._put({**world.cluster.job(key), "status": {"refusedNodes": [refusal]}})

    world.settle()

    required = world.cluster.pod("gpt-p0")["spec"]["affinity"]["nodeAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    field = {"key": "metadata.name", "operator": "NotIn", "values": ["a0"]}
    assert required == {"nodeSelectorTerms": [{"matchFields": [field]}]}


def test_nobody_is_numbered_before_all_are_bound():
    world = World(leaves())
    key = world.submit(late())
    world.settle()
    for name in ("gpt-p0", "gpt-p1", "gpt-p2"):
        pod = world.cluster.pod(name)
        world.cluster._put(pod | {"spec": pod["spec"] | {"nodeName": SCATTERED[name[-2:]]}})

    world.settle()

    assert set(ranks(world).values()) == {None}
    assert world.condition(key, "Placed")["message"].startswith("3 of 4 pods are bound")


def test_stages_are_numbered_along_the_leaves_that_the_pods_came_to():
    world = World(leaves())
    key = world.submit(late())

    begin(world)

    assert path(world, key) == ["a", "a", "b", "b"]
    assert world.status(key)["crossings"]["rack"] == 1
    assert world.condition(key, "Placed")["message"] == (
        "4 stages on 4 nodes, numbered after they were bound; 1 cross rack, 3 cross node"
    )
    told = {each["pod"]: f"0/{each['stage']}" for each in world.status(key)["stages"]}
    assert ranks(world) == told
    pod = world.cluster.pod(world.status(key)["stages"][2]["pod"])
    assert (pod["metadata"]["labels"][names.LABEL_REPLICA], pod["metadata"]["labels"][names.LABEL_STAGE]) == ("0", "2")


def test_all_meet_at_the_pod_of_the_first_stage():
    world = World(leaves())
    world.submit(late())

    begin(world, p0="b0", p1="a0", p2="a1", p3="b1")

    first = next(name for name, rank in ranks(world).items() if rank == "0/0")
    assert first == "gpt-p1"
    meeting = {pod["metadata"]["annotations"][names.ANNOTATION_RENDEZVOUS] for pod in world.cluster.all_pods()}
    assert meeting == {f"{first}.gpt.default.svc.cluster.local:29500"}


def test_a_numbered_gang_trains_as_any_other_and_ends():
    world = World(leaves())
    key = world.submit(late())
    train(world)
    assert world.status(key)["state"] == "Training"

    for pod in world.cluster.all_pods():
        world.cluster.set_pod(pod, phase="Succeeded", code=0)
    world.settle()

    assert world.status(key)["state"] == "Succeeded"


def test_a_stage_becomes_only_a_pod_that_was_made_for_one_like_it():
    world = World(leaves())
    head = {"spec": {"containers": [{"name": "trainer", "resources": {"requests": {"memory": "9Gi"}}}]}}
    key = world.submit(late(stageTemplates=[{"stage": 3, "template": head}]))

    begin(world, p0="b0", p1="a0", p2="b1", p3="a1")

    assert world.status(key)["stages"][3]["pod"] == "gpt-p3"
    assert path(world, key) == ["b", "b", "a", "a"]


def test_a_template_that_changes_between_does_not_confuse_who_is_alike():
    world = World(leaves())
    head = {"spec": {"containers": [{"name": "trainer", "resources": {"requests": {"memory": "9Gi"}}}]}}
    key = world.submit(late(stageTemplates=[{"stage": 3, "template": head}]))
    world.settle()
    world.cluster.edit(key, stageTemplates=[])

    begin(world, p0="b0", p1="a0", p2="b1", p3="a1")

    assert world.status(key)["stages"][3]["pod"] == "gpt-p3"


def test_a_gang_that_is_not_all_bound_in_time_is_taken_back_whole():
    world = World(leaves())
    key = world.submit(late())
    world.settle()
    pod = world.cluster.pod("gpt-p1")
    words = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/4 nodes are available"}
    world.cluster.set_pod(pod, phase="Pending", conditions=[words])
    world.cluster.pass_time(299)
    world.settle()
    assert len(world.cluster.all_pods()) == 4

    world.cluster.pass_time(1)
    world.settle()

    assert world.cluster.all_pods() == []
    placed = world.condition(key, "Placed")
    assert placed["reason"] == "GangTimeout"
    assert "4 of 4 pods were not bound within 300 s" in placed["message"]
    assert "0/4 nodes are available" in placed["message"]

    world.cluster.pass_time(60)
    train(world)
    assert (world.status(key)["state"], world.status(key)["attempt"]) == ("Training", 2)


@pytest.mark.parametrize("end", ["deleted", "failed"])
def test_a_pod_lost_before_the_numbers_takes_the_gang_back(end):
    world = World(leaves())
    key = world.submit(late())
    world.settle()
    pod = world.cluster.pod("gpt-p1")
    world.cluster._put(pod | {"spec": pod["spec"] | {"nodeName": "a0"}, "status": {"phase": "Running"}})
    if end == "deleted":
        world.cluster.remove(world.cluster.pod("gpt-p1"))
    else:
        world.cluster.set_pod(world.cluster.pod("gpt-p1"), phase="Failed", code=137, message="out of memory")

    world.settle()

    assert world.condition(key, "Placed")["reason"] == "GangLost"
    assert "pod gpt-p1 went before the gang was whole" in world.condition(key, "Placed")["message"]


def test_a_node_that_refuses_a_pod_before_the_numbers_is_kept_off_by_the_next():
    world = World(leaves())
    key = world.submit(late())
    world.settle()
    pod = world.cluster.pod("gpt-p1")
    words = {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no healthy devices present"}
    world.cluster._put(pod | {"spec": pod["spec"] | {"nodeName": "a0"}, "status": words})

    world.settle()

    placed = world.condition(key, "Placed")
    assert placed["reason"] == "GangLost"
    assert "UnexpectedAdmissionError: no healthy devices present" in placed["message"]
    assert placed["message"].endswith("; node a0 will be left out until 2026-01-01T00:02:00Z")
    assert [each["node"] for each in world.status(key)["refusedNodes"]] == ["a0"]


def test_a_pod_that_nobody_bound_yet_is_made_again_if_somebody_deletes_it():
    world = World(leaves())
    world.submit(late())
    world.settle()
    world.cluster.remove(world.cluster.pod("gpt-p1"))

    begin(world)

    assert set(ranks(world).values()) == {"0/0", "0/1", "0/2", "0/3"}


def test_a_failed_stage_restarts_the_gang_which_is_numbered_anew():
    world = World(leaves())
    key = world.submit(late())
    train(world)
    failed = world.status(key)["stages"][2]["pod"]
    world.cluster.set_pod(world.cluster.pod(failed), phase="Failed", code=1)
    world.settle()
    world.cluster.finish_deletions()
    world.cluster.pass_time(5)

    train(world, p0="a0", p1="a1", p2="b0", p3="b1")

    status = world.status(key)
    assert (status["state"], status["attempt"], status["restarts"]) == ("Training", 2, 1)
    assert [each["restarts"] for each in status["stages"]] == [0, 0, 1, 0]
    assert [each["pod"] for each in status["stages"]] == ["gpt-p0", "gpt-p1", "gpt-p2", "gpt-p3"]


def test_a_suspended_gang_gives_all_back_even_while_it_is_being_bound():
    world = World(leaves())
    key = world.submit(late())
    world.settle()

    world.cluster.edit(key, suspend=True)
    world.settle()

    assert world.cluster.all_pods() == []
    assert world.status(key)["state"] == "Suspended"


def test_the_plan_that_pods_mount_is_there_before_them_and_stays():
    world = World(leaves())
    world.submit(late())
    world.settle()
    config_map = world.cluster.objects["ConfigMap", "default", "gpt-plan"]
    assert Plan.from_json(config_map["data"]["plan.json"]).placement is None

    begin(world)

    assert world.cluster.objects["ConfigMap", "default", "gpt-plan"]["data"] == config_map["data"]


def test_a_late_bound_job_stands_in_nobodys_way():
    world = World([*leaves(), *nodes(2)])
    world.submit(late())
    world.settle()
    world.cluster.pass_time(1)
    other = world.submit(job("other"))

    world.settle()

    assert world.status(other)["state"] == "Starting"


def test_a_template_that_the_cluster_finds_invalid_ends_the_job():
    world = World(leaves())
    key = world.submit(late())
    world.cluster.refuse = lambda verb, item: InvalidError("bad") if verb == "apply" and item["kind"] == "Pod" else None

    world.settle()

    assert world.condition(key, "Succeeded")["reason"] == "InvalidTemplate"


@pytest.mark.parametrize("verb", ["refuse", "lose_answer"])
@pytest.mark.parametrize("deadly", range(1, 18))
def test_a_controller_that_dies_after_any_write_numbers_an_attempt_once(deadly, verb):
    world = Mortal(leaves(), deadly=deadly, verb=verb)
    key = world.submit(late())

    train(world)

    told = {each["pod"]: f"0/{each['stage']}" for each in world.status(key)["stages"]}
    assert ranks(world) == told
    assert (world.status(key)["state"], world.status(key)["attempt"]) == ("Training", 1)


def test_a_numbering_that_was_not_written_is_told_to_nobody():
    world = World(leaves())
    key = world.submit(late())
    world.settle()
    world.cluster.bind(**SCATTERED)
    world.cluster.refuse = lambda verb, item: ConflictError("changed") if verb == "status" else None
    with pytest.raises(ConflictError):
        world.reconcile(key)

    assert set(ranks(world).values()) == {None}
