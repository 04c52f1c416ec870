"""A backward pass in two halves: the gradient of what a stage received, and later those of its parameters.

The first half walks autograd's graph from the output to what was received and reckons nothing else. A node on that way
where parameters join, at once or through a cast or a transposition, is a **junction**:

    output <- linear2 <- gelu <- linear1 <- received
                 |                  |
              weight2            weight1

The gradient that arrives at each junction is kept. The second half starts at the junctions with what was kept, one by
one, and goes aside only, so that nothing of the first half's way is reckoned again.

A parameter that joins at several junctions has a gradient in the first half: from the upper of its junctions the second
half would have to come down the first half's way to reach the lower one. Where nothing was received, on the first
stage, the first half goes back to an **entrance** inside of it, and what lies below is the second half's.
"""

from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from pipelinejob_trainer.engine import accumulate, capture
from pipelinejob_trainer.saved import SavedTensors

_Edges = tuple[tuple[Node, int], ...]
_Parameters = tuple[torch.Tensor, ...]
_NONE: _Parameters = ()


@dataclass(frozen=True, slots=True)
class Junction:
    """A node on the way where parameters join, and the edges by which gradients come to it."""

    node: Node
    edges: tuple[GradientEdge, ...]
    parameters: _Parameters


@dataclass(frozen=True, slots=True)
class Way:
    """How the first half goes.

    `repeated` are the parameters of several junctions; `again` are the nodes that both halves run: junctions, and nodes
    aside of the way that lead to parameters of both.
    """

    junctions: tuple[Junction, ...]
    repeated: _Parameters
    again: tuple[Node, ...]


class SplitBackward:
    """One micro-batch's backward pass, half by half.

    `root` is the output's place in the graph. `entrance` is where the first half goes back to: that of what was
    received, or one further up; None leaves all to the second half. The way is found at once, before a gradient is
    there.
    """

    def __init__(self, root: GradientEdge, entrance: GradientEdge | None, saved: SavedTensors) -> None:
        self._root = root
        self._entrance = entrance
        self._saved = saved
        self._way = find_way(root.node, entrance.node) if entrance is not None else None
        self._left: list[_Left] = []

    def input_half(self, gradient: torch.Tensor) -> torch.Tensor | None:
        """Give the gradient of the entrance, None if it has none; keep what the second half needs."""
        way, self._way = self._way, None
        if way is None:
            self._left = [_Left((self._root,), (gradient,), ())]
            return None
        assert self._entrance is not None, "a way leads somewhere"
        edges = [edge for junction in way.junctions for edge in junction.edges]
        repeated = map(get_gradient_edge, way.repeated)
        with self._saved.watching(way.again):
            of_entrance, *others = capture(self._root, gradient, (self._entrance, *edges, *repeated))
        self._saved.let_go_of_the_way()
        arrived = iter(others)
        self._left = [_left(junction, arrived) for junction in way.junctions]
        _add(way.repeated, arrived)
        return of_entrance

    def weight_half(self) -> None:
        """Add the rest to the parameters' gradients; everything is let go of."""
        for edges, gradients, parameters in self._left:
            if edges:
                accumulate(edges, gradients, parameters)
        self._left = []


class _Left(NamedTuple):
    """A piece of what is left for the second half: where to go back from, with which gradients, to which parameters."""

    edges: tuple[GradientEdge, ...]
    gradients: tuple[torch.Tensor, ...]
    parameters: tuple[torch.Tensor, ...]


def _left(junction: Junction, arrived: Iterator[torch.Tensor | None]) -> _Left:
    """Take a junction's gradients off what has arrived; at an edge of an output that nobody used, none has."""
    pairs = [(edge, each) for edge in junction.edges if (each := next(arrived)) is not None]
    return _Left(tuple(edge for edge, _ in pairs), tuple(each for _, each in pairs), junction.parameters)


def find_way(root: Node, goal: Node) -> Way | None:
    """Find the way from a node back to another; None if there is none.

    It is found anew for every micro-batch, since layers may do other things each time: so it is kept quick.
    """
    edges_of = _children_first(root)
    on_way: dict[Node, _Parameters] = {}  # and the parameters that join there
    aside: dict[Node, _Parameters] = {}  # and the parameters that they lead to
    for node, edges in edges_of.items():
        is_on_way = node is goal
        parameters = _NONE if edges or is_on_way else _leaf(node)
        for child, _ in edges:
            below = aside.get(child)
            if below is None:
                is_on_way = True
            elif below is not parameters:
                parameters = _union(parameters, below)
        (on_way if is_on_way else aside)[node] = parameters
    if root not in on_way:
        return None
    repeated = _repeated(on_way.values())
    junctions = tuple(_junctions(edges_of, on_way, repeated))
    both = tuple(_leading_to_both(aside, repeated)) if repeated else ()
    return Way(junctions, tuple(repeated), (*(junction.node for junction in junctions), *both))


def _repeated(groups: Iterable[_Parameters]) -> dict[torch.Tensor, None]:
    counts = Counter(parameter for parameters in groups for parameter in parameters)
    return {parameter: None for parameter, count in counts.items() if count > 1}


def _leading_to_both(aside: dict[Node, _Parameters], repeated: Container[torch.Tensor]) -> Iterator[Node]:
    for node, parameters in aside.items():
        if 0 < sum(parameter in repeated for parameter in parameters) < len(parameters):
            yield node


def _junctions(
    edges_of: dict[Node, _Edges], on_way: dict[Node, _Parameters], repeated: Container[torch.Tensor]
) -> Iterator[Junction]:
    single = {node: tuple(p for p in all_of if p not in repeated) for node, all_of in on_way.items() if all_of}
    slots: dict[Node, dict[int, None]] = {}
    for node in on_way:
        for child, slot in edges_of[node]:
            if child in single:
                slots.setdefault(child, {})[slot] = None
    for node, parameters in single.items():
        if parameters:
            yield Junction(node, tuple(GradientEdge(node, slot) for slot in slots.get(node, (0,))), parameters)


def _children_first(root: Node) -> dict[Node, _Edges]:
    """Give all nodes under a root, each one after those that it hands gradients to, and where it hands them."""
    edges_of: dict[Node, _Edges] = {}
    finished: dict[Node, _Edges] = {}
    stack = [root]
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


def _add(parameters: Iterable[torch.Tensor], gradients: Iterable[torch.Tensor | None]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        if parameter.grad is None:
            parameter.grad = gradient.clone()  # what arrived may be the gradient of something else too
        else:
            parameter.grad += gradient
