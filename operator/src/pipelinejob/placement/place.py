"""Places all ranks of a job on nodes, or none, so that a step is short and the next job still fits.

A replica's stages form a chain. Where two neighbours stand in different domains they communicate
over a slower link, which has a price in seconds (`prices`). All placements within a threshold of
the cheapest count as equal to it; among them the one that leaves the largest room for the next job
is taken (`goal`).

What is exact: for one replica of stages with equal requests the cheapest chain is found, at every
level at once, and the largest room that can be left by a chain within the threshold
(`uniform_chain.placer` names the exceptions). Such stages find a place whenever there is room,
whatever the number of replicas and the required level. Several replicas are placed by comparing
layouts: chain by chain, ring by ring (`replicas.by_ring`), as one chain (`replicas.one_chain`),
and by a local search where ranks are few (`replicas.joint`); the result need not be the optimum.
Stages that differ in their requests, but of which each takes one node of the same nodes, count as
equal. Others are placed by a bounded search (`mixed_chain`), which may miss the optimum, and a
place where several unlike ranks must share nodes tightly.
"""

from collections.abc import Sequence

from pipelinejob.contract.plan import Placement
from pipelinejob.fabric.topology import NodeInfo, Topology
from pipelinejob.placement.capacity import Demand
from pipelinejob.placement.job import Job, chains_of
from pipelinejob.placement.prices import Prices
from pipelinejob.spec.job import TopologyScope
from pipelinejob.spec.network.objective import Objective


def place(
    demands: Sequence[Demand],
    topology: Topology,
    nodes: Sequence[NodeInfo],
    *,
    scope: TopologyScope | None = None,
    prices: Prices | None = None,
    threshold: float = 0.01,
    step_s: float | None = None,
    objective: Objective = Objective.AUTO,
) -> Placement:
    """Place every rank on a node, all or none.

    `topology` is that of `nodes`, `prices` are for it; without any, crossings are counted instead
    of seconds. A placement may cost up to `threshold` of a step (`step_s`, by default the prices'
    own) more than the cheapest where that leaves more room. Raises NoPlacementError, with the one
    sentence that says what is missing, if the ranks do not fit now, and SpecError if the scope
    names a level that does not exist.
    """
    return Job(
        chains=chains_of(demands),
        topology=topology,
        nodes=topology.usable(nodes),
        scope=scope or TopologyScope(),
        given=prices,
        slack=0.0 if prices is None else threshold * (step_s or prices.step_s or 0.0),
        objective=objective,
    ).placement()
