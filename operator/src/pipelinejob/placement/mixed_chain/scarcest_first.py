"""Fallback search for a mixed chain: the stages with the fewest possible nodes are placed first."""

from bisect import insort
from collections.abc import Iterator, Sequence

from pipelinejob.placement.mixed_chain.contents import Content, Contents
from pipelinejob.placement.mixed_chain.leaves import Leaf
from pipelinejob.placement.prices import Path


class ScarcestFirst:
    """A backtracking search over contents, blind to location; among nodes of one content the first by name is used."""

    def __init__(self, leaves: Sequence[Leaf], contents: Contents) -> None:
        """Prepare the search over these leaves."""
        self._contents = contents
        self._held: dict[Content, list[Path]] = {}
        for leaf in leaves:  # in order of their names
            for content, nodes in leaf.by_content().items():
                self._held.setdefault(content, []).extend(nodes)
        choice = [self._num_fitting(kind) for kind in range(len(contents.asked.kinds))]
        self._order = sorted(range(len(contents.kind_of)), key=lambda stage: choice[contents.kind_of[stage]])
        self._seated: list[tuple[Path, Content]] = []  # in that order, with what the node could take before

    def chain(self, budget: int) -> list[Path] | None:
        """Return the nodes of the stages, in order; None if none were found within the budget of tries."""
        options = [self._options()]
        for _ in range(budget):
            content = next(options[-1], None)
            if content is not None:
                self._seat(content)
                if len(self._seated) == len(self._order):
                    return [node for _, (node, _) in sorted(zip(self._order, self._seated, strict=True))]
                options.append(self._options())
            elif len(options) == 1:
                break
            else:
                options.pop()
                self._unseat()
        return None

    def _num_fitting(self, kind: int) -> int:
        return sum(len(nodes) for content, nodes in self._held.items() if self._contents.counts[content][kind])

    def _options(self) -> Iterator[Content]:
        """Iterate over the contents that can take the next stage, the least versatile first."""
        there = sorted(
            (content for content, nodes in self._held.items() if nodes), key=lambda each: self._held[each][0]
        )
        return iter(self._contents.by_use(self._next_kind, tuple(there)))

    @property
    def _next_kind(self) -> int:
        return self._contents.kind_of[self._order[len(self._seated)]]

    def _seat(self, content: Content) -> None:
        node = self._held[content].pop(0)
        insort(self._held.setdefault(self._contents.after(content, self._next_kind), []), node)
        self._seated.append((node, content))

    def _unseat(self) -> None:
        """Remove the stage that was seated last."""
        node, content = self._seated.pop()
        self._held[self._contents.after(content, self._next_kind)].remove(node)
        insort(self._held[content], node)
