"""What is known of a schedule before it is made: the description that everything else reads.

`families.py` holds one for each schedule. The search's bounds, the rules of the API, the command
line and the pages ask it, so that none of them knows a schedule by name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from pipelinejob.schedules.actions import Schedule
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.setting import Setting


class RouteShape(StrEnum):
    """The way that micro-batches take through the ranks."""

    STRAIGHT = "straight"  # one stage a rank
    LOOPED = "looped"  # past all ranks in order, once for each chunk
    FOLDED = "folded"  # down the ranks and up again, once or more
    BOTH_WAYS = "both ways"  # from both ends at once: each stage stands on two ranks, and the number of ranks is even
    OPEN = "open"  # chosen with the schedule, or written by the user


class Updates(StrEnum):
    """When an asynchronous schedule updates the weights within a step."""

    EACH_MICRO_BATCH = "each micro-batch"
    EACH_BATCH = "each batch"  # of at least as many micro-batches as there are ranks


class Sizes(NamedTuple):
    """The sizes that facts are functions of: p ranks, m micro-batches, v chunks on each rank."""

    ranks: int
    micro_batches: int
    chunks: int


class Share(NamedTuple):
    """Seconds of a rank's whole share of the model for one micro-batch: forward, and both passes."""

    forward_s: float
    both_s: float


def _filling_of_1f1b(share: Share, chunks: int) -> float:
    return share.both_s / chunks


def _peak_of_1f1b(sizes: Sizes) -> float:
    return sizes.ranks


def _unknown(sizes: Sizes, rank: int) -> None:  # noqa: ARG001 # the form of `Family.held`
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A schedule's name, its maker, and its facts.

    `make` is None where the list does not follow from the setting alone: `auto` is searched for
    (`scheduler.catalogue`), `custom` is written by the user.

    Chunks: `usual_chunks` on each rank where no number is asked for; with `chunk_choice` another
    number can be, an even one with `in_waves`.

    Backward passes: `is_split` where any is done in two halves. `trains` is False for forwards
    alone.

    Costs: with `looks_at_costs` the list depends on `Setting.costs`. `takes_cap`: a manifest may
    give a memory cap.

    Formulas, which searches guess and prune with (tests hold them against the lists). `held` is
    how many micro-batches' activations a rank keeps at its fullest, exactly, in shares of a
    micro-batch; None for sizes where that is not known. `peak` is the fullest rank's, where there
    are enough micro-batches to fill the pipeline. `filling` is how much longer each further rank
    makes a step, as the papers have it for F = I = W.
    """

    name: ScheduleName
    title: str
    source: str
    make: Callable[[Setting], Schedule] | None
    route: RouteShape = RouteShape.STRAIGHT
    usual_chunks: int = 1
    chunk_choice: bool = False
    in_waves: bool = False
    is_split: bool = False
    trains: bool = True
    updates: Updates | None = None
    looks_at_costs: bool = False
    takes_cap: bool = False
    held: Callable[[Sizes, int], float | None] = _unknown
    peak: Callable[[Sizes], float] = _peak_of_1f1b
    filling: Callable[[Share, int], float] = _filling_of_1f1b

    @property
    def is_asynchronous(self) -> bool:
        """Whether weights change within a step."""
        return self.updates is not None

    @property
    def is_candidate(self) -> bool:
        """Whether `auto` may take it: it is made by its name, trains, and updates once a step."""
        return self.make is not None and self.trains and not self.is_asynchronous

    @property
    def copies(self) -> int:
        """The ranks that each stage stands on."""
        return 2 if self.route is RouteShape.BOTH_WAYS else 1

    @property
    def is_straight(self) -> bool:
        """Whether each rank has one stage, and all its gradients at the end of the step."""
        return self.route is RouteShape.STRAIGHT and not self.is_asynchronous
