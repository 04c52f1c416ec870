"""The schedulers that pack a set of pods and hand out ranks by nothing that has to do with the network.

Volcano (`network-topology-aware` with binpack): the tightest HyperNode of the lowest tier that
holds the job; inside, nodes are scored by the tier that they share with what the job already has,
so leaf after leaf fills up. KAI (topology plugin): the tightest domain from the preferred level
up; inside, preferred sub-domains are filled in turn, those with most room first. To both one model
does. kube-scheduler's TAS (KEP-5732): a placement for each value of the one key, scored, ties by
chance; inside, pod by pod to the node with most room, which among free ones is chance.
kube-scheduler alone: pod by pod, anywhere.

None of them knows a rank. Volcano and KAI take pods by priority, then by creation time, which is
kept in whole seconds; among those of one second the order is an accident. Here a second holds
eight pods, and a seed is the accident: with eight the model meets what was measured for 16 stages
and is somewhat better than that for 12.
"""

import random
from collections.abc import Sequence

from pipelinejob.fabric.topology import Domain
from pipelinejob.placement.capacity import Capacity, Demand
from world import Chosen, Path, World, counts, leaves_of

PODS_A_SECOND = 8


def packed(world: World, pods: Sequence[Demand], *, seed: int) -> Chosen | None:
    """Tightest domain of the lowest level that holds all; leaf after leaf, pods almost in order: Volcano, and KAI."""
    fits = _fits(world, pods)
    for depth in range(len(world.topology.levels) - 1, -1, -1):
        holding = [domain for domain in world.topology.root.at_depth(depth) if fits[domain.path] >= len(pods)]
        if holding:
            domain = min(holding, key=lambda each: (fits[each.path], each.path))
            return _checked(world, pods, _in_seconds(_walk(domain, fits)[: len(pods)], random.Random(seed)))
    return None


def kube_scheduler_tas(world: World, pods: Sequence[Demand], *, seed: int, level: int) -> Chosen | None:
    """One domain of the key's level, nodes by chance."""
    fits = _fits(world, pods)
    holding = [domain for domain in world.topology.root.at_depth(level) if fits[domain.path] >= len(pods)]
    if not holding:
        return None
    chance = random.Random(seed)
    return _anyhow(world, chance.choice(holding), pods, chance)


def kube_scheduler(world: World, pods: Sequence[Demand], *, seed: int) -> Chosen | None:
    """Nodes by chance."""
    return _anyhow(world, world.topology.root, pods, random.Random(seed))


def _walk(domain: Domain, fits: dict[Path, int]) -> list[Path]:
    if domain.node is not None:
        return [domain.path] * fits[domain.path]
    children = sorted(domain.children, key=lambda child: (-fits[child.path], child.path))
    return [path for child in children for path in _walk(child, fits)]


def _in_seconds(slots: Sequence[Path], chance: random.Random) -> Chosen:
    """Hand the slots out in order to pods that come in their seconds' order, and within a second by accident."""
    order = list(range(len(slots)))
    for start in range(0, len(order), PODS_A_SECOND):
        second = order[start : start + PODS_A_SECOND]
        chance.shuffle(second)
        order[start : start + PODS_A_SECOND] = second
    taken = dict(zip(order, slots, strict=True))
    return [taken[index] for index in range(len(slots))]


def _anyhow(world: World, domain: Domain, pods: Sequence[Demand], chance: random.Random) -> Chosen | None:
    room, chosen, kinds = world.room(), list[Path](), list[tuple[Demand, list[Path]]]()
    nodes = [leaf.path for leaf in leaves_of(domain)]
    for demand in pods:
        open_nodes = next((open_nodes for kind, open_nodes in kinds if kind.is_like(demand)), None)
        if open_nodes is None:
            open_nodes = [path for path in nodes if room.fits(demand, path[-1])]
            kinds.append((demand, open_nodes))
        path = _drawn(demand, open_nodes, room, chance)
        if path is None:
            return None
        room.take(demand, path[-1])
        chosen.append(path)
    return chosen


def _drawn(demand: Demand, open_nodes: list[Path], room: Capacity, chance: random.Random) -> Path | None:
    """Draw one of the nodes that can take the pod; those that no longer can are struck off."""
    while open_nodes:
        index = chance.randrange(len(open_nodes))
        if room.fits(demand, open_nodes[index][-1]):
            return open_nodes[index]
        open_nodes[index] = open_nodes[-1]
        open_nodes.pop()
    return None


def _checked(world: World, pods: Sequence[Demand], slots: Sequence[Path]) -> Chosen | None:
    room = world.room()
    for demand, path in zip(pods, slots, strict=True):
        if not room.fits(demand, path[-1]):
            return None
        room.take(demand, path[-1])
    return list(slots)


def _fits(world: World, pods: Sequence[Demand]) -> dict[Path, int]:
    fits: dict[Path, int] = {}
    counts(world.topology.root, pods[0], world.room(), fits)
    return fits
