"""A gang that was let go and does not come up says why, in its pods' and their events' words, and ends in time."""

import pytest

from pipelinejob_operator.cluster import Event
from support.clusters.operatorworld import World
from support.manifests.jobs import job, node

NO_SECRET = 'MountVolume.SetUp failed for volume "data" : secret "typo" not found'
CREATING = {"waiting": {"reason": "ContainerCreating"}}


@pytest.fixture
def world():
    return World([node("n0", gpus=2), node("n1", gpus=2)])


def begin(world, **spec):
    """Submit a job whose pods have their nodes, and whose containers are being made."""
    key = world.submit(job(**spec))
    bring_to_nodes(world)
    return key


def bring_to_nodes(world):
    world.settle()
    world.cluster.bind()
    for pod in world.cluster.all_pods():
        make_containers(world, pod["metadata"]["name"])
    world.settle()


def make_containers(world, name, state=CREATING, **status):
    statuses = [{"name": "trainer", "ready": False, "state": state}]
    world.cluster.set_pod(world.cluster.pod(name), phase="Pending", containerStatuses=statuses, **status)


def say(world, name, reason, message, kind="Warning"):
    world.cluster.said.setdefault(name, []).append(Event(type=kind, reason=reason, message=message))


def try_again(world):
    world.settle()
    world.cluster.finish_deletions()
    bring_to_nodes(world)


def test_a_mount_that_fails_is_told_in_the_kubelets_words_within_seconds(world):
    key = begin(world)
    say(world, "gpt-r0-s1", "FailedMount", NO_SECRET)
    world.cluster.pass_time(5)

    world.settle()

    for kind in ("Ready", "Stalled"):
        told = world.condition(key, kind)
        assert told["reason"] == "FailedMount"
        assert told["message"] == (
            f"Stage 1 of replica 0 (pod gpt-r0-s1, node n0) can't start: FailedMount: {NO_SECRET}; mend it, or what "
            "spec.template names until 2026-01-01T00:05:00Z, or spec.failurePolicy says what follows"
        )
    assert world.told().count("StageStuck") == 1


def test_a_gang_that_does_not_start_in_time_counts_as_a_failure_without_an_exit_code(world):
    key = begin(world, failurePolicy={"maxRestarts": 1, "rules": [{"action": "Fail", "onExitCodes": [1, 128]}]})
    say(world, "gpt-r0-s1", "FailedMount", NO_SECRET)
    world.cluster.pass_time(299)
    world.settle()
    assert world.status(key)["attempt"] == 1
    world.cluster.pass_time(1)
    world.settle()
    assert (world.status(key)["attempt"], world.status(key)["restarts"]) == (2, 1)
    assert world.condition(key, "Stalled")["status"] == "False"

    try_again(world)
    world.cluster.pass_time(300)
    world.settle()

    succeeded = world.condition(key, "Succeeded")
    assert (succeeded["status"], succeeded["reason"]) == ("False", "RestartsExhausted")
    assert f"failed: it did not start within 300 s: FailedMount: {NO_SECRET}" in succeeded["message"]
    assert all("exitCode" not in stage for stage in world.status(key)["stages"])
    assert world.cluster.all_pods() == []


def test_a_secret_that_is_missing_is_blamed_on_no_node(world):
    key = begin(world)
    say(world, "gpt-r0-s1", "FailedMount", NO_SECRET)
    world.cluster.pass_time(300)

    world.settle()

    assert not world.status(key).get("refusedNodes")


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("FailedCreatePodSandBox", "plugin type=calico failed (add): stat /var/lib/calico/nodename"),
        ("FailedAttachVolume", "AttachVolume.Attach failed for volume pvc-1 : rpc error: code = Internal"),
        ("FailedMount", "MountVolume.SetUp failed for volume pv-1 : mount failed: exit status 32"),
    ],
)
def test_a_node_that_cannot_give_network_or_volume_is_left_out(world, reason, message):
    key = begin(world)
    first = world.status(key)["stages"][1]["node"]
    say(world, "gpt-r0-s1", reason, message)
    world.cluster.pass_time(300)

    try_again(world)

    assert world.status(key)["attempt"] == 2
    assert [each["node"] for each in world.status(key)["refusedNodes"]] == [first]
    assert first not in {stage["node"] for stage in world.status(key)["stages"]}


def test_a_job_may_say_itself_how_long_a_start_takes(world):
    key = begin(world, failurePolicy={"maxRestarts": 0, "startTimeoutSeconds": 900})
    world.cluster.pass_time(899)
    world.settle()
    assert world.status(key)["state"] == "Starting"

    world.cluster.pass_time(1)
    world.settle()

    assert world.status(key)["state"] == "Failed"


def test_an_image_that_is_being_pulled_is_said_and_has_half_an_hour(world):
    key = begin(world, failurePolicy={"maxRestarts": 0})
    for name in ("gpt-r0-s0", "gpt-r0-s1"):
        say(world, name, "Pulling", 'Pulling image "trainer:1"', kind="Normal")
    world.cluster.pass_time(1799)
    world.settle()
    ready = world.condition(key, "Ready")
    assert (ready["reason"], world.condition(key, "Stalled")["status"]) == ("Starting", "False")
    assert ready["message"] == (
        "0 of 2 stages are up; stage 0 of replica 0 (pod gpt-r0-s0, node n0) is not up: "
        'Pulling: Pulling image "trainer:1"'
    )

    world.cluster.pass_time(1)
    world.settle()

    assert world.status(key)["state"] == "Failed"


def test_warnings_that_hinder_nothing_hide_no_pull(world):
    key = begin(world)
    for name in ("gpt-r0-s0", "gpt-r0-s1"):
        say(world, name, "Pulling", 'Pulling image "trainer:1"', kind="Normal")
        say(world, name, "DNSConfigForming", "Nameserver limits were exceeded")
    world.cluster.pass_time(301)

    world.settle()

    assert (world.status(key)["state"], world.status(key)["attempt"]) == ("Starting", 1)


def test_what_went_well_meanwhile_hides_no_mount_that_fails(world):
    key = begin(world)
    say(world, "gpt-r0-s1", "FailedMount", NO_SECRET)
    say(world, "gpt-r0-s1", "SuccessfulAttachVolume", "AttachVolume.Attach succeeded", kind="Normal")
    world.cluster.pass_time(5)

    world.settle()

    assert world.condition(key, "Ready")["reason"] == "FailedMount"


def test_a_mount_that_was_tried_until_it_worked_is_forgotten(world):
    key = begin(world)
    for name in ("gpt-r0-s0", "gpt-r0-s1"):
        say(world, name, "FailedMount", "failed to sync configmap cache: timed out waiting for the condition")
        say(world, name, "Pulling", 'Pulling image "trainer:1"', kind="Normal")
    world.cluster.pass_time(301)

    world.settle()

    assert (world.condition(key, "Ready")["reason"], world.status(key)["attempt"]) == ("Starting", 1)


def test_a_kubelet_that_says_nothing_is_named_and_its_node_left_out(world):
    key = world.submit(job())
    world.settle()
    world.cluster.bind()
    say(world, "gpt-r0-s0", "Scheduled", "Successfully assigned", kind="Normal")
    world.cluster.pass_time(5)
    world.settle()
    assert (
        "(pod gpt-r0-s0, node n0) is not up: NotTakenUp: the kubelet of node n0 has said nothing of it"
        in (world.condition(key, "Ready")["message"])
    )

    world.cluster.pass_time(295)
    world.settle()

    assert [each["node"] for each in world.status(key)["refusedNodes"]] == ["n0"]


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("CreateContainerConfigError", 'CreateContainerConfigError: secret "typo" not found'),
        ("RunContainerError", 'RunContainerError: secret "typo" not found'),
    ],
)
def test_a_container_that_cannot_be_made_is_told_at_once_and_follows_the_failure_policy(world, state, said):
    key = begin(world)
    make_containers(world, "gpt-r0-s1", {"waiting": {"reason": state, "message": 'secret "typo" not found'}})
    world.settle()
    assert said in world.condition(key, "Stalled")["message"]

    world.cluster.pass_time(300)
    world.settle()

    assert (world.status(key)["attempt"], world.status(key)["restarts"]) == (2, 1)


def test_an_init_container_that_does_not_end_is_named_and_timed(world):
    key = begin(world, template={"spec": {"initContainers": [{"name": "fetch", "image": "fetch:1"}]}})
    running = {"name": "fetch", "state": {"running": {}}, "started": True}
    make_containers(world, "gpt-r0-s1", {"waiting": {"reason": "PodInitializing"}}, initContainerStatuses=[running])
    say(world, "gpt-r0-s1", "Started", "Started container fetch", kind="Normal")
    world.cluster.set_pod(world.cluster.pod("gpt-r0-s0"), phase="Running", ready=True)
    world.cluster.pass_time(5)
    world.settle()
    assert "PodInitializing: the trainer waits for init container fetch" in world.condition(key, "Ready")["message"]

    world.cluster.pass_time(295)
    world.settle()

    assert world.status(key)["restarts"] == 1


def test_a_trainer_that_runs_is_not_timed_but_told_of(world):
    key = begin(world)
    for name in ("gpt-r0-s0", "gpt-r0-s1"):
        make_containers(world, name, {"running": {}})
    say(world, "gpt-r0-s1", "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503")
    world.cluster.set_pod(world.cluster.pod("gpt-r0-s0"), phase="Running", ready=True)
    world.cluster.pass_time(900)

    world.settle()

    assert (world.status(key)["state"], world.status(key)["attempt"]) == ("Starting", 1)
    assert world.condition(key, "Ready")["message"] == (
        "1 of 2 stages are up; stage 1 of replica 0 (pod gpt-r0-s1, node n0) is not up: NotReady: its trainer runs and "
        "does not train yet (Unhealthy: Readiness probe failed: HTTP probe failed with statuscode: 503)"
    )


def test_peers_that_gave_up_waiting_are_not_blamed(world):
    key = begin(world, failurePolicy={"maxRestarts": 0, "startTimeoutSeconds": 3600})
    world.cluster.set_pod(world.cluster.pod("gpt-r0-s0"), phase="Failed", code=75)
    world.cluster.pass_time(5)

    world.settle()

    assert (
        "Stage 1 of replica 0 (pod gpt-r0-s1) failed: it had not begun when stage 0 of replica 0 gave up"
        in (world.condition(key, "Succeeded")["message"])
    )


@pytest.mark.parametrize(
    ("pod", "said"),
    [
        ({"gates": ["example.com/quota"]}, "it waits for its scheduling gate example.com/quota to be lifted"),
        ({"words": "0/2 nodes are available: 2 Insufficient cpu"}, "it has no node yet: 0/2 nodes are available"),
    ],
)
def test_a_pod_without_a_node_says_what_it_waits_for_before_its_time_is_over(world, pod, said):
    gates = [{"name": gate} for gate in pod.get("gates", ())]
    key = world.submit(job(template={"spec": {"schedulingGates": gates}} if gates else None))
    world.settle()
    if "words" in pod:
        words = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": pod["words"]}
        world.cluster.set_pod(world.cluster.pod("gpt-r0-s0"), phase="Pending", conditions=[words])
    world.cluster.pass_time(5)

    world.settle()

    assert said in world.condition(key, "Ready")["message"]


def test_events_are_asked_for_seldom_and_of_few_pods():
    world = World([node("n0", gpus=20, cpu="64", memory="512Gi")])
    asked, original = [], world.cluster.pod_events

    async def pod_events(pod):
        asked.append(pod["metadata"]["name"])
        return await original(pod)

    world.cluster.pod_events = pod_events
    key = begin(world, parallelism={"pipeline": 2, "data": 10})
    assert asked == []
    world.cluster.pass_time(5)
    for _ in range(10):
        world.reconcile(key)
    assert len(asked) == 8

    world.cluster.pass_time(5)
    world.settle()

    assert len(asked) == 16


def test_a_gang_that_trains_is_asked_nothing(world):
    key = begin(world)
    world.cluster.start()
    for pod in world.cluster.all_pods():
        world.cluster.set_pod(pod, phase="Running", ready=True)
    world.cluster.pod_events = None
    world.cluster.pass_time(60)

    world.settle()

    assert world.status(key)["state"] == "Training"
