"""`pipelinejob line`: the jobs of a cluster that wait for room, in the order in which they are given it."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from pipelinejob.base.errors import PipelineJobError
from pipelinejob.spec.reported.conditions import ConditionType
from pipelinejob_operator.admission.line.priority import Priorities
from pipelinejob_operator.admission.line.queueing import Order, is_in_line
from pipelinejob_operator.cli.shown.console import console_for_people
from pipelinejob_operator.cli.shown.output import Format, FormatOption, write
from pipelinejob_operator.cluster import ClusterError, Object
from pipelinejob_operator.objects.job import condition, read_job


class LineError(PipelineJobError):
    """The line cannot be read, or the job that is asked for does not stand in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One job in line; the first has place 1."""

    place: int
    job: str  # namespace/name
    priority: int
    since: str  # RFC 3339
    reason: str  # of its condition Placed; empty before the operator has looked at it


def line(
    job: Annotated[str | None, typer.Argument(metavar="[NAMESPACE/NAME]", help="Show this job and the head.")] = None,
    *,
    kubeconfig: Annotated[Path, typer.Option(metavar="FILE", help="The cluster. It is read, never written.")],
    context: Annotated[str | None, typer.Option(metavar="NAME", help="The context of --kubeconfig.")] = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Print which jobs of a cluster wait for room, in the order of the line."""
    # Only here is the client's library loaded, so that every other use of the command starts fast.
    from pipelinejob_operator.kube.reading import read_line  # noqa: PLC0415

    try:
        jobs, classes = asyncio.run(read_line(kubeconfig, context))
    except ClusterError as error:
        raise LineError(f"--kubeconfig {kubeconfig}: {error}") from error
    standing = in_line(jobs, Priorities.read(classes))
    shown = standing if job is None else _head_and(job, standing)
    write([_as_data(each) for each in shown], output, lambda: _print(shown, of=len(standing)))


def in_line(jobs: Iterable[Object], priorities: Priorities) -> list[Standing]:
    """Return the jobs that wait for room, as the operator sorts them."""
    order = Order(priorities=priorities)
    waiting = sorted((each for each in map(read_job, jobs) if is_in_line(each)), key=order.rank)
    return [
        Standing(
            place=place,
            job=str(each.key),
            priority=priorities.of(each).value,
            since=each.status.waiting_since or each.created,
            reason=placed.reason if (placed := condition(each.status, ConditionType.PLACED)) else "",
        )
        for place, each in enumerate(waiting, start=1)
    ]


def _head_and(job: str, standing: Sequence[Standing]) -> list[Standing]:
    found = [each for each in standing if each.job == job]
    if not found:
        raise LineError(f"{job}: no job of this name waits in line; give NAMESPACE/NAME, or none to see all that do")
    return [each for each in standing[:1] if each.job != job] + found


def _as_data(each: Standing) -> dict[str, Any]:
    return {name: getattr(each, name) for name in Standing.__dataclass_fields__}


def _print(shown: Sequence[Standing], *, of: int) -> None:
    console = console_for_people()
    if not shown:
        console.print("no job waits for room")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    table.add_column(f"place of {of}", justify="right")
    for title in ("job", "priority", "waits since", "reason"):
        table.add_column(title, justify="right" if title == "priority" else "left")
    for each in shown:
        table.add_row(str(each.place), each.job, str(each.priority), each.since, each.reason)
    console.print(table)
