"""Pods of a played cluster fail, and the next attempt comes up."""

from pipelinejob.contract.progress import Termination


def fail(world, name, code, *, message="", **status):
    world.cluster.set_pod(world.cluster.pod(name), phase="Failed", code=code, message=message, **status)


def last_words(code, reason, message, step=7):
    return Termination(exit_code=code, reason=reason, message=message, step=step).model_dump_json(by_alias=True)


def carry_on(world):
    """Let deletions end, and the next attempt come up."""
    world.settle()
    world.cluster.finish_deletions()
    world.train()
