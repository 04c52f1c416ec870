"""`pipelinejob-trainer checkpoints list`, `verify` and `prune`: their arguments, and how they end."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from pipelinejob.base.errors import PipelineJobError
from pipelinejob.contract.progress import ExitCode


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands."""
    checkpoints = commands.add_parser("checkpoints", help="list, verify or prune the checkpoints of a job")
    kinds = checkpoints.add_subparsers(title="commands", required=True)
    for name, work, summary in (
        ("list", _list, "which there are"),
        ("verify", _verify, "read all of them, and hold them against their checksums"),
    ):
        kind = kinds.add_parser(name, help=summary)
        kind.add_argument("folder", type=Path)
        kind.add_argument("--json", action="store_true", help="as JSON")
        kind.set_defaults(command=work)
    prune = kinds.add_parser("prune", help="delete all but the newest ones")
    prune.add_argument("folder", type=Path)
    prune.add_argument("--keep", type=int, required=True, help="how many whole ones stay")
    prune.add_argument("--older-than", type=float, default=0.0, metavar="SECONDS", help="only those so old")
    prune.add_argument("--dry-run", action="store_true", help="only say what would go")
    prune.set_defaults(command=_prune)


def _list(options: argparse.Namespace) -> None:
    from pipelinejob_trainer.checkpoint import listing  # noqa: PLC0415  # torch takes seconds to import

    _end(lambda: listing.show(tuple(listing.found(listing.folder_at(options.folder))), as_json=options.json))


def _verify(options: argparse.Namespace) -> None:
    from pipelinejob_trainer.checkpoint import listing  # noqa: PLC0415  # as above

    _end(lambda: listing.show(tuple(listing.verified(listing.folder_at(options.folder))), as_json=options.json))


def _prune(options: argparse.Namespace) -> None:
    from pipelinejob_trainer.checkpoint import listing  # noqa: PLC0415  # as above

    _end(
        lambda: listing.prune(
            listing.folder_at(options.folder), keep=options.keep, is_dry=options.dry_run, older_s=options.older_than
        )
    )


def _end(work: Callable[[], None]) -> None:
    try:
        work()
    except PipelineJobError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(ExitCode.USER_ERROR)
    except OSError as error:
        sys.stderr.write(f"{error.filename}: {error.strerror}; let this user read and write the folder\n")
        sys.exit(ExitCode.USER_ERROR)
