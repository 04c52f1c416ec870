"""What the plan command is asked for, turned into requests: jobs of a manifest or a model, nodes, devices, costs."""

from dataclasses import dataclass, replace
from pathlib import Path

from pipelinejob.base.errors import PipelineJobError
from pipelinejob.costs.layers import Profile
from pipelinejob.fabric.hardware import Hardware
from pipelinejob.fabric.pool import Pool
from pipelinejob.siting.configurations import num_gpus, over_gpus, why_no_others
from pipelinejob.siting.door import plan_job
from pipelinejob.siting.request import Request
from pipelinejob.spec.job import Device, PipelineJobSpec
from pipelinejob_operator.cli.given.costs import costs_of
from pipelinejob_operator.cli.given.data_files import read_hardware
from pipelinejob_operator.cli.given.manifests import GivenJob, jobs_in, read_documents
from pipelinejob_operator.cli.given.model_config import ConfigTraining, is_config, job_of_config
from pipelinejob_operator.cli.plan.inventory import NodesForJob, Places, read_inventory
from pipelinejob_operator.cli.plan.view import Shown, shown
from pipelinejob_operator.objects.controller_settings import ControllerSettings

MOST_ALTERNATIVES = 4  # shown, where no number is given


class AskedError(PipelineJobError):
    """Options that do not go together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The options, as they were given."""

    places: Places
    settings: ControllerSettings
    hardware: Path | None
    profile: Path | None
    gpus: int | None
    product: str | None
    training: ConfigTraining
    alternatives: int | None


def plans(file: Path, asked: Asked) -> list[Shown]:
    """Plan every job of a file.

    Raises InvalidManifestError and SpecError for jobs that cannot be, and other errors for options
    that cannot.
    """
    hardware = read_hardware(asked.hardware)
    _check_product(asked.product, hardware)
    inventory = read_inventory(asked.places)
    if inventory is not None and asked.product is not None:
        raise AskedError(f"--product {asked.product}: the nodes say themselves what they hold; leave it out")
    documents = read_documents(file)
    is_model = len(documents) == 1 and is_config(documents[0])
    if is_model:
        jobs = [job_of_config(documents[0], file, asked.training)]
    else:
        _check_of_model(asked.training)
        jobs = jobs_in(documents, file)

    def planned(job: GivenJob) -> Shown:
        if asked.gpus is not None:
            job = replace(job, spec=over_gpus(job.spec, asked.gpus))
        measured = costs_of(job, documents, asked.profile)
        _check_of_devices(job, measured, asked, has_nodes=inventory is not None)
        nodes = None
        if inventory is not None:
            nodes = NodesForJob(job=job, inventory=inventory, hardware=hardware, settings=asked.settings)
        on = nodes.site if nodes else _devices(job.spec, asked.product, hardware)
        request = Request(
            namespace=job.namespace,
            name=job.name,
            spec=job.spec,
            on=on,
            idle=nodes.idle if nodes else None,
            measured=measured,
            hardware=hardware,
            may_choose_tensor=is_model,  # of a mere model more is planned than can be run
            num_alternatives=MOST_ALTERNATIVES if asked.alternatives is None else asked.alternatives,
        )
        return shown(job, plan_job(request), nodes, is_assumed=isinstance(on, Pool) and asked.product is None)

    return [planned(job) for job in jobs]


def _devices(spec: PipelineJobSpec, product: str | None, hardware: Hardware) -> Pool | None:
    """Return devices of one kind, eight in a node; None where neither the job nor an option needs to know them."""
    if not spec.is_open and product is None:
        return None
    return Pool.alike(hardware.reckoned_as(spec.device, product or ""), spec.parallelism.gpus or num_gpus(spec))


def _check_product(product: str | None, hardware: Hardware) -> None:
    if product is None or product in hardware.devices or hardware.device_of(product) is not None:
        return
    known = ", ".join(sorted(hardware.devices))
    raise AskedError(
        f"--product {product}: no such device is known; use one of {known}, or describe it in a file for --hardware"
    )


def _check_of_devices(job: GivenJob, measured: Profile | None, asked: Asked, *, has_nodes: bool) -> None:
    """Refuse what is asked of GPUs where there are none, or none are known."""
    spec = job.spec
    if spec.device is Device.CPU and asked.product is not None:
        raise AskedError(f"--product {asked.product}: {job.name} computes on processors; leave it out")
    if not asked.alternatives or spec.is_open:
        return
    option = f"--alternatives {asked.alternatives}"
    if (why := why_no_others(spec, measured)) is not None:
        raise AskedError(f"{option}: there are none: {why}; leave it out")
    if not has_nodes and asked.product is None:
        raise AskedError(f"{option}: on which devices? Name them with --product, --nodes, --fabric or --kubeconfig")


def _check_of_model(training: ConfigTraining) -> None:
    for option, value in (("--sequence-length", training.sequence_length), ("--batch-size", training.batch_size)):
        if value is not None:
            raise AskedError(f"{option} {value}: goes with the config.json of a model; a manifest says it itself")
