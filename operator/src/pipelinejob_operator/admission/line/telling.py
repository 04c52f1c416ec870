"""What a job that waits is told of those ahead of it: by name near the head of the line, and far back without any.

The head of a line is another with each job that is placed or goes. A sentence that names it is
then another, too, and a write for each job that has it. So those in the first places are told whom
they wait behind, and all others a sentence that stays as it is for as long as they stand far back:
a head that moves costs a few writes, however long the line. `pipelinejob line` shows every job's
place.
"""

from collections.abc import Callable
from typing import Final

from pipelinejob_operator.admission.line.queueing import FAR_BACK, NO_ROOM, NOT_ITS_TURN, Order
from pipelinejob_operator.objects.job import Job

NAMES_THE_HEAD: Final = 8  # places of the line, behind its head

Told = tuple[str, list[str]]  # a reason of the condition Placed, and the parts of its sentence


def stands_far_back(ahead: int) -> bool:
    """Tell whether a job with so many in line ahead of it is told nothing that changes as the line moves."""
    return ahead > NAMES_THE_HEAD


def tell(job: Job, *, first: Job | None, ahead: int, order: Order, find_missing: Callable[[], str | None]) -> Told:
    """Say why a job waits that is not placed: what is missing, and whom it waits behind.

    `ahead` jobs that wait come before it, `first` of all; `find_missing` says what it would lack
    were it alone, None if nothing.
    """
    if stands_far_back(ahead):
        return FAR_BACK, [f"waits in line: more than {NAMES_THE_HEAD} jobs that wait for room come before it"]
    why_first = order.why_ahead(first, job) if first else ""
    missing = find_missing()
    if missing is not None:
        return NO_ROOM, [missing, *([f"behind {first.key}, which {why_first}"] if first else [])]
    assert first is not None, "what fits waits only for those ahead"
    return NOT_ITS_TURN, [f"waits behind {first.key}, which {why_first} and waits for room itself"]
