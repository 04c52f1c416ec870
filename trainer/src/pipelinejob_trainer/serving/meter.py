"""What a stage counts of its own work, for the first stage and for metrics."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pipelinejob.base.errors import PipelineJobError
from pipelinejob.serving.chunks import PassCost
from pipelinejob.serving.scheduler import Limits

LONGEST_PASS_S = 60.0  # a stage that works on one pass for longer is taken for stuck, where passes are short
_TIMES_AS_LONG = 20


class StuckError(PipelineJobError):
    """A pass takes so long that it is not expected to end; the process has to begin anew."""


def longest_pass_s(cost: PassCost, limits: Limits) -> float:
    """Return how long a pass may take a stage, by what passes cost it when it began."""
    chunk_s = cost.seconds(rows=1, past=limits.cache_tokens, new=limits.chunk_tokens)
    tokens_s = cost.seconds(rows=limits.group_size, past=limits.cache_tokens / limits.group_size, new=1)
    return max(LONGEST_PASS_S, _TIMES_AS_LONG * chunk_s, _TIMES_AS_LONG * tokens_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Sums since the process began. `in_pass_s` is how long the present pass has taken; 0 between passes."""

    passes: int = 0
    busy_s: float = 0.0
    rows: int = 0
    tokens: int = 0
    in_pass_s: float = 0.0


def check_moves(reading: Reading, longest_s: float) -> None:
    """Raise StuckError where the present pass has taken too long."""
    if reading.in_pass_s > longest_s:
        raise StuckError(f"has worked on one pass for {reading.in_pass_s:.0f} s, where {longest_s:.0f} s is the most")


class Meter:
    """Counts passes; read from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._passes = self._rows = self._tokens = 0
        self._busy_s = 0.0
        self._begun: float | None = None

    @contextmanager
    def of_pass(self, *, rows: int, tokens: int) -> Iterator[None]:
        """Count the pass that is worked on inside."""
        begun = time.perf_counter()
        with self._lock:
            self._begun = begun
        try:
            yield
        finally:
            with self._lock:
                self._begun = None
                self._busy_s += time.perf_counter() - begun
                self._passes += 1
                self._rows += rows
                self._tokens += tokens

    def read(self) -> Reading:
        """Return the sums, with the part of the present pass that is over."""
        with self._lock:
            in_pass_s = 0.0 if self._begun is None else time.perf_counter() - self._begun
            return Reading(
                passes=self._passes,
                busy_s=self._busy_s + in_pass_s,
                rows=self._rows,
                tokens=self._tokens,
                in_pass_s=in_pass_s,
            )
