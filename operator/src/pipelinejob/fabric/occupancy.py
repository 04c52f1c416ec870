"""What is taken of a described cluster: whole nodes or single GPUs, in order or scattered."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from hashlib import sha256

from pipelinejob.base.errors import SpecError
from pipelinejob.fabric.description import Busy
from pipelinejob.fabric.topology import NodeInfo
from pipelinejob.spec.network.topology_profile import ProfileLevel


def occupied(
    busy: Sequence[Busy],
    idle: Sequence[NodeInfo],
    levels: Sequence[ProfileLevel],
    gpu_resources: frozenset[str],
) -> tuple[NodeInfo, ...]:
    """Return the nodes less what `busy` takes of them, entry by entry.

    Raises SpecError for an entry that asks for more than there is.
    """
    nodes = {node.name: node for node in idle}
    for index, taken in enumerate(busy):
        path = f"busy[{index}]"
        for name in _chosen(taken, list(nodes.values()), levels, path):
            free = nodes[name].free
            nodes[name] = replace(nodes[name], free={**free, **_left(taken, free, gpu_resources, f"{path}.gpus")})
    return tuple(nodes.values())


def _chosen(taken: Busy, nodes: Sequence[NodeInfo], levels: Sequence[ProfileLevel], path: str) -> Iterable[str]:
    keys = [level.keys[0] for level in levels]
    where = taken.inside
    inside = [
        node
        for node in nodes
        if where in {None, node.name, *(node.labels.get(key) for key in keys)}
        # without a seed too, an entry takes what those before it have left
        and (taken.nodes is None or where == node.name or not _is_taken(node))
    ]
    if not inside:
        raise SpecError(path, f"there is no node or domain {where!r} with anything left")
    if taken.nodes is None:
        return [node.name for node in inside]
    if taken.nodes > len(inside):
        raise SpecError(
            f"{path}.nodes", f"{taken.nodes} are more than the {len(inside)} nodes that are still free there"
        )
    names = [node.name for node in inside]
    if taken.seed is not None:
        names.sort(key=lambda name: sha256(f"{taken.seed}/{name}".encode()).digest())
    return names[: taken.nodes]


def _is_taken(node: NodeInfo) -> bool:
    return not node.free["pods"]


def _left(
    taken: Busy, free: Mapping[str, Fraction], gpu_resources: frozenset[str], path: str
) -> Mapping[str, Fraction]:
    if taken.gpus is None:
        return dict.fromkeys(free, Fraction(0))
    left = {name: free[name] - taken.gpus for name in gpu_resources & free.keys()}
    if any(amount < 0 for amount in left.values()) or not left:
        raise SpecError(path, f"{taken.gpus} are more than a node there has left")
    return left
