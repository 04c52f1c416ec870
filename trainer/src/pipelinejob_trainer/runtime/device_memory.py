"""The memory of tensors on the device between marks, and its peak, from torch's own record."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch

_MARK_BYTES = 104_729  # a prime, so that no tensor of numbers has it


def peak_bytes(device: torch.device) -> int:
    """Return this process's peak memory, in bytes: on a GPU that of tensors, otherwise all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


class Level(NamedTuple):
    """Bytes held at a mark, counted from the first one, and the peak since the mark before."""

    held: int
    peak: int


class MemoryWatch(Protocol):
    """Marks moments while it watches; afterwards `levels` returns the memory at each."""

    def mark(self) -> int:
        """Mark this moment; return the mark's number."""

    def levels(self) -> list[Level]:
        """Return the level at each mark."""


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


def _changes(profile: torch.profiler.profile) -> list[int]:
    """Return the bytes that were allocated (above 0) or freed (below 0), in order."""
    results = profile.profiler.kineto_results if profile.profiler is not None else None
    assert results is not None, "the profile has ended"
    events = (event for event in results.events() if event.name() == "[memory]")
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]  # type: ignore[attr-defined]


@dataclass(slots=True)
class _ProcessorWatch:
    """Memory of the CPU, whose allocator keeps no count, from the profiler's record.

    A mark is itself an allocation, of a unique size, so its position among the others does not
    depend on clocks.
    """

    num_marks: int = 0
    changes: list[int] = field(default_factory=list)

    def mark(self) -> int:
        torch.empty(_MARK_BYTES, dtype=torch.uint8)
        self.num_marks += 1
        return self.num_marks - 1

    def levels(self) -> list[Level]:
        found: list[Level] = []
        held = peak = 0
        for change in self.changes:
            if change == _MARK_BYTES:
                found.append(Level(held, peak))
                peak = held
            elif change != -_MARK_BYTES:
                held += change
                peak = max(peak, held)
        first = found[0].held
        return [Level(level.held - first, level.peak - first) for level in found]


class _CudaWatch:
    """Memory of a GPU, counted by its allocator."""

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
