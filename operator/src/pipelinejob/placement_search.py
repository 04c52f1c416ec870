"""Searches for a chain of unlike stages, leaf by leaf, within a budget.

The search walks the chain leaf by leaf (a leaf: the domains just above the nodes), each time trying the longest run of
stages that the next leaf can take first, shorter runs after, and drops what cannot cost less than the best chain found.
It ends when nothing is left to try, when a chain meets the bound that counts alone set, which makes it optimal, or when
the budget is spent. If it finds no chain, the stages can be placed once more, those with the fewest nodes to choose
from first.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, groupby

from pipelinejob.network import common_depth
from pipelinejob.placement_like import Found, Limits
from pipelinejob.placement_room import Demand, Room, Seats, kinds_of
from pipelinejob.prices import Path, Prices

_Choice = Callable[[int, Sequence[Path]], Path | None]

_NEVER = 10**9
_INFINITE = float("inf")


@dataclass(slots=True)
class _Frame:
    """One leaf of the chain under way: the options for it, and the run that is being tried."""

    options: Iterator[list[Path]]
    before_s: float = 0.0  # what the chain costs so far
    run: list[Path] = field(default_factory=list)


class ChainSearch:
    """The search for one chain over some nodes; what it puts on them while it looks it takes away again."""

    def __init__(
        self,
        counts: Mapping[Path, tuple[int, ...]],
        demands: Sequence[Demand],
        room: Room | Seats,
        prices: Prices,
        limits: Limits,
    ) -> None:
        self._counts = counts
        self._demands = demands
        self._room = room
        self._prices = prices
        self._limits = limits
        self._num_levels = prices.num_depths - 1
        self._nodes = {leaf: list(nodes) for leaf, nodes in groupby(counts, key=lambda path: path[:-1])}
        self._kinds = kinds_of(demands)
        self._kind_of = [next(i for i, kind in enumerate(self._kinds) if kind.is_like(each)) for each in demands]
        self._versatility = {node: sum(map(bool, each)) for node, each in counts.items()}
        self._runs: dict[tuple[Path, int, tuple[tuple[int, Path], ...]], list[list[Path]]] = {}
        self._further_s = self._reckon_further()

    # What the search walks

    def best_chain(self, budget: int, *, below: float) -> Found | None:
        """Give the cheapest chain below a price, None if there was none among those tried."""
        best: tuple[float, list[Path]] | None = None
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
            so_far_s = frames[-1].before_s + self._put(frames[-1], run, chain)
            if self._bound(chain, so_far_s) >= below:
                continue
            if len(chain) == len(self._demands):
                below = self._prices.chain_s(chain)
                best = (below, list(chain))
                if below <= self.least_s:
                    break
            else:
                frames.append(_Frame(self._options(chain), so_far_s))
        for frame in reversed(frames):
            self._withdraw(frame, chain)
        return None if best is None else Found(cost=best[0], walk=partial(tuple, best[1]))

    def _put(self, frame: _Frame, run: list[Path], chain: list[Path]) -> float:
        """Lengthen the chain by a run; give what its boundaries cost."""
        cost_s = 0.0
        for path in run:
            if chain:
                cost_s += self._prices.chain[len(chain) - 1][common_depth(chain[-1], path)]
            self._room.take(self._demands[len(chain)], path[-1])
            chain.append(path)
        frame.run = run
        return cost_s

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
            leaf = each[1][:-1]
            taken[leaf] = (*taken.get(leaf, ()), each)
        others = (leaf for leaf in self._nodes if not here or leaf != here[:-1])
        runs = (
            self._within_limits(run, chain)
            for leaf in others
            for run in self._runs_in(leaf, stage, taken.get(leaf, ()))
        )
        ordered = sorted(
            (run for run in runs if run),
            key=lambda run: (-common_depth(here, run[0]) if here else 0, -len(run), self._spare(run[0]), run[0]),
        )
        yield from ordered
        for run in ordered:
            yield from (run[:length] for length in range(len(run) - 1, 0, -1))

    def _within_limits(self, run: list[Path], chain: list[Path]) -> list[Path]:
        """Cut a run off where a domain or a node would take more than it may."""
        for limit, most in self._limits.items():
            inside = sum(path[: len(limit)] == limit for path in chain)
            for number, path in enumerate(run):
                inside += path[: len(limit)] == limit
                if inside > most:
                    run = run[:number]
                    break
        return run

    def _spare(self, node: Path) -> int:
        return len(self._nodes[node[:-1]])

    def _runs_in(self, leaf: Path, stage: int, taken: tuple[tuple[int, Path], ...]) -> list[list[Path]]:
        """Give the nodes for long runs of stages from `stage` on that the leaf can take beside those it took."""
        key = (leaf, stage, taken)
        if key not in self._runs:
            if isinstance(self._room, Seats):
                self._runs[key] = [self._matched_run(leaf, stage)]
            else:
                ways = (self._seated_run(leaf, stage, choose) for choose in (self._least_of_use, self._longest_held))
                self._runs[key] = [run for run, _ in groupby(ways)]
        return self._runs[key]

    def _matched_run(self, leaf: Path, stage: int) -> list[Path]:
        """Match stages with nodes that take one each: a stage that finds none free moves others aside, if they can."""
        options: dict[int, list[Path]] = {}
        holders: dict[Path, int] = {}

        def is_seated(number: int, tried: set[Path]) -> bool:
            kind = self._kind_of[number]
            if kind not in options:
                options[kind] = self._by_use(self._demands[number], self._nodes[leaf])
            for node in options[kind]:
                if node not in tried:
                    tried.add(node)
                    if node not in holders or is_seated(holders[node], tried):
                        holders[node] = number
                        return True
            return False

        for number in range(stage, len(self._demands)):
            if not is_seated(number, set()):
                break
        return sorted(holders, key=holders.__getitem__)

    def _seated_run(self, leaf: Path, stage: int, choose: _Choice) -> list[Path]:
        """Put stage after stage on a node, staying on it as long as it can take more."""
        run: list[Path] = []
        for number, demand in enumerate(self._demands[stage:], start=stage):
            stays = bool(run) and self._room.fits(demand, run[-1][-1])
            node = run[-1] if stays else choose(number, self._nodes[leaf])
            if node is None:
                break
            self._room.take(demand, node[-1])
            run.append(node)
        for demand, node in zip(self._demands[stage:], run, strict=False):
            self._room.give_back(demand, node[-1])
        return run

    def _least_of_use(self, stage: int, nodes: Sequence[Path]) -> Path | None:
        """Choose the node that is of least use to others."""
        return min(self._fitting(self._demands[stage], nodes), default=(0, 0, None))[2]

    def _longest_held(self, stage: int, nodes: Sequence[Path]) -> Path | None:
        """Choose the node that can take the most stages in a row from here on."""
        fitting = self._fitting(self._demands[stage], nodes)
        ranked = ((-self._num_in_a_row(stage, node), kinds, count, node) for kinds, count, node in fitting)
        return min(ranked, default=(0, 0, 0, None))[3]

    def _num_in_a_row(self, stage: int, node: Path) -> int:
        seated = []
        for demand in self._demands[stage:]:
            if not self._room.fits(demand, node[-1]):
                break
            self._room.take(demand, node[-1])
            seated.append(demand)
        for demand in seated:
            self._room.give_back(demand, node[-1])
        return len(seated)

    def _by_use(self, demand: Demand, nodes: Sequence[Path]) -> list[Path]:
        """Give the nodes that can take the stage, those of least use to others first."""
        return [node for _, _, node in sorted(self._fitting(demand, nodes))]

    def _fitting(self, demand: Demand, nodes: Sequence[Path]) -> Iterator[tuple[int, int, Path]]:
        """Give the nodes that can take the stage, each with how many kinds, and how many stages, it is of use to."""
        for node in nodes:
            if (count := self._room.count(demand, node[-1], most=len(self._demands))) and self._limits.get(node, 1):
                yield self._versatility[node], count, node

    # What no chain can beat

    @property
    def least_s(self) -> float:
        """Give a price that no chain is below."""
        return self._further_s[0]

    def _bound(self, chain: list[Path], so_far_s: float) -> float:
        """Give a price that no completion of the chain is below."""
        stage = len(chain)
        if stage == len(self._demands):
            return self._prices.chain_s(chain)
        to_next_s = self._prices.chain[stage - 1][self._num_levels - 2] if chain else 0.0  # it stands in another leaf
        return so_far_s + to_next_s + self._further_s[stage]

    def _reckon_further(self) -> list[float]:
        """Give, for each stage, what the boundaries behind it cost at least, by the domains that the rest takes.

        A boundary that crosses a level costs at least what the level adds to the next finer one's price.
        """
        num_stages = len(self._demands)
        further = [0.0] * (num_stages + 1)
        for level in range(1, self._num_levels + 1):
            parts: dict[Path, list[Path]] = {}
            for node in self._counts:
                parts.setdefault(node[:level], []).append(node)
            by_room = self._needed_by_room(list(parts.values()))
            by_kind = self._needed_by_kind(list(parts.values())) if level < self._num_levels else by_room
            added = [price[level - 1] - price[level] for price in self._prices.chain]
            for stage in range(num_stages):
                crossed = max(by_room[stage], by_kind[stage]) - 1
                further[stage] += sum(sorted(added[stage:])[:crossed]) if crossed < _NEVER - 1 else _INFINITE
        return further

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
                needed[stage] = min(_NEVER, 1 + needed[stage + longest[stage]])
        return needed

    def _farthest(self, nodes: Sequence[Path]) -> Iterator[int]:
        """Give, for each stage, the end of the longest run from there that the nodes could take, by kind."""
        most = len(self._demands)
        left = [sum(counts) for counts in zip(*(self._counts[node] for node in nodes), strict=True)]
        kind_of = self._kind_of
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

    def scarcest_first(self, budget: int) -> Found | None:
        """Place the stages with the fewest nodes to choose from first, wherever there is room; go back where stuck."""
        nodes = list(self._counts)
        choice = [sum(self._room.fits(demand, node[-1]) for node in nodes) for demand in self._demands]
        order = sorted(range(len(self._demands)), key=lambda stage: choice[stage])
        chain: dict[int, Path] = {}
        options = [iter(self._by_use(self._demands[order[0]], nodes))]
        while options and len(chain) < len(order) and budget > 0:
            budget -= 1
            stage = order[len(options) - 1]
            node = next(options[-1], None)
            if node is not None and self._within_limits([node], list(chain.values())):
                self._room.take(self._demands[stage], node[-1])
                chain[stage] = node
                options += [
                    iter(self._by_use(self._demands[each], nodes)) for each in order[len(chain) : len(chain) + 1]
                ]
            elif node is None:
                options.pop()
                self._vacate(chain)
        found = [chain[stage] for stage in sorted(chain)] if len(chain) == len(order) else None
        while chain:
            self._vacate(chain)
        return Found(cost=self._prices.chain_s(found), walk=partial(tuple, found)) if found else None

    def _vacate(self, chain: dict[int, Path]) -> None:
        """Take the stage that was placed last away again."""
        if chain:
            stage, node = chain.popitem()
            self._room.give_back(self._demands[stage], node[-1])
