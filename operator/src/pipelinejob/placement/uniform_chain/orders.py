"""The orders in which a chain may pass the parts of a domain, as steps from one set of passed parts to the next.

State 0 has passed none; each further state says from which ones, by which part, it is reached. The
last has passed all. One order is a chain of states; all orders are the subsets of the parts, n *
2^(n-1) steps instead of n! orders.
"""

from collections.abc import Sequence

Step = tuple[int, int]  # the state before, and the part that is added
Steps = tuple[tuple[Step, ...], ...]  # of each state after the first


def one_order(parts: Sequence[int]) -> Steps:
    """Pass the parts as they are given."""
    return tuple(((state, part),) for state, part in enumerate(parts))


def two_orders(one: Sequence[int], other: Sequence[int]) -> Steps:
    """Pass the parts in one order or in another."""
    if len(one) <= 1 or tuple(one) == tuple(other):
        return one_order(one)
    first = [((state, part),) for state, part in enumerate(one[:-1])]
    ends = len(first), 2 * len(first)
    second = [((len(first) + state if state else 0, part),) for state, part in enumerate(other[:-1])]
    return (*first, *second, ((ends[0], one[-1]), (ends[1], other[-1])))


def all_orders(parts: Sequence[int]) -> Steps:
    """Pass the parts in any order; of those alike, which stand side by side, the first goes first."""

    def is_next(subset: int, number: int) -> bool:
        return number == 0 or parts[number] != parts[number - 1] or bool(subset >> (number - 1) & 1)

    return tuple(
        tuple(
            (subset & ~(1 << number), part)
            for number, part in enumerate(parts)
            if subset >> number & 1 and is_next(subset, number)
        )
        if all(is_next(subset, number) for number in range(len(parts)) if subset >> number & 1)
        else ()
        for subset in range(1, 1 << len(parts))
    )


def num_steps(num_parts: int) -> int:
    """Count the steps of all orders."""
    return num_parts << max(0, num_parts - 1)
