"""Ranks as threads of this process: their links, their sums, and the baton that lets one of them work at a time."""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pipelinejob.schedules.actions import Schedule
from pipelinejob_trainer.base.errors import PeerLostError
from pipelinejob_trainer.base.nesting import Gradients, Passed
from pipelinejob_trainer.communication.links import Links
from pipelinejob_trainer.communication.messages import Message, neighbours
from pipelinejob_trainer.runtime.reduction import Ranks
from support.training.queue_link import QueueLink

TIMEOUT_S = 300.0


class Baton:
    """Who works has it; who waits lets it go. Torch's random state is the whole process's, so without it dropout is
    drawn from whatever state another thread has just set. `is_needed` False lets all work at once."""

    def __init__(self, *, is_needed: bool = True) -> None:
        self._lock = threading.Lock()
        self._is_needed = is_needed

    @contextmanager
    def held(self) -> Iterator[None]:
        if self._is_needed:
            self._lock.acquire()
        try:
            yield
        finally:
            if self._is_needed:
                self._lock.release()

    @contextmanager
    def let_go(self) -> Iterator[None]:
        if self._is_needed:
            self._lock.release()
        try:
            yield
        finally:
            if self._is_needed:
                self._lock.acquire()


class PoliteLink(QueueLink):
    """A link whose receiver lets go of the baton while it waits."""

    def __init__(self, baton: Baton) -> None:
        super().__init__(timeout_s=TIMEOUT_S)
        self._baton = baton

    def _next(self, wanted: Message) -> tuple[Message, Passed | Gradients]:
        with self._baton.let_go():
            return super()._next(wanted)


def links(schedule: Schedule, baton: Baton) -> list[Links]:
    """Link all ranks of a pipeline."""
    every = {
        (source, target): PoliteLink(baton)
        for source in range(schedule.num_ranks)
        for target in neighbours(schedule, source)
    }
    return [
        Links(
            outboxes={target: link for (source, target), link in every.items() if source == rank},
            inboxes={source: link for (source, target), link in every.items() if target == rank},
        )
        for rank in range(schedule.num_ranks)
    ]


class Sums:
    """All-reduces of threads, added up in order of rank."""

    def __init__(self, baton: Baton) -> None:
        self._baton = baton
        self._met: dict[tuple[Ranks, int], _Meeting] = defaultdict(_Meeting)
        self._counts: dict[tuple[Ranks, int], int] = defaultdict(int)
        self._lock = threading.Lock()
        self._is_broken = False
        self.started: dict[int, list[Ranks]] = defaultdict(list)

    def abort(self) -> None:
        """Let nobody wait for a rank that has gone."""
        with self._lock:
            self._is_broken = True
            for meeting in self._met.values():
                meeting.is_over.set()

    def of(self, rank: int) -> Callable[[Ranks, torch.Tensor], Any]:
        def sum_over(ranks: Ranks, tensor: torch.Tensor) -> Any:
            assert rank in ranks
            with self._lock:
                self.started[rank].append(ranks)
                number = self._counts[ranks, rank]
                self._counts[ranks, rank] += 1
                meeting = self._met[ranks, number]
                meeting.join(ranks, rank, tensor)
                if self._is_broken:
                    meeting.is_over.set()
            return _Waiting(meeting, self._baton)

        return sum_over


class _Meeting:
    def __init__(self) -> None:
        self.tensors: dict[int, torch.Tensor] = {}
        self.is_over = threading.Event()
        self.is_complete = False

    def join(self, ranks: Ranks, rank: int, tensor: torch.Tensor) -> None:
        self.tensors[rank] = tensor
        if len(self.tensors) < len(ranks):
            return
        total = torch.zeros_like(tensor)
        for each in ranks:
            total += self.tensors[each]
        for each in self.tensors.values():
            each.copy_(total)
        self.is_complete = True
        self.is_over.set()


class _Waiting:
    def __init__(self, meeting: _Meeting, baton: Baton) -> None:
        self._meeting = meeting
        self._baton = baton

    def wait(self) -> None:
        with self._baton.let_go():
            assert self._meeting.is_over.wait(TIMEOUT_S), "a rank never came to an all-reduce"
        if not self._meeting.is_complete:
            raise PeerLostError("a rank went away before an all-reduce")


def run_ranks(work: Callable[[int], Any], count: int, baton: Baton, *, on_error: Callable[[int], None]) -> list[Any]:
    """Call `work(rank)` in threads; return what they returned, or raise what the first of them raised.

    Every rank computes with the caller's number of threads from its first operation on. torch
    applies that number to MKL in each thread anew, at the first operation that torch itself may
    run in parallel. An FFT before that one would use all cores, add up in another order, and so
    differ in its last bits.
    """
    results: dict[int, Any] = {}
    errors: list[BaseException] = []
    num_threads = torch.get_num_threads()

    def enter(rank: int) -> None:
        torch.set_num_threads(num_threads)
        try:
            with baton.held():
                results[rank] = work(rank)
        except Exception as error:  # noqa: BLE001 # handed to the test, whatever it is
            errors.append(error)
            on_error(rank)

    threads = [threading.Thread(target=enter, args=(rank,), daemon=True) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=2 * TIMEOUT_S)
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(count)]
