"""Which rank goes to which node: all of them or none, and neighbouring stages on the closest links.

A replica's stages form a chain, and a boundary between two stages that stand in different domains of a level crosses
that level. Walking the domains depth first, the chain crosses a level once less than it uses domains there, so a
placement is good if it uses few: few at the coarsest level, then few at the next, down to few nodes; and among equals
the tightest, which leave the large domains free for others, the coarsest first.

What is exact: for one replica of like stages the result is optimal in that order (`placement_like.py`); and like stages
find a place whenever there is room, whatever the number of replicas and the required level. Replicas are placed one
after another, each optimal given those before it, which need not be optimal together. Unlike stages are placed by a
bounded search (`placement_unlike.py`), which may miss the optimum, and a place where several unlike ranks must share
nodes tightly. A preferred level needs no work of its own: a chain inside one of its domains crosses nothing above, and
that comes first.
"""

from collections.abc import Callable, Sequence
from itertools import groupby

from pipelinejob.errors import NoPlacementError
from pipelinejob.objective import Objective
from pipelinejob.placement_like import LikeStages
from pipelinejob.placement_room import Demand, Room
from pipelinejob.placement_unlike import Path, crossings, place_unlike
from pipelinejob.placement_why import Attempt, why_not
from pipelinejob.plan import Assignment, Placement
from pipelinejob.prices import Prices
from pipelinejob.spec import TopologyScope
from pipelinejob.topology import Domain, NodeInfo, Topology

__all__ = ["Demand", "Objective", "place"]

_ChainPlacer = Callable[[Sequence[Demand], Sequence[Domain]], list[Path] | None]

_SCOPE = "spec.topology.pipeline"
_EFFORT = 30_000  # stages looked at by the search over all replicas: under half a second at 1,024 nodes
_LEAST_BUDGET = 100


def place(
    demands: Sequence[Demand],
    topology: Topology,
    nodes: Sequence[NodeInfo],
    *,
    scope: TopologyScope | None = None,
    prices: Prices | None = None,
    threshold: float = 0.01,  # noqa: ARG001
    step_s: float | None = None,  # noqa: ARG001
    objective: Objective = Objective.AUTO,  # noqa: ARG001
) -> Placement:
    """Give every rank a node, all or none.

    `topology` is that of `nodes`. Raises NoPlacementError, with the one sentence that says what is missing, if the
    ranks do not fit now, and SpecError if the scope names a level that does not exist.
    """
    scope = scope or TopologyScope()
    nodes = topology.usable(nodes)
    depth = _required_depth(topology, scope)
    domains = list(topology.root.at_depth(depth))
    chains = _chains(demands)
    room = Room(nodes)
    place_chain = _chain_placer(chains, topology, room)
    placed: list[tuple[Demand, Path]] = []
    for index, chain in enumerate(chains):
        paths = place_chain(chain, domains)
        if paths is None:
            attempt = Attempt(
                demands=chain,
                num_replicas=len(chains),
                num_placed=index,
                room=room,
                nodes=nodes,
                topology=topology,
                domains=domains,
                required_depth=depth,
            )
            raise NoPlacementError(why_not(attempt))
        placed += zip(chain, paths, strict=True)
    return _placement(placed, topology, prices)


def _required_depth(topology: Topology, scope: TopologyScope) -> int:
    if scope.preferred is not None:
        topology.depth_of(scope.preferred, path=f"{_SCOPE}.preferred")
    if scope.required is None:
        return 0
    depth = topology.depth_of(scope.required, path=f"{_SCOPE}.required")
    if depth is None:
        key = next(level.keys[0] for level in topology.absent if level.is_called(scope.required))
        raise NoPlacementError(
            f"needs all stages in one {scope.required}, but no node carries its label {key}; "
            f"label the nodes, or require another level ({', '.join(level.name for level in topology.levels)})"
        )
    return depth


def _chains(demands: Sequence[Demand]) -> list[list[Demand]]:
    ordered = sorted(demands, key=lambda demand: (demand.replica, demand.stage))
    return [list(chain) for _, chain in groupby(ordered, key=lambda demand: demand.replica)]


def _chain_placer(chains: Sequence[Sequence[Demand]], topology: Topology, room: Room) -> _ChainPlacer:
    """Choose how chains are placed; what a chain takes is taken from the room."""
    if _are_alike([demand for chain in chains for demand in chain]) and len(set(map(len, chains))) == 1:
        like = _like_stages(chains[0], topology, room)  # remembers the domains that the chains before left as they were
        return lambda _, domains: like.place(domains)
    budget = max(_LEAST_BUDGET, _EFFORT // sum(map(len, chains)))

    def place_one(chain: Sequence[Demand], domains: Sequence[Domain]) -> list[Path] | None:
        if _are_alike(chain):
            return _like_stages(chain, topology, room).place(domains)
        return _take_best(chain, domains, room, budget=budget)

    return place_one


def _are_alike(demands: Sequence[Demand]) -> bool:
    return all(demand.is_like(demands[0]) for demand in demands)


def _like_stages(chain: Sequence[Demand], topology: Topology, room: Room) -> LikeStages:
    return LikeStages(topology.root, chain[0], room, num_stages=len(chain), num_levels=len(topology.levels))


def _take_best(chain: Sequence[Demand], domains: Sequence[Domain], room: Room, *, budget: int) -> list[Path] | None:
    found = (place_unlike(domain, chain, room, budget=budget) for domain in domains)
    best = min((each for each in found if each is not None), default=None)
    if best is None:
        return None
    for demand, path in zip(chain, best[1], strict=True):
        room.take(demand, path[-1])
    return best[1]


def _placement(placed: Sequence[tuple[Demand, Path]], topology: Topology, prices: Prices | None) -> Placement:
    chains = [[path for _, path in chain] for _, chain in groupby(placed, key=lambda each: each[0].replica)]
    totals = [sum(counts) for counts in zip(*map(crossings, chains), strict=True)]
    return Placement(
        assignments=tuple(
            Assignment(replica=demand.replica, stage=demand.stage, node=path[-1], path=path) for demand, path in placed
        ),
        crossings={level.name: total for level, total in zip(topology.levels, totals, strict=True)},
        penalty_s=None if prices is None else prices.penalty_s(chains),
    )
