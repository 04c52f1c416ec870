"""`pipelinejob-trainer data prepare` and `data show`: their arguments, and how they end."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from pipelinejob.base.errors import PipelineJobError
from pipelinejob.contract.progress import ExitCode
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.data.prepare.errors import FolderError

_FOLDER, _INTERRUPTED = 73, 130  # 73 is EX_CANTCREAT


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands."""
    data = commands.add_parser("data", help="prepare data to train on, or look at what is prepared")
    kinds = data.add_subparsers(title="commands", required=True)

    prepare = kinds.add_parser("prepare", help="make shards of tokens out of text, jsonl or parquet")
    prepare.add_argument("--from", dest="sources", action="append", required=True, help="a file, glob or folder")
    prepare.add_argument("--tokenizer", type=Path, required=True, help="a tokenizer's folder")
    prepare.add_argument("--to", type=Path, required=True, help="the folder to write")
    prepare.add_argument("--text-column", help="the texts of jsonl and parquet; text if not given")
    prepare.add_argument("--messages-column", help="conversations of jsonl and parquet, of which answers count")
    prepare.add_argument("--separator", help="what stands between documents of a text file")
    prepare.add_argument("--end-of-text", help="the token that closes documents; '': none")
    prepare.add_argument("--workers", type=int, default=_usable_cores(), help="processes")
    prepare.add_argument("--skip-bad", action="store_true", help="leave out documents that cannot be used")
    prepare.add_argument("--fresh", action="store_true", help="delete what an earlier preparation left in the folder")
    prepare.set_defaults(command=_prepare)

    show = kinds.add_parser("show", help="what a prepared folder holds")
    show.add_argument("folder", type=Path)
    show.add_argument("--verify", action="store_true", help="read all of it and hold it against its checksums")
    show.add_argument("--document", type=int, help="print this document; what does not count between ⟦ and ⟧")
    show.add_argument("--json", action="store_true", help="as JSON")
    show.set_defaults(command=_show)


def _prepare(options: argparse.Namespace) -> None:
    from pipelinejob_trainer.data.prepare.prepare import Request, prepare  # noqa: PLC0415  # numpy and more

    request = Request(
        sources=tuple(options.sources),
        tokenizer=options.tokenizer,
        target=options.to,
        workers=max(1, options.workers),
        text_column=options.text_column,
        messages_column=options.messages_column,
        separator=options.separator,
        end_of_text=options.end_of_text,
        skips_bad=options.skip_bad,
        is_fresh=options.fresh,
    )
    _end(lambda: prepare(request))


def _show(options: argparse.Namespace) -> None:
    from pipelinejob_trainer.data.prepare.show import show  # noqa: PLC0415  # as above

    _end(lambda: show(options.folder, verifies=options.verify, document=options.document, is_json=options.json))


def _end(work: Callable[[], None]) -> None:
    """Do the work; end the process with a code that says how it went."""
    try:
        work()
    except PipelineJobError as error:
        sys.stderr.write(f"error: {error}\n")
        known = ExitCode.USER_ERROR if isinstance(error, UserError) else ExitCode.FAILURE
        sys.exit(_FOLDER if isinstance(error, FolderError) else known)
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted; the same command goes on from what is done\n")
        sys.stderr.flush()
        os._exit(_INTERRUPTED)  # at once, and the other processes with it: whatever is half done is done anew


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
