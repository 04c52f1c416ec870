"""What a process and its children take of the machine: processor time and memory, as Linux counts them."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20
# Fields of /proc/PID/stat behind the command's name, which may hold anything but its closing
# parenthesis.
_SESSION, _USER, _SYSTEM, _CHILDREN_USER, _CHILDREN_SYSTEM, _RESIDENT = 3, 11, 12, 13, 14, 21


@dataclass(slots=True, kw_only=True)
class Usage:
    """What a session took while it was looked at; complete once `using` has ended."""

    wall_s: float = 0.0
    processor_s: float = 0.0
    resident_mib: float = 0.0  # at the end

    @property
    def cores(self) -> float:
        return self.processor_s / self.wall_s


@contextmanager
def using(*sessions: int) -> Iterator[Usage]:
    """Measure what the processes of some sessions take during the block."""
    usage, started, before_s = Usage(), time.monotonic(), processor_s(*sessions)
    try:
        yield usage
    finally:
        usage.wall_s = time.monotonic() - started
        usage.processor_s = processor_s(*sessions) - before_s
        usage.resident_mib = resident_mib(*sessions)


def processor_s(*sessions: int) -> float:
    """Return the processor seconds of all processes of some sessions, and of those that they waited for."""
    fields = (_USER, _SYSTEM, _CHILDREN_USER, _CHILDREN_SYSTEM)
    return sum(int(stat[field]) for stat in _stats(sessions) for field in fields) / _TICKS_PER_S


def resident_mib(*sessions: int) -> float:
    """Return the resident memory of all processes of some sessions; pages that they share count in each."""
    return sum(int(stat[_RESIDENT]) for stat in _stats(sessions)) * _PAGE_MIB


def _stats(sessions: Collection[int]) -> Iterator[list[str]]:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            stat = (process / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        if int(stat[_SESSION]) in sessions:
            yield stat
