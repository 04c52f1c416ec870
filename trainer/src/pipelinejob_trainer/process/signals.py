"""SIGTERM and SIGINT: a request to stop between two steps, and what happens if that is too late.

Python runs signal handlers on the main thread only, which may be blocked in a collective. So a
thread receives the request, through the pipe that the interpreter's C handler writes to at once.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Callable

_MARGIN_S = 3.0  # of the grace period, kept for the termination message


class StopRequest:
    """Whether this process was asked to stop, and what happens if it cannot in time."""

    def __init__(self, *, grace_s: float, on_overdue: Callable[[], None]) -> None:
        """`on_overdue` is called in a thread shortly before the grace period ends.

        Before `start_honouring` there is nothing to save, so it is called at once.
        """
        self._wished = threading.Event()
        self._honouring = threading.Event()
        self._grace_s = grace_s
        self._overdue_at = math.inf
        self._on_overdue = on_overdue

    def listen(self) -> None:
        """Receive signals from now on; call it in the main thread."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)  # the thread does the work; the default would end the process
        threading.Thread(target=self._receive, args=(reader,), name="signals", daemon=True).start()

    def start_honouring(self) -> None:
        """From now on a loop looks at `is_set` between steps, and saves before it stops."""
        self._honouring.set()

    def is_set(self) -> bool:
        """Return whether a stop was asked for."""
        return self._wished.is_set()

    def remaining_s(self) -> float:
        """Return the seconds in which there is still time to save; infinitely many where no stop was asked for."""
        return self._overdue_at - time.monotonic()

    def _receive(self, reader: int) -> None:
        while os.read(reader, 1)[0] not in {signal.SIGTERM, signal.SIGINT}:
            pass  # another signal's number
        self._overdue_at = time.monotonic() + max(0.0, self._grace_s - _MARGIN_S)
        self._wished.set()
        if self._honouring.is_set():
            time.sleep(max(0.0, self._grace_s - _MARGIN_S))
        self._on_overdue()
