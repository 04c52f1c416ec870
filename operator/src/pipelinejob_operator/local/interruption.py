"""SIGINT, SIGTERM and SIGHUP, taken in by the running event loop for as long as something can be done about them."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def calling(act: Callable[[], object]) -> Iterator[None]:
    """Call `act` for each signal that comes inside."""
    loop = asyncio.get_running_loop()
    for number in _NUMBERS:
        loop.add_signal_handler(number, act)
    try:
        yield
    finally:
        for number in _NUMBERS:
            loop.remove_signal_handler(number)


@contextmanager
def cancelling() -> Iterator[None]:
    """Cancel the running task when a signal comes inside: what it waits for is tidied up, and it ends."""
    task = asyncio.current_task()
    assert task is not None, "only a task waits"
    with calling(task.cancel):
        yield
