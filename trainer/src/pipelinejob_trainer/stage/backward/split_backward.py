"""A backward pass in two halves: the input's gradient, and later those of parameters.

The first half runs autograd's graph from the output to what was received, and computes nothing
else. A node on that path where parameters join, directly or through a cast or a transposition, is a
**junction**:

    output <- linear2 <- gelu <- linear1 <- received
                 |                  |
              weight2            weight1

The gradient that arrives at each junction is kept. The second half starts at the junctions, one by
one, and leaves the path there, so that nothing on the path is computed twice.

A parameter that joins at several junctions gets its gradient in the first half: from the upper
junction the second half would have to follow the path to reach the lower one. So does one that
joins at a user's own Function, whose backward pass may do anything, and is run once. Where nothing
was received, on the first stage, the first half goes back to an **entrance** inside it, and what
lies below belongs to the second half. A nesting has several roots and entrances. Parameters below
a root that leads to no entrance get their gradient in the first half: a junction may lead to them
too.

Layers that torch.utils.checkpoint runs again within their own backward pass would be run again in
both halves. Their pass is not split: the first half is all of it.
"""

from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from pipelinejob_trainer.stage.backward.autograd_engine import accumulate, add, capture
from pipelinejob_trainer.stage.backward.autograd_functions import Function, RunsAgain
from pipelinejob_trainer.stage.backward.saved_tensors import SavedTensors

_Edges = tuple[tuple[Node, int], ...]
_Parameters = tuple[torch.Tensor, ...]
_NONE: _Parameters = ()


@dataclass(frozen=True, slots=True)
class Junction:
    """A node on the path where parameters join, and the edges by which gradients reach it."""

    node: Node
    edges: tuple[GradientEdge, ...]
    parameters: _Parameters


@dataclass(frozen=True, slots=True)
class BackwardPath:
    """The path of the first half.

    `first_half` are the parameters that get their gradients in the first half; `both_halves` are
    the nodes that both halves run: junctions, and nodes beside the path that lead to parameters of
    both.
    """

    junctions: tuple[Junction, ...]
    first_half: _Parameters
    both_halves: tuple[Node, ...]


class SplitBackward:
    """One micro-batch's backward pass, half by half.

    `roots` are the outputs' places in the graph. `entrances` are where the first half ends: those
    of what was received, or some further up; without any, all is left to the second half. The path
    is found at once, before the gradients arrive.
    """

    def __init__(
        self,
        roots: Sequence[GradientEdge],
        entrances: Sequence[GradientEdge],
        saved: SavedTensors,
        runs_again: RunsAgain,
    ) -> None:
        self._entrances = tuple(entrances)
        self._saved = saved
        edges_of = _children_first(roots)
        self._is_whole = runs_again(edges_of, saved)
        self._path = find_path(edges_of, roots, entrances) if entrances and not self._is_whole else None
        self._remaining: list[_Remainder] = []

    def input_half(
        self, roots: Sequence[GradientEdge], gradients: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of the entrances, or Nones; keep what the second half needs.

        `roots` are those that have gradients.
        """
        if self._is_whole:
            return self._all_at_once(roots, gradients)
        path, self._path = self._path, None
        if path is None:
            self._remaining = [_Remainder(tuple(roots), tuple(gradients), ())]
            return (None,) * len(self._entrances)
        edges = [edge for junction in path.junctions for edge in junction.edges]
        first_half = [get_gradient_edge(parameter) for parameter in path.first_half]
        with self._saved.watching(path.both_halves):
            found = capture(roots, gradients, (*self._entrances, *edges, *first_half))
        self._saved.empty_opened()
        arrived = iter(found[len(self._entrances) :])
        self._remaining = [_remaining(junction, arrived) for junction in path.junctions]
        for leaf, each in zip(first_half, arrived, strict=True):
            if each is not None:
                add(leaf, each)
        return found[: len(self._entrances)]

    def _all_at_once(
        self, roots: Sequence[GradientEdge], gradients: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor | None, ...]:
        accumulate(roots, gradients)
        received = (getattr(entrance.node, "variable", None) for entrance in self._entrances)
        return tuple(None if leaf is None else leaf.grad for leaf in received)

    def weight_half(self, before: Callable[[_Parameters], None] = lambda _: None) -> None:
        """Add the rest to the parameters' gradients, and free everything.

        `before` is told whose gradients come next.
        """
        for edges, gradients, parameters in self._remaining:
            if edges:
                before(parameters)
                accumulate(edges, gradients, parameters)
        self._remaining = []


class _Remainder(NamedTuple):
    """A piece of the second half: run backward from edges, with gradients, to parameters."""

    edges: tuple[GradientEdge, ...]
    gradients: tuple[torch.Tensor, ...]
    parameters: tuple[torch.Tensor, ...]


def _remaining(junction: Junction, arrived: Iterator[torch.Tensor | None]) -> _Remainder:
    """Take a junction's gradients from those that arrived; an edge of an unused output has none."""
    pairs = [(edge, each) for edge in junction.edges if (each := next(arrived)) is not None]
    return _Remainder(tuple(edge for edge, _ in pairs), tuple(each for _, each in pairs), junction.parameters)


def find_path(
    edges_of: Mapping[Node, _Edges], roots: Sequence[GradientEdge], entrances: Sequence[GradientEdge]
) -> BackwardPath | None:
    """Find the path from some nodes back to others.

    Returns None if there is none. `edges_of` are those below the roots. It runs for every
    micro-batch, since layers may do other things each time, so it has to be fast.
    """
    goals = {entrance.node for entrance in entrances}
    on_way: dict[Node, _Parameters] = {}  # and the parameters that join there
    aside: dict[Node, _Parameters] = {}  # and the parameters that they lead to
    for node, edges in edges_of.items():
        is_on_way = node in goals
        parameters = _NONE if edges or is_on_way else _leaf(node)
        for child, _ in edges:
            below = aside.get(child)
            if below is None:
                is_on_way = True
            elif below is not parameters:
                parameters = _union(parameters, below)
        (on_way if is_on_way else aside)[node] = parameters
    beside = [root.node for root in roots if root.node not in on_way]
    if len(beside) == len(roots):
        return None
    first_half = _first_half(on_way, aside, goals, beside)
    junctions = tuple(_junctions(edges_of, on_way, first_half, roots))
    both = tuple(_leading_to_both(aside, first_half)) if first_half else ()
    return BackwardPath(junctions, tuple(first_half), (*(junction.node for junction in junctions), *both))


def _first_half(
    on_way: Mapping[Node, _Parameters],
    aside: Mapping[Node, _Parameters],
    goals: Container[Node],
    beside: Sequence[Node],
) -> dict[torch.Tensor, None]:
    """Return the parameters that get their gradients in the first half.

    `beside` are roots that lead to no goal.
    """
    counts = Counter(parameter for parameters in on_way.values() for parameter in parameters)
    found = {parameter: None for parameter, count in counts.items() if count > 1}
    for node, parameters in on_way.items():
        if parameters and node not in goals and isinstance(node, Function):
            found |= dict.fromkeys(parameters)
    for node in beside:
        found |= dict.fromkeys(aside[node])
    while found and (more := _led_to_by_both(aside, found)):
        found |= more
    return found


def _led_to_by_both(aside: Mapping[Node, _Parameters], first_half: Container[torch.Tensor]) -> dict[torch.Tensor, None]:
    """Return parameters of Functions beside the path that would run in both halves."""
    users = (node for node in _leading_to_both(aside, first_half) if isinstance(node, Function))
    return dict.fromkeys(parameter for node in users for parameter in aside[node] if parameter not in first_half)


def _leading_to_both(aside: Mapping[Node, _Parameters], first_half: Container[torch.Tensor]) -> Iterator[Node]:
    for node, parameters in aside.items():
        if 0 < sum(parameter in first_half for parameter in parameters) < len(parameters):
            yield node


def _junctions(
    edges_of: Mapping[Node, _Edges],
    on_way: Mapping[Node, _Parameters],
    first_half: Container[torch.Tensor],
    roots: Sequence[GradientEdge],
) -> Iterator[Junction]:
    single = {node: tuple(p for p in all_of if p not in first_half) for node, all_of in on_way.items() if all_of}
    slots: dict[Node, dict[int, None]] = {}
    for root in roots:
        slots.setdefault(root.node, {})[root.output_nr] = None
    for node in on_way:
        for child, slot in edges_of[node]:
            if child in single:
                slots.setdefault(child, {})[slot] = None
    for node, parameters in single.items():
        if parameters:
            yield Junction(node, tuple(GradientEdge(node, slot) for slot in slots[node]), parameters)


def _children_first(roots: Sequence[GradientEdge]) -> dict[Node, _Edges]:
    """Return the nodes below roots with their edges, each one after its children."""
    edges_of: dict[Node, _Edges] = {}
    finished: dict[Node, _Edges] = {}
    stack = [root.node for root in roots]
    while stack:
        node = stack[-1]
        if node in edges_of:
            finished[node] = edges_of[node]
            stack.pop()
            continue
        edges = edges_of[node] = tuple(edge for edge in node.next_functions if edge[0] is not None)  # type: ignore[misc]
        stack.extend(child for child, _ in edges if child not in edges_of)
    return finished


def _leaf(node: Node) -> _Parameters:
    variable = getattr(node, "variable", None)  # only nodes that end in a leaf have it
    return _NONE if variable is None else (variable,)


def _union(one: _Parameters, other: _Parameters) -> _Parameters:
    if not one or not other:
        return one or other
    return tuple(dict.fromkeys((*one, *other)))
