"""What a stage counts of its own work, for the first stage and for metrics."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Sums since the process began. `in_pass_s` is how long the present pass has taken; 0 between passes."""

    passes: int = 0
    busy_s: float = 0.0
    rows: int = 0
    tokens: int = 0
    in_pass_s: float = 0.0


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
