"""The console that results for people are printed on, and how wide it is."""

import errno
import os
import sys

from rich.console import Console

_UNBOUNDED = 100_000  # columns: more than any row has
_CHART = 100  # columns of a chart that no terminal bounds


def console_for_people() -> Console:
    """Return the console for results: as wide as the terminal, or unlimited without one."""
    has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    return _Console(highlight=False, width=None if has_width else _UNBOUNDED)


class _Console(Console):
    """A console that leaves it to `main` to handle a reader that went away."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def is_unbounded(console: Console) -> bool:
    """Return whether the width has no limit, as there is no terminal that would break lines."""
    return console.width == _UNBOUNDED


def chart_width(console: Console) -> int:
    """Return the columns of a chart: the terminal's, or a usual number where there is none."""
    return _CHART if is_unbounded(console) else console.width
