"""A process that makes no progress says so in its log once, with the stack of each of its threads."""

import faulthandler
import sys
import threading
from collections.abc import Callable
from typing import TextIO

_LOOK_S = 1.0


class HangWatch:
    """Looks every second whether there is something to say; use `start`, and `look` in tests."""

    def __init__(
        self,
        reason: Callable[[], str | None],
        whom: Callable[[], str],
        *,
        tell: Callable[[], None] = lambda: None,
        log: TextIO | None = None,
    ) -> None:
        """`reason` says what is the matter, None if nothing is; `whom` for whom this process waits.

        `tell` is called once the stacks are written: who hears of a hang may end this process at
        once.
        """
        self._reason = reason
        self._whom = whom
        self._tell = tell
        self._log = log
        self._was_told = False

    def start(self) -> None:
        """Look in a thread, for as long as the process lives."""
        threading.Thread(target=self._run, name="hang", daemon=True).start()

    def look(self) -> None:
        """Write stacks if nothing goes on, and did when it was looked last."""
        reason = self._reason()
        if reason is not None and not self._was_told:
            log = self._log or sys.stderr
            log.write(f"{reason}; this process {self._whom()}. What each of its threads does:\n")
            log.flush()
            faulthandler.dump_traceback(file=log, all_threads=True)
            log.flush()
            self._tell()
        self._was_told = reason is not None

    def _run(self) -> None:
        pause = threading.Event()
        while not pause.wait(_LOOK_S):
            self.look()
