"""Which rank keeps a copy of which other's state: one that does not fail together with it, as far as the plan knows."""

from collections.abc import Sequence

from pipelinejob.contract.plan import Plan


def buddies(plan: Plan) -> tuple[int, ...]:
    """Return each rank's buddy; none where replicas hold the same state, or there is a single stage."""
    size = plan.parallelism.pipeline
    if plan.parallelism.data > 1 or size == 1:
        return ()
    paths: list[Sequence[str]] = [()] * size
    for each in plan.placement.assignments if plan.placement else ():
        paths[each.stage] = (*each.path, each.node)
    shift = farthest_shift(paths)
    return tuple((rank + shift) % size for rank in range(size))


def farthest_shift(paths: Sequence[Sequence[str]]) -> int:
    """Return by how many ranks each buddy stands further on, so that most pairs are parted at the coarsest level.

    `paths` name each rank's domains from coarse to fine. The smallest such shift counts.
    """
    size = len(paths)

    def parted(shift: int) -> tuple[list[int], int]:
        pairs = [(paths[rank], paths[(rank + shift) % size]) for rank in range(size)]
        depth = max(map(len, paths))
        return [sum(mine[: level + 1] != its[: level + 1] for mine, its in pairs) for level in range(depth)], -shift

    return max(range(1, size), key=parted)
