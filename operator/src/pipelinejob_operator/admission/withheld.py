"""What comes free while the line is worked through: nobody has it before the line is worked through again.

A line of thousands takes a while, in which others have their turn: jobs end, or break and stand in
line again, ahead of those whose turn it is by then. Whom their room belongs to only the head of
the next line tells.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction

from pipelinejob_operator.admission.capacity import Claim, Free, minus
from pipelinejob_operator.admission.nodes import Nodes


class Withheld:
    """What came free of nodes since it was begun to note that."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._amounts: dict[str, dict[str, Fraction]] | None = None  # by node and resource; None: nothing is withheld

    def __bool__(self) -> bool:
        """Whether anything is withheld now."""
        return bool(self._amounts)

    def begin(self) -> None:
        """Withhold what comes free from now on."""
        self._amounts = {}

    def end(self) -> bool:
        """Let everybody have it; tell whether there is anything."""
        found, self._amounts = self._amounts, None
        return bool(found)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note what the changes of a block set free, as far as no other change of it takes that."""
        if self._amounts is None:
            yield
            return
        self._nodes.settle()
        yield
        for name, (before, after) in self._nodes.settle().items():
            self._note(self._amounts, name, {each: after[each] - before.get(each, Fraction(0)) for each in after})

    @staticmethod
    def _note(amounts: dict[str, dict[str, Fraction]], name: str, more: dict[str, Fraction]) -> None:
        # What others take is taken of what came free, first of all.
        known = amounts.pop(name, {})
        now = {each: known.get(each, Fraction(0)) + amount for each, amount in more.items()}
        if left := {each: amount for each, amount in now.items() if amount > 0}:
            amounts[name] = left

    def free(self) -> Free:
        """What is free beside what is withheld."""
        return minus(self._nodes.free, (Claim(name, amounts) for name, amounts in (self._amounts or {}).items()))
