"""`pipelinejob schedule list`: the schedules by name, and what each one is."""

from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from pipelinejob.schedules.families import FAMILIES
from pipelinejob.schedules.family import Family
from pipelinejob_operator.cli.shown.console import console_for_people, is_unbounded
from pipelinejob_operator.cli.shown.output import Format, FormatOption, write


def list_schedules(output: FormatOption = Format.TABLE) -> None:
    """List all schedules: what each one does, by whom, with how many chunks on a rank."""
    write([_entry(family) for family in FAMILIES.values()], output, _print)


def _entry(family: Family) -> dict[str, Any]:
    return {
        "schedule": family.name.value,
        "title": family.title,
        "source": family.source,
        "chunks": family.usual_chunks,
        "chunk_choice": family.chunk_choice,
        "split_backward": family.is_split,
        "looks_at_costs": family.looks_at_costs,
        "asynchronous": family.is_asynchronous,
    }


def _print() -> None:
    console = console_for_people()
    below, between = (0, "; ") if is_unbounded(console) else (1, "\n")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim", padding=(0, 1, below, 0))
    table.add_column("schedule", no_wrap=True, style="bold")
    table.add_column("chunks", justify="right", no_wrap=True)
    table.add_column("backward", no_wrap=True)
    table.add_column("what it does")
    for family in FAMILIES.values():
        chunks = f"{family.usual_chunks}{'+' if family.chunk_choice else ''}"
        backward = "split" if family.is_split else "full" if family.trains else "–"
        made_for = "; made for the costs" if family.looks_at_costs else ""
        said = Text.assemble(family.title + made_for, between, (family.source, "dim"))
        table.add_row(family.name.value, chunks, backward, said)
    console.print(table)
    console.print(
        "+: the usual number, -v asks for another. `schedule show NAME -p 4 -m 8` draws one, `schedule show custom"
        " --file FILE` one of your own.",
        style="dim",
        markup=False,
    )
