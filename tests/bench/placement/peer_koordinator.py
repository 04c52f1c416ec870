"""Koordinator's network-topology solver, as `coscheduling/core/network_topology_solver.go` (v1.8) describes it.

One representative pod stands for all. From the nodes up each domain offers slots; of the lowest
level at which a domain holds the gang the one with fewest slots is taken, and pods are handed out
to its largest child first, depth first. Pods come in the order of their *names*: x-10 before x-2
unless names are padded.
"""

from collections.abc import Iterator, Sequence

from pipelinejob.fabric.topology import Domain
from pipelinejob.placement.capacity import Demand
from world import Chosen, Path, World, counts


def place(world: World, pods: Sequence[Demand], *, is_padded: bool, must_level: int = 0) -> Chosen | None:
    """Return the nodes of all pods; None if the gang finds no place, or the representative misjudged one of them."""
    room, fits = world.room(), dict[Path, int]()
    counts(world.topology.root, pods[0], room, fits)
    domain = _lowest(world, fits, len(pods), must_level)
    if domain is None:
        return None
    names = [str(index).zfill(4) if is_padded else str(index) for index in range(len(pods))]
    order = sorted(range(len(pods)), key=lambda index: names[index])
    slots = _slots(domain, fits)
    chosen: dict[int, Path] = {}
    for index in order:
        path = next(slots)
        if not room.fits(pods[index], path[-1]):
            return None
        room.take(pods[index], path[-1])
        chosen[index] = path
    return [chosen[index] for index in range(len(pods))]


def _lowest(world: World, fits: dict[Path, int], count: int, must_level: int) -> Domain | None:
    for depth in range(len(world.topology.levels), must_level - 1, -1):
        holding = [domain for domain in world.topology.root.at_depth(depth) if fits[domain.path] >= count]
        if holding:
            return min(holding, key=lambda domain: (fits[domain.path], domain.path))
    return None


def _slots(domain: Domain, fits: dict[Path, int]) -> Iterator[Path]:
    if domain.node is not None:
        for _ in range(fits[domain.path]):
            yield domain.path
    for child in sorted(domain.children, key=lambda child: (-fits[child.path], child.path)):
        yield from _slots(child, fits)
