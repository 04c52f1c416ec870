"""What the plan command is asked for, put together: jobs from a manifest or a model's config, nodes, devices, costs."""

from dataclasses import dataclass
from pathlib import Path

from pipelinejob.errors import PipelineJobError
from pipelinejob.hardware import Hardware
from pipelinejob_operator.cli.costs import costs_of
from pipelinejob_operator.cli.manifests import GivenJob, jobs_in, read_documents
from pipelinejob_operator.cli.plan.files import read_hardware
from pipelinejob_operator.cli.plan.ground import Ground
from pipelinejob_operator.cli.plan.made import Made, Wanted
from pipelinejob_operator.cli.plan.model_file import ConfigTraining, is_config, job_of_config
from pipelinejob_operator.cli.plan.nodes import Places, read_inventory
from pipelinejob_operator.cli.plan.placed import plan_on_nodes
from pipelinejob_operator.cli.plan.searched import for_gpus, runnable
from pipelinejob_operator.cli.plan.unplaced import plan_as_it_is, plan_for_devices
from pipelinejob_operator.objects.controller_settings import ControllerSettings


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
    most: int


def plans(file: Path, asked: Asked) -> list[tuple[GivenJob, Made]]:
    """Plan every job of a file.

    Raises InvalidManifestError and SpecError for jobs that cannot be, and other errors for options that cannot.
    """
    hardware = read_hardware(asked.hardware)
    _check_product(asked.product, hardware)
    inventory = read_inventory(asked.places)
    if inventory is not None and asked.product is not None:
        raise AskedError(f"--product {asked.product}: the nodes say themselves what they hold; leave it out")
    documents = read_documents(file)
    is_model = len(documents) == 1 and is_config(documents[0])

    def made(job: GivenJob) -> Made:
        spec = job.spec if asked.gpus is None else for_gpus(job.spec, asked.gpus)
        spec = spec if is_model else runnable(spec)  # of a mere model more is planned than can be run
        wanted = Wanted(
            job=job,
            spec=spec,
            hardware=hardware,
            measured=costs_of(job, documents, asked.profile),
            product=asked.product,
            most=asked.most,
        )
        if inventory is not None:
            ground = Ground(job=job, inventory=inventory, hardware=hardware, settings=asked.settings)
            return plan_on_nodes(wanted, ground)
        if spec.is_open or asked.product is not None:
            return plan_for_devices(wanted)
        return plan_as_it_is(wanted)

    if is_model:
        jobs = [job_of_config(documents[0], file, asked.training)]
    else:
        _check_of_model(asked.training)
        jobs = jobs_in(documents, file)
    return [(job, made(job)) for job in jobs]


def _check_product(product: str | None, hardware: Hardware) -> None:
    if product is None or product in hardware.devices or hardware.device_of(product) is not None:
        return
    known = ", ".join(sorted(hardware.devices))
    raise AskedError(
        f"--product {product}: no such device is known; use one of {known}, or describe it in a file for --hardware"
    )


def _check_of_model(training: ConfigTraining) -> None:
    for option, value in (("--sequence-length", training.sequence_length), ("--batch-size", training.batch_size)):
        if value is not None:
            raise AskedError(f"{option} {value}: goes with the config.json of a model; a manifest says it itself")
