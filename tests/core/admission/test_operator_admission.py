"""Room for whole gangs or none: who gets it, who waits, and what the one who waits is told."""

import asyncio
import threading

import pytest

from pipelinejob_operator.cluster import ClusterError, ConflictError, Key
from pipelinejob_operator.controller.reconcile import Controller
from support.clusters.operatorworld import World, check
from support.manifests.jobs import foreign, job, node, nodes


def test_a_job_without_room_holds_nothing_and_says_what_is_missing():
    world = World(nodes(2))
    world.cluster._put(foreign("busy", "n1", **{"nvidia.com/gpu": "1"}))
    key = world.submit(job())

    world.settle()

    placed = world.condition(key, "Placed")
    assert (world.status(key)["state"], placed["reason"]) == ("Waiting", "NoRoom")
    assert "nvidia.com/gpu" in placed["message"]
    assert world.cluster.all_pods() == [world.cluster.pod("busy", "other")]
    assert world.told() == ["Waiting"]
    assert world.reconcile(key) is None, "the line wakes it"


def test_a_waiting_job_starts_when_room_comes_free():
    world = World(nodes(2))
    world.cluster._put(foreign("busy", "n1", **{"nvidia.com/gpu": "1"}))
    key = world.submit(job())
    world.settle()

    world.cluster.objects.pop(("Pod", "other", "busy"))
    world.train()

    assert world.status(key)["state"] == "Training"


def test_a_job_that_never_fits_says_so_and_blocks_nobody():
    world = World(nodes(2))
    huge = world.submit(job("huge", parallelism={"pipeline": 3}))
    small = world.submit(job("small"))

    world.settle()

    assert world.condition(huge, "Stalled")["reason"] == "NeverFits"
    assert world.status(small)["state"] == "Starting"


def test_daemons_count_in_what_the_empty_cluster_could_hold():
    world = World(nodes(2))
    world.cluster._put(foreign("daemon", "n1", owner="DaemonSet", **{"nvidia.com/gpu": "1"}))
    key = world.submit(job())

    world.settle()

    assert world.condition(key, "Placed")["reason"] == "NeverFits"


def test_the_oldest_waiting_job_goes_first_even_if_a_younger_one_would_fit():
    world = World(nodes(3))
    running = world.submit(job("a"))
    world.train()
    world.cluster.pass_time(1)
    older = world.submit(job("z", parallelism={"pipeline": 3}))
    world.settle()
    world.cluster.pass_time(1)
    younger = world.submit(job("b", parallelism={"pipeline": 1}))
    world.settle()
    assert world.condition(younger, "Placed")["message"] == (
        "waits behind default/z, which is older and waits for room itself"
    )

    world.cluster.remove(world.cluster.job(running))
    world.train()

    assert world.status(older)["state"] == "Training"
    assert world.status(younger)["state"] == "Waiting"


def test_room_promised_to_a_job_whose_pods_are_not_there_yet_is_taken():
    world = World(nodes(2))
    first, second = world.submit(job("a")), world.submit(job("b"))
    world.cluster.refuse = lambda verb, item: ConflictError("slow") if verb == "apply" else None
    with pytest.raises(ConflictError):
        world.reconcile(first)
    world.restart()

    world.reconcile(second)

    assert world.status(first)["state"] == "Starting"
    assert world.condition(second, "Placed")["reason"] == "NoRoom"


def test_a_promise_counts_while_the_cache_is_still_stale():
    world = World(nodes(2))
    first, second = world.submit(job("a")), world.submit(job("b"))
    world.cache.freeze()
    world.reconcile(first)

    world.reconcile(second)

    assert world.status(first)["stagesReady"] == "0/2"
    assert world.condition(second, "Placed")["reason"] == "NoRoom"


def test_a_pass_on_a_stale_job_does_not_forget_the_promise_that_stands():
    world = World(nodes(2))
    first, second = world.submit(job("a")), world.submit(job("b"))
    world.cache.freeze()
    world.reconcile(first)
    with pytest.raises(ConflictError):
        world.reconcile(first)

    world.reconcile(second)

    assert world.condition(second, "Placed")["reason"] == "NoRoom"


def test_a_write_whose_answer_was_lost_keeps_its_promise():
    world = World(nodes(2))
    first, second = world.submit(job("a")), world.submit(job("b"))
    world.cluster.refuse = lambda verb, item: ClusterError("connection reset") if verb == "status" else None
    with pytest.raises(ClusterError):
        world.reconcile(first)
    world.cluster.refuse = lambda verb, item: None

    world.reconcile(second)
    assert not world.status(second).get("stages")

    world.settle()
    assert world.status(first)["state"] == "Starting"


def test_a_promise_that_was_never_written_is_forgotten_when_its_job_is_suspended():
    world = World(nodes(2))
    first, second = world.submit(job("a")), world.submit(job("b"))
    world.cluster.refuse = lambda verb, item: ClusterError("connection refused") if verb == "status" else None
    with pytest.raises(ClusterError):
        world.reconcile(first)
    world.cluster.refuse = lambda verb, item: None
    world.cluster.edit(first, suspend=True)

    world.settle()

    assert (world.status(first)["state"], world.status(second)["state"]) == ("Suspended", "Starting")


def test_concurrent_passes_never_give_one_gpu_to_two_jobs():
    world = World(nodes(4))
    keys = [world.submit(job(f"j{index}")) for index in range(5)]

    async def race():
        await asyncio.gather(*(world.controller.reconcile(key) for key in keys))

    asyncio.run(race())

    assert [bool(world.status(key).get("stages")) for key in keys] == [True, True, False, False, False]
    check(world)


def test_n_jobs_that_race_for_room_for_k_all_finish():
    world = World(nodes(4))
    keys = [world.submit(job(f"j{index}")) for index in range(7)]

    for _ in keys:
        world.train()
        for pod in world.cluster.all_pods():
            world.cluster.set_pod(pod, phase="Succeeded", code=0)
        world.settle()

    assert {world.status(key)["state"] for key in keys} == {"Succeeded"}


@pytest.mark.parametrize(
    ("hinder", "template"),
    [
        ({"unschedulable": True}, None),
        ({"taints": [{"key": "team", "value": "x", "effect": "NoSchedule"}]}, None),
        ({}, {"spec": {"nodeSelector": {"pool": "a100"}}}),
        (
            {},
            {
                "spec": {
                    "affinity": {
                        "nodeAffinity": {
                            "requiredDuringSchedulingIgnoredDuringExecution": {
                                "nodeSelectorTerms": [
                                    {"matchExpressions": [{"key": "pool", "operator": "In", "values": ["a100"]}]}
                                ]
                            }
                        }
                    }
                }
            },
        ),
    ],
)
def test_nodes_that_the_scheduler_would_refuse_are_not_chosen(hinder, template):
    refused = node("n0", gpus=4)
    refused["spec"] = hinder
    world = World([refused, node("n1", gpus=4, labels={"pool": "a100"})])
    key = world.submit(job(**({"template": template} if template else {})))

    world.settle()

    assert {stage["node"] for stage in world.status(key)["stages"]} == {"n1"}


def test_a_tolerated_taint_is_no_hindrance():
    tainted = node("n0", gpus=2)
    tainted["spec"] = {"taints": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]}
    world = World([tainted])
    key = world.submit(job(template={"spec": {"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]}}))

    world.settle()

    assert world.status(key)["state"] == "Starting"


def test_a_node_that_states_no_limit_of_pods_takes_pods():
    free = node("n0", gpus=2)
    del free["status"]["allocatable"]["pods"]
    world = World([free])
    key = world.submit(job())

    world.settle()

    assert world.status(key)["state"] == "Starting"


def test_a_level_that_does_not_exist_is_the_authors_error():
    world = World(nodes(2))
    key = world.submit(job(topology={"pipeline": {"required": "nonsense"}}))

    world.settle()

    assert world.condition(key, "Succeeded")["reason"] == "InvalidSpec"
    assert "nonsense" in world.condition(key, "Succeeded")["message"]


def test_namespaces_do_not_mix():
    world = World(nodes(4))
    keys = [world.submit(job(namespace="red")), world.submit(job(namespace="blue"))]

    world.train()

    assert [world.status(key)["state"] for key in keys] == ["Training", "Training"]
    assert [len(world.cluster.pods(Key(ns, "gpt"))) for ns in ("red", "blue")] == [2, 2]


def test_a_long_search_for_a_plan_holds_up_no_other_job():
    world = World(nodes(4))
    slow = world.submit(job("slow", training={"steps": 77}))
    quick = world.submit(job("quick"))
    has_begun, is_found = threading.Event(), threading.Event()

    def profile_of(spec):
        if spec.training.steps == 77:
            has_begun.set()
            assert is_found.wait(timeout=20)

    controller = Controller(
        world.cluster, settings=world.settings, clock=lambda: world.cluster.now, profile_source=profile_of
    )

    async def passes():
        search = asyncio.create_task(controller.reconcile(slow))
        while not has_begun.is_set():
            await asyncio.sleep(0.01)
        await controller.reconcile(quick)
        was_searching = not search.done()
        is_found.set()
        await search
        return was_searching

    assert asyncio.run(passes())
    assert [world.condition(key, "Placed")["status"] for key in (slow, quick)] == ["True", "True"]
