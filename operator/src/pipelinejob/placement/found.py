"""What placers of chains have in common: the limits that they keep to, and the chains that they find."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Protocol

from pipelinejob.placement.prices import Path

Limits = Mapping[Path, int]  # stages that a domain, or a node, may take at most


@dataclass(frozen=True, kw_only=True)
class Found:
    """A chain that a placer found: its cost, with tie-breaks, and a way to look up its nodes.

    Many are found to be looked at no further, so the nodes are named when asked for: before any
    room is taken.
    """

    cost: float
    walk: Callable[[], Iterable[Path]]

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        """Return the nodes by their paths, in order of the stages."""
        return tuple(self.walk())

    def taken(self, depth: int) -> Counter[Path]:
        """Count the stages by domain of a depth."""
        return Counter(path[:depth] for path in self.paths)


class Placer(Protocol):
    """Finds chains of stages, and counts the room that domains have for them."""

    def least(self, *, depth: int, limits: Limits | None = None, within: float = inf) -> Found | None:
        """Return the cheapest chain within one domain of a depth or deeper that it finds under the limits.

        One that costs more than `within` need not be found.
        """

    def rooms(self, depth: int) -> Mapping[Path, int]:
        """Return the room of each domain of a depth."""

    @property
    def ties_s(self) -> float:
        """The most that tie-breaks add to a chain's cost."""
