"""What tensors take on the device between marks, and at most: by torch's own record of allocations."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch

_APART_S = 200e-6  # marks and allocations are told apart by the clock


class Level(NamedTuple):
    """Bytes held at a mark, counted from the first one, and the most that was held since the mark before."""

    held: int
    peak: int


class MemoryWatch(Protocol):
    """Marks moments while it watches; afterwards it tells the levels."""

    def mark(self) -> int:
        """Mark this moment; give the mark's number."""

    def levels(self) -> list[Level]:
        """Give the level at each mark."""


@contextmanager
def watching(device: torch.device) -> Iterator[MemoryWatch]:
    """Watch what is allocated inside."""
    if device.type == "cuda":
        yield _CudaWatch(device)
        return
    watch = _ProcessorWatch()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        yield watch
    watch.changes = _changes(profile)


def _changes(profile: torch.profiler.profile) -> list[tuple[int, int]]:
    """Give (moment in ns, bytes allocated or, below 0, let go of), in order."""
    results = profile.profiler.kineto_results if profile.profiler is not None else None
    assert results is not None, "the profile has ended"
    events = (event for event in results.events() if event.name() == "[memory]")
    return sorted((event.start_ns(), event.nbytes()) for event in events)  # type: ignore[attr-defined] # it has both


@dataclass(slots=True)
class _ProcessorWatch:
    """Memory of the CPU, whose allocator keeps no count: the profiler's record of it is read afterwards."""

    marks: list[int] = field(default_factory=list)
    changes: list[tuple[int, int]] = field(default_factory=list)

    def mark(self) -> int:
        time.sleep(_APART_S)
        self.marks.append(time.time_ns())
        time.sleep(_APART_S)
        return len(self.marks) - 1

    def levels(self) -> list[Level]:
        found: list[Level] = []
        held = 0
        changes = [change for change in self.changes if change[0] >= self.marks[0]]
        position = 0
        for mark in self.marks:
            peak = held
            while position < len(changes) and changes[position][0] < mark:
                held += changes[position][1]
                peak = max(peak, held)
                position += 1
            found.append(Level(held, peak))
        return found


class _CudaWatch:
    """Memory of a GPU, whose allocator counts."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._levels: list[Level] = []

    def mark(self) -> int:
        torch.cuda.synchronize(self._device)
        held, peak = torch.cuda.memory_allocated(self._device), torch.cuda.max_memory_allocated(self._device)
        self._levels.append(Level(held, peak))
        torch.cuda.reset_peak_memory_stats(self._device)
        return len(self._levels) - 1

    def levels(self) -> list[Level]:
        first = self._levels[0].held
        return [Level(held - first, peak - first) for held, peak in self._levels]
