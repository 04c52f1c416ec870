"""Places a chain of unlike stages by a bounded search.

Stages may differ in what they ask for and in which nodes they may go to, so that a domain's room is no single number
and the exact method of like stages does not apply; where several ranks share a node the question is bin packing. The
search walks the chain leaf by leaf (a leaf: the domains just above the nodes), each time trying the longest run of
stages that the next leaf can take first, shorter runs after, and drops what cannot beat the best chain found. It ends
when nothing is left to try, when a chain meets the bound that counts alone set, which makes it optimal, or when the
budget is spent. If it finds no chain, the stages are placed once more, those with the fewest nodes to choose from
first, before giving up.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from pipelinejob.placement_room import Demand, Room
from pipelinejob.topology import Domain

Path = tuple[str, ...]
Crossings = tuple[int, ...]  # stage boundaries that cross each level, coarse to fine, the node last

_NEVER = 10**9


def place_unlike(
    domain: Domain, demands: Sequence[Demand], room: Room, *, budget: int
) -> tuple[Crossings, list[Path]] | None:
    """Give the crossings and the nodes' paths of a chain within the domain; None if none was found.

    The room stays as it is. `budget` bounds the leaves that are tried.
    """
    search = _Search(domain, demands, room)
    if search.is_hopeless:
        return None
    return search.best_chain(budget) or search.scarcest_first(budget)


def crossings(paths: Sequence[Path]) -> Crossings:
    """Count, level by level, the boundaries between neighbouring stages that cross it."""
    counts = [0] * len(paths[0])
    for one, other in pairwise(paths):
        for level in range(_common(one, other), len(counts)):
            counts[level] += 1
    return tuple(counts)


def _common(one: Path, other: Path) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))


@dataclass(slots=True)
class _Frame:
    """One leaf of the chain under way: the options for it, and the run that is being tried."""

    options: Iterator[list[Path]]
    run: list[Path] = field(default_factory=list)


class _Search:
    def __init__(self, domain: Domain, demands: Sequence[Demand], room: Room) -> None:
        self._demands = demands
        self._room = room
        self._depth = len(domain.path)
        self._leaves = list(_leaves(domain))
        self._nodes = {leaf.path: [node.path for node in leaf.children] or [leaf.path] for leaf in self._leaves}
        self._kinds = _kinds(demands)
        self._counts = {node: self._count(node) for nodes in self._nodes.values() for node in nodes}
        self._versatility = {node: sum(map(bool, counts)) for node, counts in self._counts.items()}
        self._bounds = self._reckon_bounds(domain)
        self._runs: dict[tuple[Path, int, tuple[tuple[int, Path], ...]], list[Path]] = {}

    def _count(self, node: Path) -> tuple[int, ...]:
        """Give how many stages of each kind the node could take, were it for that kind alone."""
        return tuple(self._room.count(kind, node[-1], most=len(self._demands)) for kind in self._kinds)

    # What the search walks

    def best_chain(self, budget: int) -> tuple[Crossings, list[Path]] | None:
        best: tuple[Crossings, list[Path]] | None = None
        chain: list[Path] = []
        frames = [_Frame(self._options(chain))]
        for _ in range(budget):
            self._withdraw(frames[-1], chain)
            run = next(frames[-1].options, None)
            if run is None:
                frames.pop()
                if not frames:
                    break
                continue
            self._put(frames[-1], run, chain)
            if best is not None and self._bound(chain) >= best[0]:
                continue
            if len(chain) == len(self._demands):
                best = (crossings(chain), list(chain))
                if best[0] <= self._bound([]):
                    break
            else:
                frames.append(_Frame(self._options(chain)))
        for frame in reversed(frames):
            self._withdraw(frame, chain)
        return best

    def _put(self, frame: _Frame, run: list[Path], chain: list[Path]) -> None:
        for path in run:
            self._room.take(self._demands[len(chain)], path[-1])
            chain.append(path)
        frame.run = run

    def _withdraw(self, frame: _Frame, chain: list[Path]) -> None:
        for _ in frame.run:
            path = chain.pop()
            self._room.give_back(self._demands[len(chain)], path[-1])
        frame.run = []

    def _options(self, chain: list[Path]) -> Iterator[list[Path]]:
        """Give the runs that may follow: the closest leaf first, then the longest run, then the smallest leaf."""
        stage, here = len(chain), chain[-1] if chain else None
        taken: dict[Path, tuple[tuple[int, Path], ...]] = {}
        for each in enumerate(chain):
            leaf = self._leaf_of(each[1])
            taken[leaf] = (*taken.get(leaf, ()), each)
        others = (leaf.path for leaf in self._leaves if not here or leaf.path != self._leaf_of(here))
        runs = (self._run(leaf, stage, taken.get(leaf, ())) for leaf in others)
        ordered = sorted(
            (run for run in runs if run),
            key=lambda run: (-_common(here, run[0]) if here else 0, -len(run), self._spare(run[0]), run[0]),
        )
        yield from ordered
        for run in ordered:
            yield from (run[:length] for length in range(len(run) - 1, 0, -1))

    def _spare(self, node: Path) -> int:
        return len(self._nodes[self._leaf_of(node)])

    def _leaf_of(self, node: Path) -> Path:
        return node if node in self._nodes else node[:-1]

    def _run(self, leaf: Path, stage: int, taken: tuple[tuple[int, Path], ...]) -> list[Path]:
        """Give the nodes for the longest run of stages from `stage` on that the leaf can take beside those it took."""
        key = (leaf, stage, taken)
        if key not in self._runs:
            self._runs[key] = self._reckon_run(leaf, stage)
        return self._runs[key]

    def _reckon_run(self, leaf: Path, stage: int) -> list[Path]:
        run: list[Path] = []
        for demand in self._demands[stage:]:
            node = self._node_for(demand, self._nodes[leaf], run[-1] if run else None)
            if node is None:
                break
            self._room.take(demand, node[-1])
            run.append(node)
        for demand, node in zip(self._demands[stage:], run, strict=False):
            self._room.give_back(demand, node[-1])
        return run

    def _node_for(self, demand: Demand, nodes: Sequence[Path], last: Path | None) -> Path | None:
        """Stay on the node if it can take this stage too; else take the node that is of least use to others."""
        if last is not None and self._room.fits(demand, last[-1]):
            return last
        return next(iter(self._by_use(demand, nodes)), None)

    def _by_use(self, demand: Demand, nodes: Sequence[Path]) -> list[Path]:
        """Give the nodes that can take the stage, those of least use to others first."""
        most = len(self._demands)
        fitting = (node for node in nodes if self._room.fits(demand, node[-1]))
        return sorted(
            fitting,
            key=lambda node: (self._versatility[node], self._room.count(demand, node[-1], most=most), node),
        )

    # What no chain can beat

    @property
    def is_hopeless(self) -> bool:
        """Say whether a stage finds no node at all."""
        return not all(any(counts) for counts in zip(*self._counts.values(), strict=True))

    def _bound(self, chain: list[Path]) -> Crossings:
        """Give crossings that every completion of the chain has at least."""
        stage = len(chain)
        so_far = crossings(chain) if chain else (0,) * self._num_levels
        if stage == len(self._demands):
            return so_far
        more = [max(0, bounds[stage] - 1) for bounds in self._bounds]
        if chain:  # the next run stands in another leaf, so on another node
            more[-2:] = [count + 1 for count in more[-2:]]
        return tuple(count + extra for count, extra in zip(so_far, more, strict=True))

    @property
    def _num_levels(self) -> int:
        return len(next(iter(self._nodes.values()))[0])

    def _reckon_bounds(self, domain: Domain) -> list[list[int]]:
        """Give, for each level and each stage, how many domains the stages from there on need at least."""
        bounds = []
        for level in range(1, self._num_levels + 1):
            parts = [self._nodes_in(part) for part in domain.at_depth(max(0, level - self._depth))]
            by_room = self._needed_by_room(parts)
            by_kind = self._needed_by_kind(parts) if level < self._num_levels else by_room  # a node's kinds gain little
            bounds.append([max(each) for each in zip(by_room, by_kind, strict=True)])
        return bounds

    def _needed_by_room(self, parts: Sequence[Sequence[Path]]) -> list[int]:
        """Count the largest domains that together have room enough, whatever the kind."""
        most = len(self._demands)
        rooms = sorted((sum(max(self._counts[node]) for node in part) for part in parts), reverse=True)
        totals = list(accumulate(rooms))
        return [bisect_left(totals, most - stage) + 1 if stage < most else 0 for stage in range(most + 1)]

    def _needed_by_kind(self, parts: Sequence[Sequence[Path]]) -> list[int]:
        """Count runs of greatest length: one can be no longer than a domain has room for each of its kinds alone."""
        num_stages = len(self._demands)
        longest = [0] * num_stages
        for part in parts:
            for stage, end in enumerate(self._farthest(part)):
                longest[stage] = max(longest[stage], end - stage)
        needed = [_NEVER] * num_stages + [0]
        for stage in reversed(range(num_stages)):
            if longest[stage]:
                needed[stage] = 1 + needed[stage + longest[stage]]
        return needed

    def _nodes_in(self, domain: Domain) -> list[Path]:
        inside = len(domain.path)
        return [node for nodes in self._nodes.values() for node in nodes if node[:inside] == domain.path]

    def _farthest(self, nodes: Sequence[Path]) -> Iterator[int]:
        """Give, for each stage, the end of the longest run from there that the nodes could take, by kind."""
        most = len(self._demands)
        left = [sum(counts) for counts in zip(*(self._counts[node] for node in nodes), strict=True)]
        kind_of = [next(i for i, kind in enumerate(self._kinds) if kind.is_like(each)) for each in self._demands]
        end = 0
        for stage in range(most):
            while end < most and left[kind_of[end]] > 0:
                left[kind_of[end]] -= 1
                end += 1
            yield max(end, stage)
            if end > stage:
                left[kind_of[stage]] += 1
            else:
                end = stage + 1

    # When the walk finds nothing

    def scarcest_first(self, budget: int) -> tuple[Crossings, list[Path]] | None:
        """Place the stages with the fewest nodes to choose from first, wherever there is room; go back where stuck."""
        nodes = [node for leaf in self._nodes.values() for node in leaf]
        choice = [sum(self._room.fits(demand, node[-1]) for node in nodes) for demand in self._demands]
        order = sorted(range(len(self._demands)), key=lambda stage: choice[stage])
        chain: dict[int, Path] = {}
        options = [iter(self._by_use(self._demands[order[0]], nodes))]
        while options and len(chain) < len(order) and budget > 0:
            budget -= 1
            stage = order[len(options) - 1]
            node = next(options[-1], None)
            if node is not None:
                self._room.take(self._demands[stage], node[-1])
                chain[stage] = node
                options += [
                    iter(self._by_use(self._demands[each], nodes)) for each in order[len(chain) : len(chain) + 1]
                ]
            else:
                options.pop()
                self._vacate(chain)
        found = [chain[stage] for stage in sorted(chain)] if len(chain) == len(order) else None
        while chain:
            self._vacate(chain)
        return (crossings(found), found) if found else None

    def _vacate(self, chain: dict[int, Path]) -> None:
        """Take the stage that was placed last away again."""
        if chain:
            stage, node = chain.popitem()
            self._room.give_back(self._demands[stage], node[-1])


def _leaves(domain: Domain) -> Iterator[Domain]:
    if domain.node is not None or any(child.node is not None for child in domain.children):
        yield domain
    for child in domain.children:
        if child.node is None:
            yield from _leaves(child)


def _kinds(demands: Sequence[Demand]) -> list[Demand]:
    kinds: list[Demand] = []
    for demand in demands:
        if not any(demand.is_like(kind) for kind in kinds):
            kinds.append(demand)
    return kinds
