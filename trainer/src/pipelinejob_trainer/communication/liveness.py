"""Notices within seconds that another rank is gone, frozen, or cut off.

A process that ends closes its connections, which gloo reports at once. One that only stops
answering would block the others until their longest timeout. So every rank increments a number in
the rendezvous store and watches the numbers of a few neighbours; a rank that sees one standing
still records it in the store, where all look.

The store lives in rank 0. Where that is frozen, asking the store blocks; so a second thread looks
whether the first still comes back.
"""

import threading
import time
from collections.abc import Callable, Iterable

from torch.distributed import Store  # type: ignore[attr-defined] # torch re-exports it silently

_LOST = "lost"
_STORES = 0  # the rank in which the store lives
_PERIOD_S = 1.0
SILENCE_S = 20.0  # a rank that holds Python's lock this long counts as dead


class Liveness:
    """A thread that sends this rank's heartbeat and watches `neighbours`.

    It calls `on_lost` at most once. `store` must be a separate connection: a connection serves one
    caller at a time.
    """

    def __init__(
        self,
        store: Store,
        *,
        rank: int,
        neighbours: Iterable[int],
        on_lost: Callable[[int], None],
        silence_s: float = SILENCE_S,
    ) -> None:
        self._store = store
        self._rank = rank
        self._seen = {each: (b"", time.monotonic()) for each in neighbours if each != rank}
        self._on_lost = on_lost
        self._silence_s = silence_s
        self._closed = threading.Event()
        self._beats = 0
        self._thread = threading.Thread(target=self._run, name="liveness", daemon=True)
        self._answers = 0  # of the store
        self._lost = threading.Lock()

    def start(self) -> None:
        """Start the heartbeat and the watch."""
        self._seen = {rank: (beat, time.monotonic()) for rank, (beat, _) in self._seen.items()}
        self._thread.start()
        threading.Thread(target=self._watch_store, name="liveness-store", daemon=True).start()

    def close(self) -> None:
        """Stop watching; call it before the ranks leave on purpose."""
        self._closed.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=self._silence_s)  # a frozen store may never answer

    def give_up(self) -> None:
        """Tell the others that this rank is leaving."""
        self.close()
        self._say_lost(self._rank)

    def _run(self) -> None:
        while not self._closed.wait(_PERIOD_S):
            lost = self._look()
            self._answers += 1
            if lost is not None:
                self._end(lost)

    def _watch_store(self) -> None:
        # Its own rounds are counted, not seconds: a process that was frozen itself has not waited
        # for anybody.
        answers, rounds = self._answers, 0
        while not self._closed.wait(_PERIOD_S):
            rounds = rounds + 1 if answers == self._answers else 0
            answers = self._answers
            if rounds * _PERIOD_S > self._silence_s:
                self._end(_STORES)

    def _end(self, lost: int) -> None:
        with self._lost:
            is_first = not self._closed.is_set()
            self._closed.set()
        if is_first:
            self._on_lost(lost)

    def _look(self) -> int | None:
        """Send one heartbeat; return a rank that is lost, or None."""
        try:
            self._beats += 1
            self._store.set(str(self._rank), str(self._beats))
            if self._store.check([_LOST]):
                return int(self._store.get(_LOST))
            silent = next((rank for rank in self._seen if self._is_silent(rank)), None)
        except RuntimeError:
            return _STORES
        if silent is not None:
            self._say_lost(silent)
        return silent

    def _is_silent(self, rank: int) -> bool:
        beat, since = self._seen[rank]
        new = self._store.get(str(rank)) if self._store.check([str(rank)]) else b""
        if new != beat:
            self._seen[rank] = (new, time.monotonic())
            return False
        return time.monotonic() - since > self._silence_s

    def _say_lost(self, rank: int) -> None:
        try:
            self._store.set(_LOST, str(rank))
        except RuntimeError:  # its host is the one that is gone; all will notice
            return


def neighbours(rank: int, *, num_stages: int, num_replicas: int, tensor: int = 1) -> tuple[int, ...]:
    """Return whom a rank watches: both neighbouring stages, the next replica, the next that shares its layers."""
    place, mine = divmod(rank, tensor)
    replica, stage = divmod(place, num_stages)
    along = [replica * num_stages + each for each in (stage - 1, stage + 1) if 0 <= each < num_stages]
    across = ((replica + 1) % num_replicas) * num_stages + stage
    beside = place * tensor + (mine + 1) % tensor
    watched = (*(each * tensor + mine for each in (*along, across)), beside)
    return tuple(dict.fromkeys(each for each in watched if each != rank))
