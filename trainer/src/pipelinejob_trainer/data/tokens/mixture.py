"""Whose turn it is: sources mixed by weight, without drift and without chance.

Turns repeat after a period in which each source has exactly its share. Within it, the source that
is furthest behind its share is next, so that no stretch of turns is off by more than a few.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm

import numpy as np
import numpy.typing as npt

_LONGEST_PERIOD = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """`source` has whose turn each of a period is, `before` how many turns that source has had in the period."""

    shares: tuple[int, ...]
    source: npt.NDArray[np.int64]
    before: npt.NDArray[np.int64]

    def turn(self, number: int) -> tuple[int, int]:
        """Return the source of a turn, and how many turns it has had before."""
        period, place = divmod(number, len(self.source))
        source = int(self.source[place])
        return source, period * self.shares[source] + int(self.before[place])

    def taken(self, number: int) -> tuple[int, ...]:
        """Return how many of the first `number` turns each source has."""
        periods, rest = divmod(number, len(self.source))
        extra = np.bincount(self.source[:rest], minlength=len(self.shares))
        return tuple(periods * share + int(more) for share, more in zip(self.shares, extra, strict=True))


def turns(weights: Sequence[float]) -> Turns:
    """Return the turns of sources with these weights: in proportion, or to the nearest 65,536th of all turns."""
    shares = _shares([Fraction(repr(weight)) for weight in weights])
    period = sum(shares)
    had = np.zeros(len(shares), dtype=np.int64)
    source, before = np.empty(period, dtype=np.int64), np.empty(period, dtype=np.int64)
    quotas = np.array(shares, dtype=np.int64)
    for place in range(period):
        behind = quotas * (place + 1) - had * period
        source[place] = chosen = int(behind.argmax())
        before[place] = had[chosen]
        had[chosen] += 1
    return Turns(shares=tuple(shares), source=source, before=before)


def _shares(weights: Sequence[Fraction]) -> list[int]:
    """Return whole numbers in proportion to the weights, each at least 1."""
    common = lcm(*(weight.denominator for weight in weights))
    exact = [int(weight * common) for weight in weights]
    divisor = gcd(*exact)
    if sum(exact) <= _LONGEST_PERIOD * divisor:
        return [each // divisor for each in exact]
    ideal = [Fraction(each * _LONGEST_PERIOD, sum(exact)) for each in exact]
    shares = [max(1, int(each)) for each in ideal]
    behind = sorted(range(len(ideal)), key=lambda k: shares[k] - ideal[k])  # the one that lost most first
    for k in behind[: max(0, _LONGEST_PERIOD - sum(shares))]:
        shares[k] += 1
    return shares
