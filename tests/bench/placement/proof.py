"""One placement of ours against the solver's proof."""

from dataclasses import dataclass

from pipelinejob.base.errors import NoPlacementError
from pipelinejob.placement.place import place
from pipelinejob.placement.prices import Prices
from pipelinejob.spec.network.objective import Objective
from support.plans.placement_fabrics import Fabric
from support.plans.placement_jobs import JobKind
from support.plans.placement_oracle import Oracle

THRESHOLD = 0.01
PARTS = 1e-6  # of a step: what the solver's whole numbers round off


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What came of one occupancy."""

    seed: int
    has_room: bool
    fault: str | None = None


def prove(fabric: Fabric, job: JobKind, prices: Prices, seed: int) -> Proof:
    """Place the job, have the best place proved, and compare."""
    assert prices.step_s is not None, "these prices are seconds"
    demands, nodes = job.demands(fabric), fabric.occupied(seed)
    best = Oracle(demands, fabric.topology, nodes, prices).best(threshold_s=THRESHOLD * prices.step_s)
    try:
        auto = place(demands, fabric.topology, nodes, prices=prices, threshold=THRESHOLD)
        chain = place(demands, fabric.topology, nodes, prices=prices, objective=Objective.CHAIN)
    except NoPlacementError:
        return Proof(seed=seed, has_room=best is not None, fault=None if best is None else "refused")
    assert best is not None, "what stands has room"
    assert auto.penalty_s is not None, "prices were given"
    assert chain.penalty_s is not None, "prices were given"
    room = tuple(auto.room_left[level.name] for level in fabric.topology.levels[:-1])
    tolerance, fault = PARTS * prices.step_s, None
    if chain.penalty_s > best.least_s + tolerance:
        fault = f"chain loses {chain.penalty_s:.6f} s, {best.least_s:.6f} are possible"
    elif auto.penalty_s > best.least_s + THRESHOLD * prices.step_s + tolerance:
        fault = f"auto loses {auto.penalty_s:.6f} s, more than the threshold above {best.least_s:.6f}"
    elif room != best.room:
        fault = f"auto leaves {room}, {best.room} are possible within the threshold"
    elif auto.penalty_s > best.penalty_s + tolerance:
        fault = f"auto loses {auto.penalty_s:.6f} s, {best.penalty_s:.6f} leave as much room"
    return Proof(seed=seed, has_room=True, fault=fault)
