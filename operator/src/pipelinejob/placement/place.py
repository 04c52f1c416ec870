"""Which rank goes to which node: all of them or none, so that a step is short and the next job still fits.

A replica's stages form a chain. Where two neighbours stand in different domains they talk over a slower link, and that
has a price in seconds (`prices.py`). Of all placements those within a threshold of the cheapest are as good as it; of
these the one that leaves the largest room for the next job is taken (`placement/goal.py`).

What is exact: for one replica of like stages the cheapest chain is found, at every level at once, and the largest room
that can be left beside one within the threshold (`placement/like.py` says where not). Like stages find a place whenever
there is room, whatever the number of replicas and the required level. Several replicas are placed by comparing layouts,
chain by chain, ring by ring (`placement/replicas.py`) and as one chain (`placement/whole.py`), and by a local search
where ranks are few (`placement/joint.py`): that need not be the optimum. Stages that ask for different things, but each
take one node of the same nodes, count as alike. Others are placed by a bounded search (`placement/unlike.py`), which
may miss the optimum, and a place where several unlike ranks must share nodes tightly.
"""

from collections.abc import Sequence

from pipelinejob.objective import Objective
from pipelinejob.placement.job import Job, chains_of
from pipelinejob.placement.room import Demand
from pipelinejob.plan import Placement
from pipelinejob.prices import Prices
from pipelinejob.spec import TopologyScope
from pipelinejob.topology import NodeInfo, Topology


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
    """Give every rank a node, all or none.

    `topology` is that of `nodes`, `prices` are for it; without any, crossings are counted instead of seconds. A
    placement may cost up to `threshold` of a step (`step_s`, by default the prices' own) more than the cheapest where
    that leaves more room. Raises NoPlacementError, with the one sentence that says what is missing, if the ranks do not
    fit now, and SpecError if the scope names a level that does not exist.
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
