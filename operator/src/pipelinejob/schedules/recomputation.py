"""Which of its layers a rank computes again: a number of its first ones, stretch after stretch.

A stretch that is computed again keeps what it received and no more; it is played a second time
while the rank waits for the gradient. With all of a stage's layers that is full recomputation;
with some of them, selective: so Megatron-LM's `--recompute-method block` has it, too.
"""

from collections.abc import Sequence
from enum import StrEnum

Stretch = tuple[int, int]  # layers [first, end)


class Recomputing(StrEnum):
    """How much of a stage is computed again."""

    NONE = "none"
    SELECTIVE = "selective"  # some of its first layers
    FULL = "full"


def spread(held: Sequence[Stretch], layers: int | None) -> tuple[int, ...]:
    """Return how many first layers of each stretch are computed again, of so many of a rank's; None: of all.

    Stretches are filled in the order of their layers: the first are in flight the longest.
    """
    left = sum(end - first for first, end in held) if layers is None else layers
    found: dict[Stretch, int] = {}
    for first, end in sorted(held):
        found[first, end] = min(left, end - first)
        left -= found[first, end]
    return tuple(found[each] for each in held)


def how_much(again: int, layers: int) -> Recomputing:
    """Name it, for so many layers of all."""
    if not again:
        return Recomputing.NONE
    return Recomputing.FULL if again >= layers else Recomputing.SELECTIVE
