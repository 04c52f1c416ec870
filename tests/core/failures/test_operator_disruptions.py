"""What is taken away from a gang: nodes, evictions and sweeps, which are nobody's failure."""

import pytest

from support.clusters.failing_pods import carry_on, fail
from support.clusters.operatorworld import World
from support.manifests.jobs import job, nodes


@pytest.fixture
def world():
    return World(nodes(3))


@pytest.mark.parametrize(
    "case", ["deleted", "deleting", "evicted", "disrupted", "node gone", "silent node and a lost peer"]
)
def test_a_pod_that_is_taken_away_counts_against_no_limit(world, case):
    key = world.submit(job(failurePolicy={"maxRestarts": 0}))
    world.train()
    pod = world.cluster.pod("gpt-r0-s1")
    if case == "deleted":
        world.cluster.remove(pod)
        world.cluster.finish_deletions()
    elif case == "deleting":
        world.cluster.remove(pod)
    elif case == "evicted":
        world.cluster.set_pod(pod, phase="Failed", reason="Evicted")
    elif case == "disrupted":
        target = {"type": "DisruptionTarget", "status": "True", "message": "Eviction API: evicting"}
        world.cluster.set_pod(pod, phase="Failed", code=143, conditions=[target])
    elif case == "silent node and a lost peer":
        world.cluster.lose_node(pod["spec"]["nodeName"])
        fail(world, "gpt-r0-s0", 75)
    else:
        world.cluster.objects.pop(("Node", "", pod["spec"]["nodeName"]))

    carry_on(world)

    status = world.status(key)
    assert (status["state"], status["attempt"], status["restarts"], status["disruptions"]) == ("Training", 2, 0, 1)


def test_a_kubelet_that_is_silent_for_a_moment_stops_nobody(world):
    key = world.submit(job())
    world.train()
    world.cluster.lose_node(world.status(key)["stages"][1]["node"])

    world.settle()

    assert (world.status(key)["state"], world.status(key)["attempt"]) == ("Training", 1)


def test_a_lost_node_is_not_used_again(world):
    key = world.submit(job())
    world.train()
    lost = world.status(key)["stages"][1]["node"]
    world.cluster.lose_node(lost)
    fail(world, "gpt-r0-s0", 75)

    carry_on(world)

    assert world.status(key)["state"] == "Training"
    assert lost not in {stage["node"] for stage in world.status(key)["stages"]}


def test_a_pod_that_died_with_its_node_is_told_with_a_way_out(world):
    key = world.submit(job())
    world.train()
    world.cluster.lose_node(world.status(key)["stages"][1]["node"])
    fail(world, "gpt-r0-s0", 75)
    world.settle()
    world.cluster.pass_time(31)

    world.settle()

    assert world.condition(key, "Stalled")["reason"] == "PodsStuck"
    assert "out-of-service" in world.condition(key, "Stalled")["message"]


def test_a_completed_stage_that_is_swept_away_is_not_a_failure(world):
    key = world.submit(job())
    world.train()
    world.cluster.set_pod(world.cluster.pod("gpt-r0-s0"), phase="Succeeded", code=0)
    world.settle()
    world.cluster.remove(world.cluster.pod("gpt-r0-s0"))
    world.settle()
    assert world.status(key)["attempt"] == 1

    world.cluster.set_pod(world.cluster.pod("gpt-r0-s1"), phase="Succeeded", code=0)
    world.settle()

    assert world.status(key)["state"] == "Succeeded"


@pytest.mark.parametrize(
    "words",
    [
        'Usage of EmptyDir volume "tmp" exceeds the limit "1Gi". ',
        "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. ",
        'Container trainer exceeded its local ephemeral storage limit "1Gi". ',
        "The node was low on resource: memory. x was using 9Gi, request is 1Gi, has larger consumption of memory.",
    ],
)
def test_a_pod_evicted_for_its_own_use_counts_as_a_failure_in_the_kubelets_words(world, words):
    key = world.submit(job(failurePolicy={"maxRestarts": 1}))
    world.train()
    target = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet", "message": words}
    for _ in range(2):
        pod = world.cluster.pod("gpt-r0-s1")
        evict(world, pod, words, conditions=[target])
        carry_on(world)

    assert (world.status(key)["restarts"], world.status(key)["disruptions"]) == (1, 0)
    assert world.condition(key, "Succeeded")["reason"] == "RestartsExhausted"
    assert words.strip() in world.condition(key, "Succeeded")["message"]


def evict(world, pod, words, **status):
    world.cluster.set_pod(pod, phase="Failed", code=143, reason="Evicted", **status)
    evicted = world.cluster.pod(pod["metadata"]["name"])
    world.cluster._put(evicted | {"status": evicted["status"] | {"message": words}})


def test_a_pod_that_requested_nothing_is_not_blamed_for_a_full_node(world):
    key = world.submit(job(failurePolicy={"maxRestarts": 0}))
    world.train()
    words = (
        "The node was low on resource: ephemeral-storage. Container trainer was using 108Ki, request is 0, "
        "has larger consumption of ephemeral-storage. "
    )
    evict(world, world.cluster.pod("gpt-r0-s1"), words)

    carry_on(world)

    assert (world.status(key)["state"], world.status(key)["disruptions"]) == ("Training", 1)


def lose_a_pod(world):
    world.cluster.remove(world.cluster.pod("gpt-r0-s1"))
    world.cluster.finish_deletions()
    world.settle()
    world.cluster.finish_deletions()
    world.cluster.pass_time(300)
    world.train()


def test_a_gang_that_is_taken_away_again_and_again_ends_and_says_so(world):
    key = world.submit(job())
    world.train()
    for _ in range(20):
        lose_a_pod(world)
    assert (world.status(key)["state"], world.status(key)["disruptions"]) == ("Training", 20)

    lose_a_pod(world)

    succeeded = world.condition(key, "Succeeded")
    assert (succeeded["status"], succeeded["reason"]) == ("False", "DisruptedTooOften")
    assert "taken away 21 times in a row" in succeeded["message"]


def test_disruptions_of_a_gang_that_ran_for_long_in_between_never_end_it(world):
    key = world.submit(job())
    world.train()
    for _ in range(25):
        world.cluster.pass_time(601)
        lose_a_pod(world)

    assert (world.status(key)["state"], world.status(key)["disruptions"]) == ("Training", 25)
    assert world.status(key)["disruptionsInARow"] == 1
