"""By what every placement is judged, whoever made it: the step it predicts, what it crosses, and what it leaves."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from pipelinejob.fabric.network import common_depth
from pipelinejob.placement.capacity import Demand
from pipelinejob.placement.prices import Prices
from world import Chosen, Path, World, counts

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One placement, judged."""

    penalty_s: float  # what the step gets longer by, over all ranks on the closest links
    crossings: tuple[int, ...]  # boundaries whose closest common domain is the cluster, a domain of level 1, ...
    room: tuple[int, ...]  # the largest number of ranks that one domain of each level still takes, coarse to fine

    def dominates(self, other: "Verdict") -> bool:
        """Tell whether this one is as good in all, and better in one: the step, or the room of a level."""
        is_as_good = self.penalty_s <= other.penalty_s + _ROUNDING and all(
            mine >= theirs for mine, theirs in zip(self.room, other.room, strict=True)
        )
        return is_as_good and (self.penalty_s < other.penalty_s - _ROUNDING or self.room != other.room)


def judge(world: World, demands: Sequence[Demand], chosen: Chosen, prices: Prices) -> Verdict:
    """Judge the nodes chosen for the ranks, replica by replica.

    Raises AssertionError for a placement that does not fit.
    """
    room = world.room()
    for demand, path in zip(demands, chosen, strict=True):
        assert room.fits(demand, path[-1]), f"{path[-1]} has no room for stage {demand.stage}"
        room.take(demand, path[-1])
    chains = [chosen[start : start + prices.num_stages] for start in range(0, len(chosen), prices.num_stages)]
    fits: dict[Path, int] = {}
    counts(world.topology.root, largest(demands), room, fits)
    depths = [common_depth(one, other) for chain in chains for one, other in pairwise(chain)]
    return Verdict(
        penalty_s=prices.penalty_s(chains),
        crossings=tuple(depths.count(depth) for depth in range(len(world.topology.levels) - 1)),
        room=tuple(
            max(fits[domain.path] for domain in world.topology.root.at_depth(depth))
            for depth in range(1, len(world.topology.levels))
        ),
    )


def largest(demands: Sequence[Demand]) -> Demand:
    """Return the rank by whose like the next job is counted: of unlike ones the one that asks for most."""
    return max(demands, key=lambda demand: sorted((name, float(amount)) for name, amount in demand.requests.items()))
