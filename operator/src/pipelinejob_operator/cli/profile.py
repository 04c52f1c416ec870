"""`pipelinejob profile`: what each layer costs on this machine, or cost in a run, for plans to be made from."""

import asyncio
import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import Annotated

import typer
from pydantic import ValidationError
from rich import box
from rich.console import Console
from rich.table import Table

from pipelinejob.base.errors import PipelineJobError
from pipelinejob.contract.plan import Plan
from pipelinejob.costs.layers import Profile, analytic_profile, layer_names
from pipelinejob.planning.refine import refined
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.siting.door import plan_job
from pipelinejob.siting.request import Request
from pipelinejob.spec.chosen import Chosen, resolved
from pipelinejob.spec.job import PipelineJobSpec
from pipelinejob_operator.cli.given.manifests import GivenJob, given_job, jobs_among, read_documents
from pipelinejob_operator.cli.given.model_folder import with_its_model
from pipelinejob_operator.cli.given.text_files import check_writable
from pipelinejob_operator.cli.shown.console import console_for_people
from pipelinejob_operator.cli.shown.output import to_yaml
from pipelinejob_operator.local.node.machine import read_machine
from pipelinejob_operator.local.runfolder import RunFolder
from pipelinejob_operator.local.tools import measured_profile
from pipelinejob_operator.objects.costs import costs_config_map
from pipelinejob_operator.report.numbers import seconds

_STDOUT = Path("-")
_CAPTION = "a micro-batch's; by input, by weight: the two gradients; kept: from forward to backward"
_FILE = Path("profile.json")
_STAGES, _MICRO_BATCHES = 2, 8  # of a job that leaves them open: enough to measure what does not depend on them


class ProfileError(PipelineJobError):
    """What is asked for cannot be profiled."""


def profile(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="A manifest in YAML or JSON; - reads standard input.")
    ] = None,
    *,
    run: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Refine what a run was planned with by what it measured.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Where to write; -: standard output.", show_default="profile.json"
        ),
    ] = None,
    config_map: Annotated[
        str | None, typer.Option(metavar="NAME", help="Write a ConfigMap that spec.costs can name, as YAML.")
    ] = None,
) -> None:
    """Measure what each layer of a manifest's model costs on this machine: seconds, memory, links, book-keeping.

    `plan --profile` and `run --profile` take the file; on a cluster, spec.costs names the config
    map.
    """
    if (file is None) == (run is None):
        raise ProfileError("name a manifest to measure, or a run's folder with --run to refine; one of them")
    target = output or (_FILE if config_map is None else _STDOUT)
    if target != _STDOUT:
        check_writable(target, "--output")
    measured, namespace = _refined(run) if run else _measured(file or _STDOUT)
    content = measured.model_dump_json(by_alias=True, exclude_none=True, indent=1) + "\n"
    if config_map is not None:
        content = to_yaml(costs_config_map(measured, name=config_map, namespace=namespace))
    if target == _STDOUT:
        typer.echo(content, nl=False)
        return
    try:
        target.write_text(content, encoding="utf-8")
    except OSError as error:
        raise ProfileError(f"{target}: {error.strerror}; choose another with --output") from error
    _print(measured, target, console_for_people())


def _measured(file: Path) -> tuple[Profile, str]:
    manifests = jobs_among(read_documents(file), file)
    if len(manifests) != 1:
        raise ProfileError(
            f"{file}: holds {len(manifests)} PipelineJobs; `profile` takes one at a time, in a file of its own"
        )
    job, machine = given_job(with_its_model(manifests[0])), read_machine()
    machine.check_devices(job.spec)
    plan = _counted_plan(job)
    folder = RunFolder(Path(mkdtemp(prefix="pipelinejob-profile-")))
    measured = asyncio.run(measured_profile(plan, folder, machine))
    shutil.rmtree(folder.root)  # kept where measuring failed, whose message names the log
    return measured, job.namespace


def _counted_plan(job: GivenJob) -> Plan:
    spec = _closed(job.spec) if job.spec.is_open else job.spec
    if spec.parallelism.tensor > 1:
        raise ProfileError(
            "spec.parallelism.tensor: layers are measured whole, on one GPU; profile with tensor: 1, or plan by counts"
        )
    if spec.parallelism.expert > 1:
        raise ProfileError(
            "spec.parallelism.expert: layers are measured with all of their experts, in one process; profile with"
            " expert: 1, or plan by counts"
        )
    counted = analytic_profile(spec.model, spec.data, spec.schedule, spec.training, device=spec.device)
    return plan_job(Request(namespace=job.namespace, name=job.name, spec=spec, measured=counted)).plan


def _closed(spec: PipelineJobSpec) -> PipelineJobSpec:
    """Return a job's spec with what it leaves open filled in, so that its layers can be measured."""
    schedule, count = spec.schedule, len(layer_names(spec.model))
    name = ScheduleName.ONE_F_ONE_B if schedule.name is ScheduleName.AUTO else schedule.name
    return resolved(
        spec,
        Chosen(
            pipeline=spec.parallelism.pipeline or min(_STAGES, count),
            data=1,
            tensor=1,
            schedule=name,
            virtual_stages=schedule.virtual_stages,
            micro_batches=schedule.micro_batches or _MICRO_BATCHES,
            micro_batch_size=schedule.micro_batch_size or 1,
            recompute=bool(schedule.recompute),
            recompute_layers=() if schedule.leaves_recomputing_open else None,
        ),
    )


def _refined(run: Path) -> tuple[Profile, str]:
    """Return what a run was planned with, refined by its timelines."""
    folder = RunFolder(run)
    try:
        plan = Plan.from_json(folder.plan.read_bytes())
        costs = Profile.model_validate_json(folder.costs.read_bytes())
    except FileNotFoundError as error:
        raise ProfileError(
            f"--run {run}: no run of this version is there; name a folder that `pipelinejob run` wrote"
        ) from error
    except (OSError, ValidationError) as error:
        raise ProfileError(f"--run {run}: cannot be read: {error}") from error
    timelines = folder.read_timelines()
    if not timelines.stages:
        raise ProfileError(f"--run {run}: no stage has written a timeline yet; let it train for some seconds")
    return refined(costs, plan, [timelines]), plan.namespace


def _print(measured: Profile, target: Path, console: Console) -> None:
    """Print the costs for people; layers that follow each other and cost the same share a line."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for name in ("layer", "forward", "by input", "by weight", "update", "weights", "kept"):
        table.add_column(name, justify="left" if name == "layer" else "right", no_wrap=True)
    for first, last in _alike(measured):
        layer = measured.layers[first]
        table.add_row(
            layer.name if first == last else f"{layer.name} … {measured.layers[last].name}",
            *map(seconds, (layer.forward_s, layer.backward_input_s, layer.backward_weight_s, layer.optimizer_s)),
            f"{layer.parameter_bytes / 2**20:,.1f} MiB",
            f"{layer.activation_bytes / 2**20:,.1f} MiB",
        )
    console.print(table)
    console.print(_CAPTION, style="dim", soft_wrap=True)
    bandwidth = f", {measured.link_bytes_per_s / 1e9:,.1f} GB/s" if measured.link_bytes_per_s else ""
    console.print(
        f"a hop {seconds(measured.link_s)}{bandwidth}; {seconds(measured.action_s)} beside each action, "
        f"{seconds(measured.step_overhead_s)} beside each step; written to {target}",
        markup=False,
        soft_wrap=True,
    )


def _alike(measured: Profile) -> list[tuple[int, int]]:
    """Return first and last of each stretch of layers that differ in their names alone."""
    stretches: list[tuple[int, int]] = []
    before = None
    for index, layer in enumerate(measured.layers):
        costs = layer.model_copy(update={"name": ""})
        stretches = [*stretches[:-1], (stretches[-1][0], index)] if costs == before else [*stretches, (index, index)]
        before = costs
    return stretches
