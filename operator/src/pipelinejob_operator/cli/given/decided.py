"""What a manifest leaves open, chosen for this machine: `run` trains only what is decided."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from pipelinejob.fabric import hardware
from pipelinejob.fabric.pool import Pool
from pipelinejob.siting.configurations import fields_of
from pipelinejob.siting.door import plan_job
from pipelinejob.siting.request import Planned, Request
from pipelinejob.spec.chosen import Chosen
from pipelinejob.spec.job import Device
from pipelinejob_operator.cli.given.manifests import GivenJob, given_job
from pipelinejob_operator.local.node.machine import Machine


def decided(job: GivenJob, machine: Machine) -> tuple[GivenJob, Chosen | None]:
    """Choose by counted costs what a manifest leaves open; return the decided job and the choice, None if it has none.

    Raises SpecError if nothing can be planned on this machine's processors, or GPUs.
    """
    if not job.spec.is_open:
        return job, None
    count = _num_devices(job, machine)
    pool = Pool.alike(hardware.default().reckoned_as(job.spec.device), count, gpus_per_node=count)
    answer = plan_job(Request(namespace=job.namespace, name=job.name, spec=job.spec, on=pool))
    assert isinstance(answer, Planned), "devices that are in no node are never taken"
    assert answer.chosen is not None, "the spec is open"
    return given_job(_with_choice(job.manifest, answer.chosen)), answer.chosen


def _num_devices(job: GivenJob, machine: Machine) -> int:
    """Count the devices of the machine that the job may use; degrees that it fixes may share processors."""
    parallelism = job.spec.parallelism
    if job.spec.device is Device.GPU:
        return max(1, min(len(machine.gpus), parallelism.gpus or len(machine.gpus)))
    fixed = (parallelism.pipeline or 1) * (parallelism.data or 1)
    return max(fixed, min(machine.cores, parallelism.gpus or machine.cores))


def _with_choice(manifest: Mapping[str, Any], chosen: Chosen) -> Mapping[str, Any]:
    changed = deepcopy(dict(manifest))
    spec = changed["spec"]
    spec["parallelism"] = {}
    for open_size in ("globalBatchSize", "batchSize"):  # a batch size that still counts is among the fields
        spec["schedule"].pop(open_size, None)
    for path, value in fields_of(chosen).items():
        _, part, field = path.split(".")
        spec[part][field] = value
    return changed
