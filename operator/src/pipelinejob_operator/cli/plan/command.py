"""The command: its options, and the order in which a plan is made, told and written."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pipelinejob_operator.cli.costs import ProfileOption
from pipelinejob_operator.cli.exits import Exit, complain
from pipelinejob_operator.cli.manifests import GivenJob
from pipelinejob_operator.cli.output import Format, FormatOption, to_yaml, write
from pipelinejob_operator.cli.plan.asked import Asked, plans
from pipelinejob_operator.cli.plan.document import document
from pipelinejob_operator.cli.plan.made import Made
from pipelinejob_operator.cli.plan.model_file import ConfigTraining
from pipelinejob_operator.cli.plan.nodes import Places
from pipelinejob_operator.cli.plan.objects import objects
from pipelinejob_operator.cli.plan.terminal import print_plan
from pipelinejob_operator.cli.text_files import write_text
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.report.plan_page import plan_page

_DEFAULT_IMAGE = "pipelinejob/trainer:latest"
_WHERE = "Where to place it"
_WHAT = "What to plan"


def plan(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A manifest in YAML or JSON, or the config.json of a Hugging Face model; - reads standard input.",
        ),
    ],
    *,
    nodes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Nodes: the output of `kubectl get nodes -o json`, or -o yaml.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    pods: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What stands on --nodes: the output of `kubectl get pods -A -o json`; nothing if not given.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    fabric: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A described cluster, as in examples/fabrics.", rich_help_panel=_WHERE),
    ] = None,
    kubeconfig: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A live cluster: its nodes, and what is free on them now.", rich_help_panel=_WHERE
        ),
    ] = None,
    context: Annotated[
        str | None, typer.Option(metavar="NAME", help="The context of --kubeconfig.", rich_help_panel=_WHERE)
    ] = None,
    empty: Annotated[
        bool,
        typer.Option("--empty", help="As if all work on the nodes were done.", rich_help_panel=_WHERE),
    ] = False,
    topology_profile: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="TopologyProfiles that the cluster would have.", rich_help_panel=_WHERE),
    ] = None,
    hardware: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Device and link kinds beside the known ones.", rich_help_panel=_WHERE),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(min=1, help="Use so many: degrees, schedule and micro-batches are chosen.", rich_help_panel=_WHAT),
    ] = None,
    product: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What the GPUs are, where no node says it: H100.", rich_help_panel=_WHAT),
    ] = None,
    sequence_length: Annotated[
        int | None,
        typer.Option(min=1, metavar="TOKENS", help="Of a config.json: tokens in a sequence.", rich_help_panel=_WHAT),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, metavar="COUNT", help="Of a config.json: sequences in a step.", rich_help_panel=_WHAT),
    ] = None,
    alternatives: Annotated[
        int,
        typer.Option(min=0, metavar="COUNT", help="Other configurations to price; or 0.", rich_help_panel=_WHAT),
    ] = 4,
    profile: ProfileOption = None,
    output: FormatOption = Format.TABLE,
    gantt: Annotated[bool, typer.Option("--gantt", help="Draw the predicted timeline of one step.")] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write a page: the fabric with the chain of stages on it, timeline, alternatives."
        ),
    ] = None,
    manifests: Annotated[
        bool, typer.Option("--manifests", help="Print the objects that the operator would create, as YAML.")
    ] = False,
    image: Annotated[str, typer.Option(help="The trainer's image, for --manifests.")] = _DEFAULT_IMAGE,
) -> None:
    """Print the plan: stages, layers, predicted step time, bubble and memory, and where it would stand.

    Touches nothing. Ends with 4 if the job does not fit on the nodes given, and says what would.
    """
    settings = ControllerSettings(trainer_image=image)
    places = Places(
        nodes=nodes,
        pods=pods,
        fabric=fabric,
        kubeconfig=kubeconfig,
        context=context,
        empty=empty,
        topology_profiles=topology_profile or (),
    )
    asked = Asked(
        places=places,
        settings=settings,
        hardware=hardware,
        profile=profile,
        gpus=gpus,
        product=product,
        training=ConfigTraining(gpus=gpus, sequence_length=sequence_length, batch_size=batch_size),
        most=alternatives,
    )
    every = plans(file, asked)
    for job, made in every:
        if manifests:
            _print_objects(job, made, settings)
        else:
            costs = made.costs if gantt else None
            write(document(made.view), output, partial(print_plan, made.view, costs=costs))
    if html is not None:
        write_text(html, "--html", plan_page([(made.view, made.costs) for _, made in every]))
    _end([made for _, made in every])


def _print_objects(job: GivenJob, made: Made, settings: ControllerSettings) -> None:
    if made.view.shortfall is not None:
        return
    for item in objects(job, made.plan, settings):
        typer.echo(f"---\n{to_yaml(item)}", nl=False)


def _end(every: list[Made]) -> None:
    """Say of each job that does not fit what is missing, and end with the code that means so."""
    lacking = [made.view for made in every if made.view.shortfall is not None]
    for view in lacking:
        complain(f"{view.name} does not fit: {view.shortfall}")
    if lacking:
        raise typer.Exit(Exit.DOES_NOT_FIT)
