"""What a manifest leaves open, chosen for this machine: `run` trains only what is decided."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from pipelinejob import hardware
from pipelinejob.pool import Pool
from pipelinejob.search.best import search
from pipelinejob.search.found import Candidate
from pipelinejob.spec import Device
from pipelinejob_operator.cli.manifests import GivenJob, given_job
from pipelinejob_operator.cli.plan.searched import fields_of, runnable
from pipelinejob_operator.local.machine import Machine


def decided(job: GivenJob, machine: Machine) -> tuple[GivenJob, Candidate | None]:
    """Give the job with all that its manifest leaves open chosen, by counted costs, and the choice; None if nothing is.

    Raises SpecError if nothing can be planned on this machine's processors, or GPUs.
    """
    if not job.spec.is_open:
        return job, None
    known = hardware.default()
    count = _num_devices(job, machine)
    pool = Pool.alike(known.reckoned_as(job.spec.device), count, gpus_per_node=count)
    best = search(runnable(job.spec), pool, hardware=known).best
    return given_job(_with_choice(job.manifest, best)), best


def _num_devices(job: GivenJob, machine: Machine) -> int:
    """Give as many devices as the machine has and the job may use; degrees that it fixes may share processors."""
    parallelism = job.spec.parallelism
    if job.spec.device is Device.GPU:
        return max(1, min(len(machine.gpus), parallelism.gpus or len(machine.gpus)))
    fixed = (parallelism.pipeline or 1) * (parallelism.data or 1)
    return max(fixed, min(machine.cores, parallelism.gpus or machine.cores))


def _with_choice(manifest: Mapping[str, Any], best: Candidate) -> Mapping[str, Any]:
    changed = deepcopy(dict(manifest))
    spec = changed["spec"]
    spec["parallelism"] = {}
    for open_size in ("globalBatchSize", "batchSize"):  # a batch size that still counts is among the fields
        spec["schedule"].pop(open_size, None)
    for path, value in fields_of(best).items():
        _, part, field = path.split(".")
        spec[part][field] = value
    return changed
