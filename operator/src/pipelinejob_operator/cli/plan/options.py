"""The options of `pipelinejob plan`: what each takes, and what --help says of it."""

from pathlib import Path
from typing import Annotated

import typer

from pipelinejob_operator.cli.plan.asked import MOST_ALTERNATIVES

DEFAULT_IMAGE = "pipelinejob/trainer:latest"
_WHERE = "Where to place it"
_WHAT = "What to plan"

Manifest = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="A manifest in YAML or JSON, or the config.json of a Hugging Face model; - reads standard input.",
    ),
]
Nodes = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Nodes: the output of `kubectl get nodes -o json`, or -o yaml.",
        rich_help_panel=_WHERE,
    ),
]
Pods = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="What stands on --nodes: the output of `kubectl get pods -A -o json`; nothing if not given.",
        rich_help_panel=_WHERE,
    ),
]
Fabric = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A described cluster, as in examples/fabrics.", rich_help_panel=_WHERE),
]
Kubeconfig = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="A live cluster: its nodes, and what is free on them now.", rich_help_panel=_WHERE
    ),
]
Context = Annotated[
    str | None, typer.Option(metavar="NAME", help="The context of --kubeconfig.", rich_help_panel=_WHERE)
]
Empty = Annotated[
    bool,
    typer.Option("--empty", help="As if all work on the nodes were done.", rich_help_panel=_WHERE),
]
TopologyProfile = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="TopologyProfiles that the cluster would have.", rich_help_panel=_WHERE),
]
Hardware = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Device and link kinds beside the known ones.", rich_help_panel=_WHERE),
]
Gpus = Annotated[
    int | None,
    typer.Option(min=1, help="Use so many: degrees, schedule and micro-batches are chosen.", rich_help_panel=_WHAT),
]
Product = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="What the GPUs are, where no node says it: H100.", rich_help_panel=_WHAT),
]
SequenceLength = Annotated[
    int | None,
    typer.Option(min=1, metavar="TOKENS", help="Of a config.json: tokens in a sequence.", rich_help_panel=_WHAT),
]
BatchSize = Annotated[
    int | None,
    typer.Option(min=1, metavar="COUNT", help="Of a config.json: sequences in a step.", rich_help_panel=_WHAT),
]
Alternatives = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="COUNT",
        help="Other configurations to price; or 0.",
        show_default=str(MOST_ALTERNATIVES),
        rich_help_panel=_WHAT,
    ),
]
Write = Annotated[
    bool,
    typer.Option(
        "--write",
        help="Write numLayers and config of a Hugging Face model into the manifest first, from its folder.",
        rich_help_panel=_WHAT,
    ),
]
Gantt = Annotated[
    bool, typer.Option("--gantt", help="Draw the predicted timeline of one step, or of passes of requests.")
]
Html = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Write a page: the fabric with the chain of stages on it, timeline, alternatives."
    ),
]
Manifests = Annotated[
    bool, typer.Option("--manifests", help="Print the objects that the operator would create, as YAML.")
]
Image = Annotated[str | None, typer.Option(help="The trainer's image, for --manifests.", show_default=DEFAULT_IMAGE)]
