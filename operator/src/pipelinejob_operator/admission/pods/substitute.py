"""Which node a lost stage's next pod goes to while the others stay: its own if that takes it, else one near by."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipelinejob.fabric.topology import Topology
from pipelinejob.spec.network.topology import TopologyScope


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A node, and its domains from coarse to fine, itself last; and who stands there, if that is a spare."""

    node: str
    path: tuple[str, ...]
    spare: int | None = None  # the spare that stands there already, and takes the place


def nearest(
    takers: Iterable[str], topology: Topology, near: Sequence[tuple[str, ...]], scope: TopologyScope
) -> Place | None:
    """Return the taker that is nearest to these paths, the dearest of them first; None if none may be taken.

    A domain of the level that the job requires is not left. `near` begins with where the stage
    was.
    """
    depth = topology.depth_of(scope.required, path="spec.topology.pipeline.required") if scope.required else None
    bound = near[0][: depth or 0] if near else ()
    paths = [path for name in takers if (path := topology.paths.get(name)) and path[: len(bound)] == bound]
    if not paths:
        return None
    path = min(paths, key=lambda each: ([_levels_apart(each, other) for other in near], each))
    return Place(node=path[-1], path=path)


def _levels_apart(path: Sequence[str], other: Sequence[str]) -> int:
    shared = 0
    for mine, its in zip(path, other, strict=False):
        if mine != its:
            break
        shared += 1
    return len(other) - shared
