"""Where all ranks go back to after a loss, decided purely, and alike on every rank."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelinejob_trainer.recovery.history import Holding


@dataclass(frozen=True, slots=True, kw_only=True)
class Return:
    """A step border, and for each rank which rank gives it its state: mostly itself."""

    step: int
    sources: tuple[int, ...]


def choose_return(holdings: Sequence[Holding], *, num_stages: int) -> Return | None:
    """Return the newest border at which every rank's state is still somewhere; None if there is none.

    `holdings` are in order of rank. A rank's state is taken from the first of: itself, the same
    stage of another replica, a rank that keeps a copy of either.
    """
    steps = {step for each in holdings for step in (*each.own, *(s for copies in each.copies.values() for s in copies))}
    for step in sorted(steps, reverse=True):
        sources = [_source(rank, step, holdings, num_stages) for rank in range(len(holdings))]
        if None not in sources:
            return Return(step=step, sources=tuple(each for each in sources if each is not None))
    return None


def is_copy(rank: int, source: int, *, num_stages: int) -> bool:
    """Return whether a source gives a copy that it kept, not its own state, which is the same in each replica."""
    return rank % num_stages != source % num_stages


def copied(held: Holding, rank: int, step: int, *, num_stages: int) -> int | None:
    """Return of which rank there is a copy that is this rank's state: of itself, or of its stage in another replica."""
    of_stage = (each for each in sorted(held.copies) if each % num_stages == rank % num_stages)
    return next((each for each in of_stage if step in held.copies[each]), None)


def _source(rank: int, step: int, holdings: Sequence[Holding], num_stages: int) -> int | None:
    peers = (each for each in range(len(holdings)) if each % num_stages == rank % num_stages and each != rank)
    for candidate in (rank, *peers):
        if step in holdings[candidate].own:
            return candidate
    keepers = (
        each for each, held in enumerate(holdings) if copied(held, rank, step, num_stages=num_stages) is not None
    )
    return next(keepers, None)
