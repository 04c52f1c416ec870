"""The command: its options, and the order in which a plan is made, told and written."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelinejob_operator.cli.costs import ProfileOption
from pipelinejob_operator.cli.exits import Exit, complain
from pipelinejob_operator.cli.filling import fill
from pipelinejob_operator.cli.model_config import ConfigTraining
from pipelinejob_operator.cli.output import Format, FormatOption, to_yaml, write
from pipelinejob_operator.cli.plan.asked import MOST_ALTERNATIVES, Asked, plans
from pipelinejob_operator.cli.plan.document import document, objects
from pipelinejob_operator.cli.plan.inventory import Places
from pipelinejob_operator.cli.plan.terminal import print_plan
from pipelinejob_operator.cli.plan.view import Shown
from pipelinejob_operator.cli.text_files import check_writable, write_text
from pipelinejob_operator.cli.together import refuse
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.report.pages.plan import plan_page

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
        int | None,
        typer.Option(
            min=0,
            metavar="COUNT",
            help="Other configurations to price; or 0.",
            show_default=str(MOST_ALTERNATIVES),
            rich_help_panel=_WHAT,
        ),
    ] = None,
    write_sizes: Annotated[
        bool,
        typer.Option(
            "--write",
            help="Write numLayers and config of a Hugging Face model into the manifest first, from its folder.",
            rich_help_panel=_WHAT,
        ),
    ] = False,
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
    image: Annotated[
        str | None, typer.Option(help="The trainer's image, for --manifests.", show_default=_DEFAULT_IMAGE)
    ] = None,
) -> None:
    """Print the plan: stages, layers, predicted step time, bubble and memory, and where it would stand.

    Touches nothing, but with --write the manifest. Ends with 4 if the job does not fit on the nodes given, and says
    what would.
    """
    if manifests:
        refuse(given=gantt, option="--gantt", why="--manifests prints objects, not a timeline; give one of the two")
    if not manifests:
        refuse(given=image, option=f"--image {image}", why="stands in what --manifests prints; give that too")
    if output is not Format.TABLE:
        refuse(
            given=gantt, option="--gantt", why=f"draws for people, and -o {output} is for programs; give one of them"
        )
    if manifests and html is None:
        refuse(
            given=alternatives or None,  # none at all is how a plan is made quickest
            option=f"--alternatives {alternatives}",
            why="--manifests prints the objects of the plan alone; leave one of them out, or add --html",
        )
    check_writable(html, "--html")
    settings = ControllerSettings(trainer_image=image or _DEFAULT_IMAGE)
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
        alternatives=alternatives,
    )
    if write_sizes:
        fill(file, "--write")
    every = plans(file, asked)
    if manifests:
        _write_objects([each for shown in every for each in _objects(shown, settings)], output)
    for shown in every:
        if not manifests:
            costs = shown.costs if gantt else None
            write(document(shown.view), output, partial(print_plan, shown.view, costs=costs))
    if html is not None:
        write_text(html, "--html", plan_page([(shown.view, shown.costs) for shown in every]))
    _end(every)


def _objects(shown: Shown, settings: ControllerSettings) -> list[Mapping[str, Any]]:
    return [] if shown.view.shortfall is not None else objects(shown.job, shown.view.plan, settings)


def _write_objects(found: list[Mapping[str, Any]], form: Format) -> None:
    """Write objects as kubectl takes them: YAML documents, or a list in JSON."""
    if form is Format.JSON:
        write({"apiVersion": "v1", "kind": "List", "items": found}, form, lambda: None)
        return
    for item in found:
        typer.echo(f"---\n{to_yaml(item)}", nl=False)


def _end(every: list[Shown]) -> None:
    """Name what each job lacks that does not fit, and end with the code that means so."""
    lacking = [shown.view for shown in every if shown.view.shortfall is not None]
    for view in lacking:
        complain(f"{view.name} does not fit: {view.shortfall}")
    if lacking:
        raise typer.Exit(Exit.DOES_NOT_FIT)
