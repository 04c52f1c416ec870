"""Who waits: each client's requests in their order, and the clients by turns."""

from collections import OrderedDict, deque
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """What may wait."""

    @property
    def client(self) -> str:
        """Whose it is."""


_Waiting = TypeVar("_Waiting", bound=Waiting)


class Line(Generic[_Waiting]):
    """A line in which a client with many requests takes no more turns than one with few.

    What was begun before and had to make room goes first.
    """

    def __init__(self) -> None:
        self._again: deque[_Waiting] = deque()
        self._by_client: OrderedDict[str, deque[_Waiting]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._again) + sum(map(len, self._by_client.values()))

    def add(self, waiting: _Waiting) -> None:
        """Add at the end of its client's."""
        self._by_client.setdefault(waiting.client, deque()).append(waiting)

    def add_again(self, waiting: _Waiting) -> None:
        """Add in front of all."""
        self._again.appendleft(waiting)

    def first(self) -> _Waiting | None:
        """Return whose turn it is."""
        if self._again:
            return self._again[0]
        return next(iter(self._by_client.values()))[0] if self._by_client else None

    def take(self) -> None:
        """Take out the first; the next turn is another client's."""
        if self._again:
            self._again.popleft()
            return
        client, of_client = next(iter(self._by_client.items()))
        of_client.popleft()
        del self._by_client[client]
        if of_client:
            self._by_client[client] = of_client

    def remove(self, waiting: _Waiting) -> None:
        """Take out one that waits no longer, wherever it stands."""
        if waiting in self._again:
            self._again.remove(waiting)
            return
        of_client = self._by_client[waiting.client]
        of_client.remove(waiting)
        if not of_client:
            del self._by_client[waiting.client]
