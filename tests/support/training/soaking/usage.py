"""What a process holds, and whether that grows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TOLERATED_BYTES = 32 << 20  # of allocators' caches; a step's state is kept in less
_MOMENTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a process holds."""

    descriptors: int
    threads: int
    memory: int  # bytes, resident

    @classmethod
    def of(cls, pid: int) -> Usage:
        process = Path(f"/proc/{pid}")
        pages = int((process / "statm").read_text().split()[1])
        return cls(
            descriptors=len(list((process / "fd").iterdir())),
            threads=len(list((process / "task").iterdir())),
            memory=pages * os.sysconf("SC_PAGE_SIZE"),
        )

    def __str__(self) -> str:
        return f"{self.descriptors} descriptors, {self.threads} threads, {self.memory / 2**20:.0f} MiB"


def check_growth(usage: Sequence[Usage]) -> None:
    """See that what a survivor holds after the last recoveries is what it held after the first.

    A moment may show two meetings at once, one of them about to be let go; what leaks, each later
    moment shows.
    """
    if len(usage) < 2 * _MOMENTS:
        return
    for what, tolerated in (("descriptors", 0), ("threads", 0), ("memory", TOLERATED_BYTES)):
        first = max(getattr(each, what) for each in usage[:_MOMENTS])
        last = min(getattr(each, what) for each in usage[-_MOMENTS:])
        assert last <= first + tolerated, f"{what} grew from {first} to {last}"
