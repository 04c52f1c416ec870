"""`pipelinejob data`: documents made into tokens that a job trains on, and a look at them, by the trainer."""

from pathlib import Path
from typing import Annotated

import typer

from pipelinejob.base.errors import PipelineJobError
from pipelinejob.contract.progress import ExitCode
from pipelinejob_operator.cli.exits import Exit
from pipelinejob_operator.cli.given.together import refuse
from pipelinejob_operator.cli.trainer import run_trainer

app = typer.Typer(
    help="Prepare data to train on, or look at what is prepared.", no_args_is_help=True, add_completion=False
)
_ENDINGS = {ExitCode.OK: Exit.OK, ExitCode.USER_ERROR: Exit.USAGE, 73: Exit.FOLDER, 130: Exit.INTERRUPTED}
_WHAT, _HOW = "What to read", "How"


class DataError(PipelineJobError):
    """What is asked for cannot be prepared."""


@app.command()
def prepare(
    more: Annotated[
        list[str] | None, typer.Argument(metavar="[PATHS]...", help="Further paths, as after --from.")
    ] = None,
    *,
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="PATHS...",
            help="Files, globs or folders: text, jsonl, parquet, saved data sets; text and jsonl also with .gz.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    tokenizer: Annotated[Path, typer.Option(metavar="DIR", help="A tokenizer's folder, as transformers saves it.")],
    to: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write; spec.data.tokens names it.")],
    text_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The text, in jsonl and parquet.", show_default="text", rich_help_panel=_WHAT
        ),
    ] = None,
    messages_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Conversations, in jsonl and parquet: by the tokenizer's chat template; answers alone count.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    separator: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="What stands between documents of a text file (\\n: a new line); a file is a document if not given.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    end_of_text: Annotated[
        str | None,
        typer.Option(metavar="TOKEN", help="What closes a document; the tokenizer's own if not given, '' for none."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Processes; the result is the same for any number.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out documents that cannot be used, and say how many.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete what an earlier preparation left in the folder.")
    ] = False,
) -> None:
    """Make shards of tokens out of documents, with an index and checksums.

    Killed at whatever moment, the same command goes on from what is done.
    """
    sources = [*(source or []), *(more or [])]
    if not sources:
        raise DataError("--from: nothing is named to read; give files, globs or folders")
    given = {
        "--tokenizer": tokenizer,
        "--to": to,
        "--text-column": text_column,
        "--messages-column": messages_column,
        "--separator": None if separator is None else separator.replace("\\n", "\n").replace("\\t", "\t"),
        "--end-of-text": end_of_text,
        "--workers": workers,
    }
    _trainer(
        "prepare",
        *(f"--from={each}" for each in sources),
        *(f"{name}={value}" for name, value in given.items() if value is not None),
        *(["--skip-bad"] if skip_bad else []),
        *(["--fresh"] if fresh else []),
    )


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `data prepare` wrote.")],
    *,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all of it, and hold it against its checksums.")
    ] = False,
    document: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Print a document; what does not count stands between ⟦ and ⟧."),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the index as JSON, without its checksums of blocks.")
    ] = False,
) -> None:
    """Print what a prepared folder holds."""
    if json:
        refuse(given=document, option=f"--document {document}", why="--json prints the index; give one of them")
    _trainer(
        "show",
        *(["--verify"] if verify else []),
        *(["--json"] if json else []),
        *([] if document is None else [f"--document={document}"]),
        "--",
        str(folder),
    )


def _trainer(*arguments: str) -> None:
    run_trainer("data", *arguments, endings=_ENDINGS)
