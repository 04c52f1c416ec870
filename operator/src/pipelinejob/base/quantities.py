"""Kubernetes' quantities (`250m`, `4Gi`, `8`) as exact numbers, and sums of them by resource."""

import re
from collections.abc import Iterable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

Resources = Mapping[str, Fraction]

_QUANTITY = re.compile(
    r"(?P<number>[+-]?([0-9]+\.?[0-9]*|\.[0-9]+))(?:(?P<suffix>[KMGTPE]i|[numkMGTPE])|[eE](?P<exponent>[+-]?[0-9]+))?"
)
_SUFFIXES = {
    "n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 1000),
    "k": Fraction(10**3), "M": Fraction(10**6), "G": Fraction(10**9),
    "T": Fraction(10**12), "P": Fraction(10**15), "E": Fraction(10**18),
    "Ki": Fraction(2**10), "Mi": Fraction(2**20), "Gi": Fraction(2**30),
    "Ti": Fraction(2**40), "Pi": Fraction(2**50), "Ei": Fraction(2**60),
}  # fmt: skip


def quantity(text: Any) -> Fraction:
    """Read one quantity.

    Raises ValueError for what the API server would not store.
    """
    return _quantity(str(text))


def is_quantity(value: Any) -> bool:
    """Tell whether a value is a quantity as the API server stores it; true and false are none."""
    return not isinstance(value, bool) and _QUANTITY.fullmatch(str(value)) is not None


@lru_cache(maxsize=4096)  # a cluster says the same few amounts over and over
def _quantity(text: str) -> Fraction:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no quantity; write a number with or without a suffix, as in 250m, 4Gi or 8")
    scale = Fraction(10) ** int(match["exponent"]) if match["exponent"] else _SUFFIXES.get(match["suffix"], Fraction(1))
    return Fraction(match["number"]) * scale


def resources(amounts: Mapping[str, Any] | None) -> dict[str, Fraction]:
    """Read a map of quantities."""
    return {name: quantity(amount) for name, amount in (amounts or {}).items()}


def add(parts: Iterable[Resources]) -> dict[str, Fraction]:
    """Sum by resource."""
    total: dict[str, Fraction] = {}
    for part in parts:
        for name, amount in part.items():
            total[name] = total.get(name, Fraction(0)) + amount
    return total


def subtract(whole: Resources, part: Resources) -> dict[str, Fraction]:
    """Take away by resource; below zero where more is used than there is."""
    return {name: amount - part.get(name, Fraction(0)) for name, amount in whole.items()}


def greatest(parts: Iterable[Resources]) -> dict[str, Fraction]:
    """Return the largest amount of each resource."""
    most: dict[str, Fraction] = {}
    for part in parts:
        for name, amount in part.items():
            most[name] = max(most.get(name, amount), amount)
    return most
