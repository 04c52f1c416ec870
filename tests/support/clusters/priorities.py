"""Jobs of two priorities on a played cluster, submitted a second apart."""

from support.manifests.jobs import job, priority_class

LOW, HIGH = "low", "high"


def classes(world):
    world.cluster._put(priority_class(LOW, 10))
    world.cluster._put(priority_class(HIGH, 1000))


def submit(world, name, *, stages, priority=None, **spec):
    """Submit a job a second after the one before."""
    world.cluster.pass_time(1)
    scheduling = {"scheduling": {"priorityClassName": priority}} if priority else {}
    key = world.submit(job(name, parallelism={"pipeline": stages}, **scheduling, **spec))
    world.settle()
    return key


def states(world, *keys):
    return [world.status(key)["state"] for key in keys]


def end(world, key):
    for pod in world.cluster.pods(key):
        world.cluster.set_pod(pod, phase="Succeeded", code=0)
    world.train()
