"""`pipelinejob plan`: what would be done and what is expected of it, touching nothing."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelinejob.cost import Profile, analytic_profile
from pipelinejob.errors import PipelineJobError
from pipelinejob.plan import CostSource, Placement, Plan
from pipelinejob.planner import make_plan, predicted_timeline
from pipelinejob.playing import schedule_of
from pipelinejob_operator.admission.capacity import standing_room
from pipelinejob_operator.admission.choosing import choose_nodes
from pipelinejob_operator.cli.gantt import gantt_lines
from pipelinejob_operator.cli.manifests import FileArgument, GivenJob, read_jobs
from pipelinejob_operator.cli.output import Format, FormatOption, to_yaml, write
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Rank, read_job
from pipelinejob_operator.objects.manifests import headless_service, plan_config_map, stage_pod
from pipelinejob_operator.report.numbers import seconds
from pipelinejob_operator.report.run_view import layers

_DEFAULT_IMAGE = "pipelinejob/trainer:latest"
_UID = "uid-of-the-pipelinejob"  # only a cluster knows it


def plan(
    file: FileArgument,
    *,
    output: FormatOption = Format.TABLE,
    manifests: Annotated[
        bool, typer.Option("--manifests", help="Print the objects that the operator would create, as YAML.")
    ] = False,
    nodes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Place the stages on these nodes: the output of `kubectl get nodes -o json`."
        ),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Measured costs, from `pipelinejob-trainer profile`; counted if not given."),
    ] = None,
    gantt: Annotated[bool, typer.Option("--gantt", help="Draw the predicted timeline of one step.")] = False,
    image: Annotated[str, typer.Option(help="The trainer's image, for --manifests.")] = _DEFAULT_IMAGE,
) -> None:
    """Print the plan: stages, layers, predicted step time, bubble and memory; touch nothing."""
    settings = ControllerSettings(trainer_image=image)
    node_objects = _read_nodes(nodes) if nodes else None
    measured = _read_profile(profile) if profile else None
    for job in read_jobs(file):
        made = _plan(job, measured, node_objects, settings)
        if manifests:
            for item in objects(job, made, settings):
                typer.echo(f"---\n{to_yaml(item)}", nl=False)
            continue
        costs = measured or analytic_profile(
            job.spec.model, job.spec.data, job.spec.schedule, job.spec.training, device=job.spec.device
        )
        write(made.dump(), output, partial(_print, made, costs if gantt else None))


def objects(job: GivenJob, made: Plan, settings: ControllerSettings) -> list[Mapping[str, Any]]:
    """Give what the operator would create, in its order; the job's uid is only known to a cluster."""
    stored = {**job.stored, "metadata": {"uid": _UID, **job.stored["metadata"]}}
    read = read_job(stored)
    nodes = {(each.replica, each.stage): each.node for each in made.placement.assignments} if made.placement else {}
    pods = [
        stage_pod(read, job.spec, rank, attempt=1, settings=settings, node=nodes.get((rank.replica, rank.stage)))
        for rank in (Rank(r, s) for r in range(job.spec.parallelism.data) for s in range(job.spec.parallelism.pipeline))
    ]
    return [plan_config_map(read, made, attempt=1), headless_service(read), *pods]


def _plan(
    job: GivenJob, profile: Profile | None, nodes: Sequence[Mapping[str, Any]] | None, settings: ControllerSettings
) -> Plan:
    placement = _place(job, nodes, settings) if nodes is not None else None
    return make_plan(namespace=job.namespace, name=job.name, spec=job.spec, profile=profile, placement=placement)


def _place(job: GivenJob, nodes: Sequence[Mapping[str, Any]], settings: ControllerSettings) -> Placement:
    read = read_job({**job.stored, "metadata": {"uid": _UID, **job.stored["metadata"]}})
    return choose_nodes(read, job.spec, nodes=nodes, free=standing_room(nodes, ()), settings=settings)


class _FileError(PipelineJobError):
    """A file given by an option is not what it should be."""


def _read_nodes(file: Path) -> list[Mapping[str, Any]]:
    data = _read_json(file, "--nodes")
    items = data.get("items") if isinstance(data, dict) else data
    wanted = isinstance(items, list) and all(isinstance(item, dict) and "metadata" in item for item in items)
    if not wanted or not isinstance(items, list):
        raise _FileError(f"--nodes {file}: holds no list of nodes; write it with `kubectl get nodes -o json > {file}`")
    return items


def _read_profile(file: Path) -> Profile:
    try:
        return Profile.model_validate(_read_json(file, "--profile"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _FileError(
            f"--profile {file}: {where}: {first['msg']}; write it with `pipelinejob-trainer profile`"
        ) from error


def _read_json(file: Path, option: str) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"is no JSON: {error}"
        raise _FileError(f"{option} {file}: {reason}") from error


def _print(made: Plan, costs: Profile | None) -> None:
    console = Console(highlight=False)
    parallelism = made.parallelism
    replicas = f" x {parallelism.data} replicas" if parallelism.data > 1 else ""
    schedule = made.schedule
    of_all = f", {schedule.batch_size} sequences in all" if schedule.batch_size is not None else ""
    console.print(
        Text.assemble(
            (f"{made.namespace}/{made.name}", "bold"),
            f"  {parallelism.pipeline} stages{replicas}, {schedule.name}, "
            f"{schedule.micro_batches} micro-batches of {schedule.micro_batch_size}{of_all}",
        ),
        soft_wrap=True,
    )
    prediction = made.prediction
    times = f"{seconds(prediction.step_s)} a step, {prediction.tokens_per_s:,.0f} tokens/s, "
    console.print(
        f"predicted: {times if prediction.is_absolute else ''}bubble {prediction.bubble_ratio:.1%} "
        f"(from {_SOURCES[prediction.source]})",
        soft_wrap=True,
    )
    console.print(_stage_table(made))
    if made.placement:
        console.print(_placement_line(made.placement))
    if costs:
        drawn = gantt_lines(
            predicted_timeline(made, costs),
            console.width,
            schedule=schedule_of(made),
            has_scale=made.prediction.is_absolute,
            has_colours=console.color_system is not None,
        )
        for line in drawn:
            console.print(line, markup=False, no_wrap=True, crop=False)


_SOURCES = {
    CostSource.PROFILED: "measured costs",
    CostSource.ANALYTIC: "counted operations, not a measurement",
    CostSource.EQUAL: "the number of layers alone; with `--profile` it says more",
}


def _stage_table(made: Plan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for name in ("stage", "layers", "parameters", "forward", "backward", "bubble", "memory"):
        table.add_column(name, justify="left" if name in {"stage", "layers"} else "right")
    nodes: dict[int, list[str]] = {}
    for each in made.placement.assignments if made.placement else ():
        nodes.setdefault(each.stage, []).append("/".join(each.path))
    if nodes:
        table.add_column("node")
    is_absolute = made.prediction.is_absolute
    for stage in made.stages:
        cells = [
            str(stage.stage),
            layers(stage.chunks),
            f"{stage.parameter_bytes // 4:,}" if is_absolute else "–",
            seconds(stage.forward_s if is_absolute else None),
            seconds(stage.backward_s if is_absolute else None),
            f"{stage.bubble_ratio:.1%}",
            f"{stage.memory_bytes / 2**20:,.0f} MiB" if is_absolute else "–",
        ]
        table.add_row(*cells, *(["\n".join(nodes[stage.stage])] if nodes else []))
    return table


def _placement_line(placement: Placement) -> str:
    crossings = ", ".join(f"{count} cross a {level}" for level, count in placement.crossings.items() if count)
    number = len({each.node for each in placement.assignments})
    return f"placement: {number} node{'s' * (number != 1)}" + (
        f"; of the stage boundaries {crossings}" if crossings else ""
    )
