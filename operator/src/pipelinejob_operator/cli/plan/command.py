"""The command: its options, and the order in which a plan is made, told and written."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import typer

from pipelinejob.base.timeline import Timeline
from pipelinejob.planning.planner import predicted_timeline
from pipelinejob.planning.serving import foretold_timeline
from pipelinejob_operator.cli.exits import Exit, complain
from pipelinejob_operator.cli.given.costs import ProfileOption
from pipelinejob_operator.cli.given.filling import fill
from pipelinejob_operator.cli.given.model_config import ConfigTraining
from pipelinejob_operator.cli.given.text_files import check_writable, write_text
from pipelinejob_operator.cli.given.together import refuse
from pipelinejob_operator.cli.plan import options
from pipelinejob_operator.cli.plan.asked import Asked, plans
from pipelinejob_operator.cli.plan.document import document, objects
from pipelinejob_operator.cli.plan.inventory import Places
from pipelinejob_operator.cli.plan.terminal import print_plan
from pipelinejob_operator.cli.plan.view import Shown
from pipelinejob_operator.cli.shown.output import Format, FormatOption, to_yaml, write
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.report.pages.plan import plan_page


def plan(
    file: options.Manifest,
    *,
    nodes: options.Nodes = None,
    pods: options.Pods = None,
    fabric: options.Fabric = None,
    kubeconfig: options.Kubeconfig = None,
    context: options.Context = None,
    empty: options.Empty = False,
    topology_profile: options.TopologyProfile = None,
    hardware: options.Hardware = None,
    gpus: options.Gpus = None,
    product: options.Product = None,
    sequence_length: options.SequenceLength = None,
    batch_size: options.BatchSize = None,
    alternatives: options.Alternatives = None,
    write_sizes: options.Write = False,
    profile: ProfileOption = None,
    output: FormatOption = Format.TABLE,
    gantt: options.Gantt = False,
    html: options.Html = None,
    manifests: options.Manifests = False,
    image: options.Image = None,
) -> None:
    """Print the plan: stages, layers, predicted step time, bubble and memory, and where it would stand.

    Touches nothing, but with --write the manifest. Ends with 4 if the job does not fit on the
    nodes given, and says what would.
    """
    _refuse_contradictions(
        manifests=manifests, image=image, output=output, gantt=gantt, html=html, alternatives=alternatives
    )
    check_writable(html, "--html")
    settings = ControllerSettings(trainer_image=image or options.DEFAULT_IMAGE)
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
            timeline = _timeline(shown) if gantt else None
            write(document(shown.view), output, partial(print_plan, shown.view, timeline=timeline))
    if html is not None:
        write_text(html, "--html", plan_page([(shown.view, shown.costs) for shown in every]))
    _end(every)


def _timeline(shown: Shown) -> Timeline:
    """Return the timeline that is predicted: of a step, or of passes where a job serves."""
    plan = shown.view.plan
    if shown.view.serves:
        return foretold_timeline(shown.job.spec, plan.stages, shown.costs)
    return predicted_timeline(plan, shown.costs)


def _refuse_contradictions(
    *, manifests: bool, image: str | None, output: Format, gantt: bool, html: Path | None, alternatives: int | None
) -> None:
    """Refuse options that say nothing, or something else, beside the others given."""
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
