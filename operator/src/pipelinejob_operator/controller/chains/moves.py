"""Which chains of a job that serves begin, drain and go next. Pure: what is there against what is wanted.

Each pass decides anew from the chains that stand, so that nothing has to be remembered: a change
of the spec makes chains old, and old ones are exchanged as Deployments exchange pods.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """One chain as last seen. `failure` says why it ended for ever."""

    number: int
    name: str
    is_current: bool  # made by the spec as it is now
    is_ready: bool = False
    is_given_up: bool = False  # not ready for so long that nobody counts on it any more
    is_leaving: bool = False  # it takes no more requests, and ends those in work
    has_left: bool = False  # nothing of it runs any more
    failure: str | None = None

    @property
    def stays(self) -> bool:
        """Tell whether it answers, or will."""
        return not self.is_leaving and self.failure is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """What is to be done now: numbers of chains to begin, chains to drain, and those of which nothing is left."""

    begin: tuple[int, ...] = ()
    drain: tuple[Chain, ...] = ()
    remove: tuple[Chain, ...] = ()


def next_moves(chains: Sequence[Chain], *, wanted: int, surge: int, unavailable: int) -> Moves:
    """Return the next moves towards `wanted` current chains.

    At most `surge` more than these stay at once, and at least `wanted - unavailable` of those that
    are ready now are left ready, but for what is too many. A current chain that has failed keeps
    its place: it would fail again.
    """
    failed = [each for each in chains if each.failure is not None and each.is_current]
    new = [each for each in chains if each.stays and each.is_current]
    old = [each for each in chains if each.stays and not each.is_current]
    too_many = len(failed) + len(new) - wanted
    given_up, too_many = failed[: max(0, too_many)], too_many - len(failed)
    places = max(0, wanted - len(failed))
    missing = places - len(new)
    begun = max(0, min(missing, wanted + surge - len(new) - len(old) - len(failed) + len(given_up)))
    surplus = _first_to_go(new)[: max(0, too_many)]
    spare = sum(each.is_ready for each in (*new, *old)) - sum(each.is_ready for each in surplus)
    spare -= wanted - unavailable
    return Moves(
        begin=_free_numbers(chains, begun),
        drain=(*surplus, *_old_to_go(old, spare=spare, is_needed=missing > begun or missing <= 0)),
        remove=(
            *(each for each in chains if each.has_left),
            *(each for each in chains if each.failure is not None and not each.is_current),
            *given_up,
        ),
    )


def everyone_leaves(chains: Sequence[Chain]) -> Moves:
    """Return the moves of a job that is to have no chain."""
    over = tuple(each for each in chains if each.has_left or each.failure is not None)
    return Moves(drain=tuple(each for each in chains if each.stays), remove=over)


def _old_to_go(old: Sequence[Chain], *, spare: int, is_needed: bool) -> list[Chain]:
    """Choose the old chains that go now: as many ready ones as may be missing.

    One that is not ready may come back, so it goes only where its place `is_needed`, or all new
    ones have begun, and if enough others answer, or nobody counts on it any more.
    """
    going = []
    for each in _first_to_go(old):
        if each.is_ready and spare > 0:
            spare -= 1
            going.append(each)
        elif not each.is_ready and is_needed and (each.is_given_up or spare >= 0):
            going.append(each)
    return going


def _first_to_go(chains: Iterable[Chain]) -> list[Chain]:
    """Those that answer nobody first, then the youngest."""
    return sorted(chains, key=lambda each: (each.is_ready, -each.number))


def _free_numbers(chains: Sequence[Chain], count: int) -> tuple[int, ...]:
    taken = {each.number for each in chains}
    free = [number for number in range(len(taken) + count) if number not in taken]
    return tuple(free[:count])
