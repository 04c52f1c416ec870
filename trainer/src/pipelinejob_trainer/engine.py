"""The one door to autograd's engine.

torch.autograd.backward and grad come in here too, after checks that take longer than a small stage's whole pass, and
with an import of sympy, seconds long, as soon as they are given gradients. The engine makes the checks that matter
itself. This is not among torch's documented names; its signature has not changed since torch 1.8, and
tests/trainer/test_split_backward.py holds it to torch.autograd's results.
"""

from collections.abc import Sequence

import torch
from torch.autograd import Variable
from torch.autograd.graph import GradientEdge

_run = Variable._execution_engine.run_backward  # noqa: SLF001 # as the module says


def accumulate(
    roots: Sequence[GradientEdge],
    gradients: Sequence[torch.Tensor],
    into: Sequence[torch.Tensor] = (),
) -> None:
    """Go back from roots with their gradients; add to `.grad` of the leaves given, or of all that there are.

    The graph is let go of as far as it was run.
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


def capture(root: GradientEdge, gradient: torch.Tensor, at: Sequence[GradientEdge]) -> tuple[torch.Tensor | None, ...]:
    """Go back from a root with its gradient, no further than needed; give what arrives at some edges. Keeps the graph.

    An edge that nothing arrives at has None.
    """
    arrived: tuple[torch.Tensor | None, ...] = _run(
        (root,), (gradient,), True, False, tuple(at), allow_unreachable=True, accumulate_grad=False
    )
    return arrived
