"""Places a job on the fastest devices that hold it, where devices are of several kinds.

What a slow device costs, every micro-batch pays; what a link costs is a few percent of a step. So
the set of nodes is chosen by speed, and the place within it by links.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from pipelinejob.base.errors import NoPlacementError
from pipelinejob.contract.plan import Placement
from pipelinejob.fabric.topology import NodeInfo, Topology
from pipelinejob.placement.capacity import Demand
from pipelinejob.placement.place import place

Rate = Callable[[NodeInfo], float]  # how fast a stage computes on a node; only which is faster matters


def place_on_fastest(
    demands: Sequence[Demand], topology: Topology, nodes: Sequence[NodeInfo], *, rate: Rate, **how: Any
) -> Placement:
    """Place every rank on a node, as `placement.place` does with the other arguments.

    Raises NoPlacementError and SpecError as it does, if not even all nodes hold the job.
    """
    for some in _growing(nodes, rate):
        try:
            return place(demands, topology, some, **how)
        except NoPlacementError:
            continue
    return place(demands, topology, nodes, **how)


def _growing(nodes: Sequence[NodeInfo], rate: Rate) -> Iterator[Sequence[NodeInfo]]:
    """Yield the nodes without those slower than a bound, for each bound but the last, which leaves out none."""
    rates = [rate(node) for node in nodes]
    usable = {each for each, node in zip(rates, nodes, strict=True) if node.unusable is None}
    for bound in sorted(usable, reverse=True)[:-1]:
        yield [
            node if each >= bound or node.unusable is not None else replace(node, unusable="has a slower device")
            for each, node in zip(rates, nodes, strict=True)
        ]
