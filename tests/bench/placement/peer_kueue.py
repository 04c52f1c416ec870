"""Kueue's topology-aware scheduling, as KEP-2724 and `pkg/cache/scheduler/tas_flavor_snapshot.go` (v0.19) describe it.

Each PodSet is placed by itself, one after another. Its domain: at the requested level the one that
fits it most tightly (BestFit), going up where none does (preferred), and at the top the largest
ones until all have room. Going down, the children of all domains so far are sorted by free
capacity, largest first, and taken until the rest fits one, which is then the tightest that holds
it. Ranks are handed out over the chosen domains in the order of their label values.
"""

from collections.abc import Sequence

from pipelinejob.fabric.topology import Domain
from pipelinejob.placement.capacity import Capacity, Demand
from world import Chosen, Path, World, counts


def place(
    world: World, pod_sets: Sequence[Sequence[Demand]], *, level: int, is_required: bool = False
) -> Chosen | None:
    """The nodes of all pods, PodSet by PodSet; None if one finds no place. `level` counts from 1, the coarsest."""
    room, chosen = world.room(), list[Path]()
    for pods in pod_sets:
        paths = _place_set(world.topology.root, pods, room, level, is_required=is_required)
        if paths is None:
            return None
        for demand, path in zip(pods, paths, strict=True):
            if not room.fits(demand, path[-1]):
                return None
            room.take(demand, path[-1])
        chosen += paths
    return chosen


def _place_set(root: Domain, pods: Sequence[Demand], room: Capacity, level: int, *, is_required: bool) -> Chosen | None:
    fits: dict[Path, int] = {}
    counts(root, pods[0], room, fits)
    found = _fit_level(root, fits, len(pods), level, is_required=is_required)
    if found is None:
        return None
    domains = found
    while domains[0][0].node is None:
        lower = [child for domain, _ in domains for child in domain.children]
        domains = _fewest(_by_room(lower, fits), fits, len(pods))
    ordered = sorted(domains, key=lambda each: each[0].path)
    return [domain.path for domain, count in ordered for _ in range(count)]


def _fit_level(
    root: Domain, fits: dict[Path, int], count: int, level: int, *, is_required: bool
) -> list[tuple[Domain, int]] | None:
    domains = _by_room(list(root.at_depth(level)), fits)
    if domains and fits[domains[0].path] >= count:
        return [(_tightest(domains, fits, count), count)]
    if is_required:
        return None
    if level > 1:
        return _fit_level(root, fits, count, level - 1, is_required=False)
    if sum(fits[domain.path] for domain in domains) < count:
        return None
    return _fewest(domains, fits, count)


def _by_room(domains: Sequence[Domain], fits: dict[Path, int]) -> list[Domain]:
    return sorted(domains, key=lambda domain: (-fits[domain.path], domain.path))


def _tightest(domains: Sequence[Domain], fits: dict[Path, int], count: int) -> Domain:
    return min((each for each in domains if fits[each.path] >= count), key=lambda each: fits[each.path])


def _fewest(domains: Sequence[Domain], fits: dict[Path, int], count: int) -> list[tuple[Domain, int]]:
    """Take the largest first, and for what is left the tightest that holds it."""
    taken: list[tuple[Domain, int]] = []
    for index, domain in enumerate(domains):
        if fits[domain.path] >= count:
            taken.append((_tightest(domains[index:], fits, count), count))
            break
        taken.append((domain, fits[domain.path]))
        count -= fits[domain.path]
    return taken
