"""A job of three stages that recovers in place, and what befalls it: what its stages say, whom it loses."""

from pipelinejob.contract.incarnation import Lost
from pipelinejob.contract.progress import Phase, Progress, Termination
from support.clusters.fakecluster import pinned_node
from support.clusters.operatorworld import World
from support.manifests.jobs import job, nodes

IN_PLACE = {"device": "cpu", "parallelism": {"pipeline": 3}, "recovery": {"inPlace": True, "waitSeconds": 120}}
TEN_PROCESSORS = {"spec": {"containers": [{"name": "trainer", "resources": {"requests": {"cpu": "10"}}}]}}
SPREAD = IN_PLACE | {"template": TEN_PROCESSORS}  # of a node's 16


def says(world, stage, *, step=0, waits=True, heard=0, lost=(), attempt=1, handed_over=None):
    world.cluster.answers[f"gpt-r0-s{stage}"] = Progress(
        replica=0,
        stage=stage,
        attempt=attempt,
        phase=Phase.STARTING if waits else Phase.TRAINING,
        step=step,
        awaits_incarnation=waits,
        incarnation=heard,
        control_port=5000 + stage,
        lost=tuple(Lost(replica=0, stage=each, why="no heartbeat for 2.1 s", handed_over=handed_over) for each in lost),
    )


def submitted(world, **changes):
    """Return a job of three stages that trains, as incarnation 1."""
    key = world.submit(job(**(IN_PLACE | changes)))
    world.train()
    all_wait(world)
    world.settle()
    all_train(world, heard=1)
    world.settle()
    assert world.status(key)["state"] == "Training"
    return key


def all_wait(world, **account):
    for stage in range(3):
        says(world, stage, **account)


def all_train(world, **account):
    for stage in range(3):
        says(world, stage, waits=False, step=7, **account)


def fail(world, stage, code, message=""):
    name = f"gpt-r0-s{stage}"
    world.cluster.set_pod(world.cluster.pod(name), phase="Failed", code=code, message=message)
    world.cluster.answers.pop(name, None)
    for each in {0, 1, 2} - {stage}:
        says(world, each, step=7, heard=1, lost=[stage])


def uids(world):
    return {pod["metadata"]["name"][-2:]: pod["metadata"]["uid"] for pod in world.cluster.all_pods()}


def changed(world, before):
    """Return the stages that no longer have the pod that they had."""
    after = uids(world)
    return {stage for stage, uid in before.items() if after.get(stage) != uid}


def come_back(world):
    """Let deletions end, and replacements come up."""
    world.settle()
    world.cluster.finish_deletions()
    world.settle()
    world.cluster.bind()
    world.cluster.start()


def incarnations(world):
    return [(pod, told.number, len(told.members)) for pod, told in world.cluster.told]


def assert_no_number_is_told_twice(world):
    told = [(pod, number) for pod, number, _ in incarnations(world)]
    assert len(told) == len(set(told)), "a number was told twice"


def spread(count, **changes):
    """Return a world of so many nodes that take a stage each, and a job that trains there."""
    world = World(nodes(count))
    return world, submitted(world, **(SPREAD | changes))


def where(world):
    return {pod["metadata"]["name"][-2:]: pinned_node(pod) for pod in world.cluster.all_pods()}


def lose_node(world, name, *, is_gone):
    """Let a node fall silent, or go together with its pods."""
    if is_gone:
        world.cluster.objects.pop(("Node", "", name))
        for pod in world.cluster.all_pods():
            if pinned_node(pod) == name:
                world.cluster.objects.pop(("Pod", "default", pod["metadata"]["name"]))
        return
    world.cluster.lose_node(name)


def stick(world, stage, reason, message):
    waits = {"name": "trainer", "state": {"waiting": {"reason": reason, "message": message}}}
    world.cluster.set_pod(world.cluster.pod(f"gpt-r0-s{stage}"), phase="Pending", containerStatuses=[waits])


def hand_over(world, stage, *, step):
    """Let a stage that was told to stop leave, and the others say so."""
    name = f"gpt-r0-s{stage}"
    words = Termination(exit_code=76, reason="HandedOver", message=f"asked to stop; step {step} is done", step=step)
    world.cluster.set_pod(
        world.cluster.pod(name), phase="Failed", code=76, message=words.model_dump_json(by_alias=True)
    )
    world.cluster.answers.pop(name, None)
    for each in {0, 1, 2} - {stage}:
        says(world, each, step=step, heard=1, lost=[stage], handed_over=step)
