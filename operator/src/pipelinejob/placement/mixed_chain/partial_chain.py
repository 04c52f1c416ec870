"""A partly placed chain: its runs so far, the cost of their boundaries, and what they leave of each leaf."""

from bisect import insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipelinejob.fabric.network import common_depth
from pipelinejob.placement.found import Limits
from pipelinejob.placement.mixed_chain.contents import Content, Contents, Stock
from pipelinejob.placement.mixed_chain.leaves import Leaf
from pipelinejob.placement.mixed_chain.runs import Run, Runs
from pipelinejob.placement.prices import Path, Prices


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One run of the chain, and the state before it."""

    leaf: Leaf
    run: Run
    stage: int  # the first of the run
    stock: Stock
    cost_s: float


class PartialChain:
    """The chain, as it grows and shrinks."""

    def __init__(self, leaves: Sequence[Leaf], runs: Runs, prices: Prices, limits: Limits) -> None:
        """Start an empty chain over these leaves."""
        self.pieces: list[Piece] = []
        self.num_stages = 0
        self.cost_s = 0.0  # of its boundaries so far
        self.stocks = {leaf.path: leaf.stock for leaf in leaves}
        self._runs = runs
        self._prices = prices
        self._limits = limits

    @property
    def leaf(self) -> Path | None:
        """Return the leaf that the last stage stands in."""
        return self.pieces[-1].leaf.path if self.pieces else None

    def lengthen(self, leaf: Leaf, run: Run) -> None:
        """Append a run: place the next stages on its nodes."""
        piece = Piece(leaf=leaf, run=run, stage=self.num_stages, stock=self.stocks[leaf.path], cost_s=self.cost_s)
        self.cost_s += self._added_s(leaf, run)
        self.stocks[leaf.path] = self._runs.rest(piece.stock, piece.stage, run)
        self.num_stages += len(run)
        self.pieces.append(piece)

    def withdraw(self) -> None:
        """Remove the last run."""
        piece = self.pieces.pop()
        self.cost_s = piece.cost_s
        self.stocks[piece.leaf.path] = piece.stock
        self.num_stages = piece.stage

    def left_within_limits(self) -> dict[Path, int]:
        """Count the further stages that each limited domain may take."""
        return {
            limit: most - sum(len(each.run) for each in self.pieces if each.leaf.path[: len(limit)] == limit)
            for limit, most in self._limits.items()
        }

    @property
    def whole_s(self) -> float:
        """Price the chain as a whole: its last stage may talk to its first."""
        first, last = self.pieces[0], self.pieces[-1]
        is_one_node = first is last and all(stays for _, stays in first.run[1:])
        return self.cost_s + self._prices.wrap[common_depth(first.leaf.path, last.leaf.path) + is_one_node]

    def _added_s(self, leaf: Leaf, run: Run) -> float:
        """Price the boundaries before a run's stages; the first of them comes from another leaf, or from nowhere."""
        in_leaf = len(leaf.path)
        depths = [in_leaf + stays for _, stays in run]
        if self.leaf is None:
            depths, boundaries = depths[1:], self._prices.chain
        else:
            depths[0], boundaries = common_depth(self.leaf, leaf.path), self._prices.chain[self.num_stages - 1 :]
        return sum([price[depth] for price, depth in zip(boundaries, depths, strict=False)])


def named(pieces: Sequence[Piece], contents: Contents) -> Iterator[Path]:
    """Yield the nodes of the stages, in order; among nodes of equal capacity the first by name."""
    held: dict[Path, dict[Content, list[Path]]] = {}
    here: Path = ()
    for piece in pieces:
        nodes = held.setdefault(piece.leaf.path, piece.leaf.by_content())
        for stage, (content, stays) in enumerate(piece.run, start=piece.stage):
            here = here if stays else nodes[content][0]
            nodes[content].remove(here)
            insort(nodes.setdefault(contents.after(content, contents.kind_of[stage]), []), here)
            yield here
