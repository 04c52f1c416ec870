"""The only calls of autograd's engine.

torch.autograd.backward and grad call it too, after checks that take longer than a small stage's
whole pass, and after importing sympy, which takes seconds, if they are given gradients. The engine
makes the necessary checks itself. This is not among torch's documented names; its signature has
not changed since torch 1.8, and tests/trainer/stage/test_split_backward.py compares it with
torch.autograd.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import Variable
from torch.autograd.graph import GradientEdge

_run = Variable._execution_engine.run_backward  # noqa: SLF001 # as the module says


def accumulate(
    roots: Sequence[GradientEdge],
    gradients: Sequence[torch.Tensor],
    into: Sequence[torch.Tensor] = (),
) -> None:
    """Run backward from roots with their gradients; add to `.grad` of the given leaves, or of all.

    The part of the graph that was run is freed.
    """
    _run(
        tuple(roots),
        tuple(gradients),
        False,  # keep the graph
        False,  # make a graph of this pass
        tuple(into),
        allow_unreachable=True,
        accumulate_grad=True,
    )


def capture(
    roots: Sequence[GradientEdge], gradients: Sequence[torch.Tensor], at: Sequence[GradientEdge]
) -> tuple[torch.Tensor | None, ...]:
    """Run backward from roots, no further than needed.

    Return the gradients at some edges. Keeps the graph. An edge without a gradient has None.
    """
    arrived: tuple[torch.Tensor | None, ...] = _run(
        tuple(roots), tuple(gradients), True, False, tuple(at), allow_unreachable=True, accumulate_grad=False
    )
    return arrived


@torch.no_grad()
def add(leaf: GradientEdge, gradient: torch.Tensor) -> None:
    """Add a gradient to a leaf's, as the engine does: hooks on the sum are called."""
    node: Any = leaf.node  # torch's stubs leave out that nodes can be called
    node(gradient)
