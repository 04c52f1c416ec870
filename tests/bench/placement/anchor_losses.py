"""A node lost on the anchors' 64 nodes: whether its stage stays near, whichever of the stages it is.

Measured of peers (`operator.md`, section 5.2): Kueue and Koordinator put the middle stage of eight
into the other superpod, two superpod crossings, although nodes of the same one were free.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean

from judge import Verdict, judge
from pipelinejob.placement.capacity import Capacity
from pipelinejob.placement.place import place
from pipelinejob.placement.prices import crossing_prices
from pipelinejob.placement.repair import repair
from pipelinejob.spec.network.objective import Objective
from support.plans.placement_fabrics import Fabric, anchors, anchors_occupied
from support.plans.placement_jobs import JobKind
from world import World, counts

SEEDS = range(8)
MEASURED = {8: "Kueue and Koordinator 2 superpods", 16: "Kueue 3 -> 5 leaves, Koordinator 3 leaves + 2 superpods"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """One lost node: how the chain stood, and stands again."""

    stage: int
    before: Verdict
    after: Verdict
    had_room: bool  # the same superpod had a free node

    @property
    def is_far(self) -> bool:
        return self.had_room and self.after.crossings[0] > self.before.crossings[0]


def loss_rows() -> list[str]:
    """Print what becomes of the chains, and give those that went far without need."""
    fabric, faults = anchors(), list[str]()
    print(
        f"\nOne node lost, 24 of 64 busy\n  {'':8}{'leaves before':>14}{'after':>8}{'superpods after':>17}   measured"
    )
    for stages, measured in MEASURED.items():
        losses = [loss for seed in SEEDS for loss in _losses(fabric, JobKind("", stages), seed)]
        near = [loss for loss in losses if loss.had_room]
        before, after = (mean(each.crossings[1] for each in side) for side in zip(*map(_sides, near), strict=True))
        far = mean(loss.after.crossings[0] for loss in near)
        print(f"  PP {stages:<5}{before:>14.2f}{after:>8.2f}{far:>17.2f}   {measured}")
        faults += [f"PP {stages}: stage {loss.stage} went to another superpod" for loss in losses if loss.is_far]
    return faults


def _sides(loss: Loss) -> tuple[Verdict, Verdict]:
    return loss.before, loss.after


def _losses(fabric: Fabric, job: JobKind, seed: int) -> Iterable[Loss]:
    nodes, prices, demands = anchors_occupied(fabric, seed), crossing_prices(job.stages, 3), job.demands(fabric)
    world = World(topology=fabric.topology, nodes=nodes)
    placed = place(demands, fabric.topology, nodes, prices=prices, objective=Objective.CHAIN)
    paths = [each.path for each in placed.assignments]
    before = judge(world, demands, paths, prices)
    for stage, path in enumerate(paths):
        left = [node for node in nodes if node.name != path[-1]]
        again = repair(demands, fabric.topology, left, before=placed, prices=prices)
        after_world = World(topology=fabric.topology, nodes=left)
        after = judge(after_world, demands, [each.path for each in again.assignments], prices)
        room = Capacity([node for node in left if node.name not in {each[-1] for each in paths}])
        fits: dict[tuple[str, ...], int] = {}
        counts(fabric.topology.root, demands[0], room, fits)
        yield Loss(stage=stage, before=before, after=after, had_room=fits[path[:1]] > 0)
