"""What ends before a container runs is the node's doing: no exit code is invented, and another node is tried."""

import pytest

from support.clusters.operatorworld import World
from support.manifests.jobs import job, node, nodes

NO_DEVICE = "Pod was rejected: Allocate failed due to no healthy devices present; cannot allocate unhealthy devices"
RULES = [{"action": "Fail", "onExitCodes": [1, 128, 137]}]


@pytest.fixture
def world():
    return World([node("n0", gpus=2), node("n1", gpus=2)])


@pytest.fixture
def key(world):
    key = world.submit(job(failurePolicy={"maxRestarts": 0, "rules": RULES}))
    come_up(world)
    return key


def come_up(world):
    """Bring pods to their nodes; none trains yet."""
    world.settle()
    world.cluster.bind()
    world.cluster.start(ready=False)
    world.settle()


def reject(world, name="gpt-r0-s1", *, reason, message=NO_DEVICE, **status):
    pod = world.cluster.pod(name)
    world.cluster.set_pod(pod, phase="Failed", reason=reason, **status)
    pod = world.cluster.pod(name)
    containers = status.get("containerStatuses")
    world.cluster._put(pod | {"status": pod["status"] | {"message": message, "containerStatuses": containers}})


def begin_again(world, seconds=300):
    world.settle()
    world.cluster.finish_deletions()
    world.cluster.pass_time(seconds)
    world.train()


REFUSALS = [
    *("UnexpectedAdmissionError", "OutOfcpu", "OutOfpods", "OutOfnvidia.com/gpu", "NodeAffinity", "NodePorts"),
    *("TopologyAffinityError", "Evicted", "Preempting", "Terminated", "NodeShutdown", "AWordOfTomorrowsKubelets"),
]


@pytest.mark.parametrize("reason", REFUSALS)
def test_a_pod_that_its_kubelet_refuses_is_a_disruption_and_goes_to_another_node(world, key, reason):
    first = world.status(key)["stages"][1]["node"]
    reject(world, reason=reason)

    world.settle()
    told = world.condition(key, "Ready")["message"]
    assert "exitCode" not in world.status(key)["stages"][1]
    begin_again(world, seconds=0)

    status = world.status(key)
    assert f"was taken away: {reason}: {NO_DEVICE}; node {first} will be left out until 2026-01-01T00:02:00Z" in told
    assert (status["state"], status["restarts"], status["disruptions"]) == ("Training", 0, 1)
    assert first not in {stage["node"] for stage in status["stages"]}


def test_a_pod_that_failed_without_a_word_before_a_container_ran_is_a_disruption(world, key):
    world.cluster.set_pod(world.cluster.pod("gpt-r0-s1"), phase="Failed")

    world.settle()

    assert (world.status(key)["restarts"], world.status(key)["disruptions"]) == (0, 1)
    assert "the pod failed before a container of it ran" in world.condition(key, "Ready")["message"]


def test_a_pod_that_is_marked_as_failed_while_its_trainer_runs_was_taken_away(world, key):
    trainer = {"name": "trainer", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}
    world.cluster.set_pod(world.cluster.pod("gpt-r0-s1"), phase="Failed", containerStatuses=[trainer])

    world.settle()

    assert (world.status(key)["restarts"], world.status(key)["disruptions"]) == (0, 1)
    assert not world.status(key).get("refusedNodes")


def test_a_refusal_after_a_kubelets_restart_is_no_exit_of_the_trainer(world, key):
    lost = {"exitCode": 137, "reason": "ContainerStatusUnknown", "message": "could not be located"}
    reject(
        world,
        reason="UnexpectedAdmissionError",
        containerStatuses=[{"name": "trainer", "state": {"terminated": lost}, "restartCount": 0}],
    )

    world.settle()

    assert (world.status(key)["restarts"], world.status(key)["disruptions"]) == (0, 1)
    assert "exitCode" not in world.status(key)["stages"][1]


def test_a_container_that_the_kubelet_lost_is_a_disruption(world, key):
    lost = {"exitCode": 137, "reason": "ContainerStatusUnknown", "message": "could not be located"}
    waiting = {"waiting": {"reason": "ContainerCreating"}}
    trainer = {"name": "trainer", "state": waiting, "lastState": {"terminated": lost}, "restartCount": 1}
    world.cluster.set_pod(world.cluster.pod("gpt-r0-s1"), phase="Running", containerStatuses=[trainer])

    world.settle()

    assert (world.status(key)["restarts"], world.status(key)["disruptions"]) == (0, 1)


def test_a_pod_that_is_sent_away_before_it_ran_tells_nothing_of_its_node(world, key):
    target = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "preempted"}
    world.cluster.set_pod(world.cluster.pod("gpt-r0-s1"), phase="Failed", conditions=[target])

    world.settle()

    assert world.status(key)["disruptions"] == 1
    assert not world.status(key).get("refusedNodes")


def test_a_pod_that_is_refused_everywhere_ends_the_job_after_the_bound_for_disruptions():
    world = World(nodes(60, gpus=2))
    key = world.submit(job(failurePolicy={"maxRestarts": 0}))
    come_up(world)
    for _ in range(21):
        reject(world, reason="UnexpectedAdmissionError")
        begin_again(world)

    succeeded = world.condition(key, "Succeeded")
    assert (succeeded["status"], succeeded["reason"]) == ("False", "DisruptedTooOften")
    assert NO_DEVICE in succeeded["message"]


def test_a_runtime_that_cannot_start_the_process_counts_and_its_node_is_left_out():
    world = World([node("n0", gpus=2), node("n1", gpus=2)])
    key = world.submit(job())
    come_up(world)
    first = world.status(key)["stages"][1]["node"]
    start_error(world, "nvidia-container-cli: initialization error: driver error: failed to process request")

    begin_again(world, seconds=0)

    status = world.status(key)
    assert (status["state"], status["restarts"], status["disruptions"]) == ("Training", 1, 0)
    assert first not in {stage["node"] for stage in status["stages"]}


def test_a_command_that_is_not_there_is_blamed_on_no_node():
    world = World([node("n0", gpus=2), node("n1", gpus=2)])
    key = world.submit(job())
    come_up(world)
    start_error(world, 'exec: "trainr": executable file not found in $PATH: unknown')

    world.settle()

    assert world.status(key)["restarts"] == 1
    assert not world.status(key).get("refusedNodes")
    assert "StartError: exec:" in world.condition(key, "Ready")["message"]


def start_error(world, message):
    ended = {"exitCode": 128, "reason": "StartError", "message": message}
    trainer = {"name": "trainer", "state": {"terminated": ended}}
    world.cluster.set_pod(world.cluster.pod("gpt-r0-s1"), phase="Failed", containerStatuses=[trainer])


@pytest.mark.parametrize("has_run", [True, False])
def test_a_pods_own_deadline_is_the_jobs_doing_once_it_ran(world, key, has_run):
    trainer = {"name": "trainer", "state": {"terminated": {"exitCode": 143, "reason": "Error"}}}
    reject(
        world,
        reason="DeadlineExceeded",
        message="Pod was active on the node longer than the specified deadline",
        **({"containerStatuses": [trainer]} if has_run else {}),
    )

    world.settle()

    assert world.status(key)["state"] == ("Failed" if has_run else "Restarting")
    assert world.status(key)["disruptions"] == (not has_run)
