"""Times what a device computes, while others may use the same processor."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(slots=True)
class Stopwatch:
    """Times work on a device: on a GPU until it is done, on a shared CPU by thread time.

    So compute is measured on a busy machine too, and how much of the time a processor was
    available.
    """

    device: torch.device
    shares_processors: bool = False
    _wall_s: float = 0.0
    _own_s: float = 0.0

    @property
    def availability(self) -> float:
        """The fraction of the time in which a processor was available; 1 on an idle machine."""
        return min(self._own_s / self._wall_s, 1.0) if self._wall_s else 1.0

    @contextmanager
    def timed(self, seconds: list[float]) -> Iterator[None]:
        """Add the seconds inside to a list."""
        clock: Callable[[], float] = time.thread_time if self.shares_processors else time.perf_counter
        self._wait_for_device()
        began, began_own = time.perf_counter(), clock()
        yield
        self._wait_for_device()
        own_s = clock() - began_own
        self._wall_s += time.perf_counter() - began
        self._own_s += own_s
        seconds.append(own_s)

    def _wait_for_device(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
