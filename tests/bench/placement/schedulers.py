"""Everybody who places: ourselves with each objective, and the models of the peers, behind one signature."""

from collections.abc import Callable, Sequence

import peer_koordinator
import peer_kueue
import peer_unranked
from pipelinejob.base.errors import NoPlacementError
from pipelinejob.placement.capacity import Demand
from pipelinejob.placement.place import place
from pipelinejob.placement.prices import Prices
from pipelinejob.spec.network.objective import Objective
from world import Chosen, World

Scheduler = Callable[[World, Sequence[Demand], Prices, int], Chosen | None]  # the last is the seed

OURS = {f"ours, {objective.value}": objective for objective in Objective}


def ours(objective: Objective) -> Scheduler:
    """Return ourselves."""

    def run(world: World, demands: Sequence[Demand], prices: Prices, _: int) -> Chosen | None:
        try:
            placed = place(demands, world.topology, world.nodes, prices=prices, objective=objective)
        except NoPlacementError:
            return None
        return [each.path for each in placed.assignments]

    return run


def peers(num_levels: int) -> dict[str, Scheduler]:
    """Return the peers as a user who knows them would set them up, where a tree has so many levels above the node."""
    return {
        "Kueue": lambda world, demands, _, __: _kueue(world, demands, by_kind, level=num_levels),
        "Kueue, required": lambda world, demands, _, __: _kueue(world, demands, by_kind, level=1, is_required=True),
        "Kueue, PodSet a stage": lambda world, demands, _, __: _kueue(world, demands, one_each, level=num_levels),
        "Koordinator": lambda world, demands, _, __: peer_koordinator.place(world, demands, is_padded=True),
        "Koordinator, as named": lambda world, demands, _, __: peer_koordinator.place(world, demands, is_padded=False),
        "Volcano, KAI": lambda world, demands, _, seed: peer_unranked.packed(world, demands, seed=seed),
        "kube-scheduler TAS": lambda world, demands, _, seed: peer_unranked.kube_scheduler_tas(
            world, demands, seed=seed, level=1
        ),
        "kube-scheduler": lambda world, demands, _, seed: peer_unranked.kube_scheduler(world, demands, seed=seed),
    }


def by_kind(demands: Sequence[Demand]) -> list[list[int]]:
    """Return the ranks of each PodSet: those of a kind, of all replicas, as a JobSet's replicated jobs are."""
    sets: list[list[int]] = []
    for index, demand in enumerate(demands):
        known = next((ranks for ranks in sets if demands[ranks[0]].is_like(demand)), None)
        if known is None:
            sets.append([index])
        else:
            known.append(index)
    return sets


def one_each(demands: Sequence[Demand]) -> list[list[int]]:
    """Return a PodSet for each stage, of all replicas."""
    stages = sorted({demand.stage for demand in demands})
    return [[index for index, demand in enumerate(demands) if demand.stage == stage] for stage in stages]


def _kueue(
    world: World,
    demands: Sequence[Demand],
    grouped: Callable[[Sequence[Demand]], list[list[int]]],
    *,
    level: int,
    is_required: bool = False,
) -> Chosen | None:
    sets = grouped(demands)
    chosen = peer_kueue.place(
        world, [[demands[index] for index in ranks] for ranks in sets], level=level, is_required=is_required
    )
    if chosen is None:
        return None
    by_rank = dict(zip((index for ranks in sets for index in ranks), chosen, strict=True))
    return [by_rank[index] for index in range(len(demands))]
