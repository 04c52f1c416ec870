"""Places a job where devices are not all alike: on the fastest ones as long as they hold it, else on the next ones too.

What a slow device costs, every micro-batch pays; what a link costs is a few percent of a step. So the set of nodes is
chosen by speed, and the place within it by links.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from pipelinejob.errors import NoPlacementError
from pipelinejob.placement.place import place
from pipelinejob.placement.room import Demand
from pipelinejob.plan import Placement
from pipelinejob.topology import NodeInfo, Topology

Rate = Callable[[NodeInfo], float]  # how fast a stage computes on a node; only which is faster matters


def place_on_fastest(
    demands: Sequence[Demand], topology: Topology, nodes: Sequence[NodeInfo], *, rate: Rate, **how: Any
) -> Placement:
    """Give every rank a node, as `placement.place` with what else is given.

    Raises NoPlacementError and SpecError as it does, if not even all nodes hold the job.
    """
    for some in _growing(nodes, rate):
        try:
            return place(demands, topology, some, **how)
        except NoPlacementError:
            continue
    return place(demands, topology, nodes, **how)


def _growing(nodes: Sequence[NodeInfo], rate: Rate) -> Iterator[Sequence[NodeInfo]]:
    """Give the nodes with those slower than a bound left out, for each bound but the last, which leaves out none."""
    rates = [rate(node) for node in nodes]
    usable = {each for each, node in zip(rates, nodes, strict=True) if node.unusable is None}
    for bound in sorted(usable, reverse=True)[:-1]:
        yield [
            node if each >= bound or node.unusable is not None else replace(node, unusable="has a slower device")
            for each, node in zip(rates, nodes, strict=True)
        ]
