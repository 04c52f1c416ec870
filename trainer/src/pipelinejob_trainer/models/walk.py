"""How a chunk's layers are run: one after another, or by what can run several of them in one go.

Either way each layer is run through a function of the stage's, which sets the random state, knows
whose error it is, and marks where halves of a backward pass meet.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import nn


class Through(Protocol):
    """Runs one layer of a chunk on what comes in: the module itself, or `call` in its stead."""

    def __call__(self, index: int, layer: nn.Module, given: Any, call: Callable[[Any], Any] | None = None) -> Any: ...


class Runner(Protocol):
    """Runs a stretch of its layers in one go."""

    def walk(self, layers: range, received: Any, through: Through) -> Any:
        """Return the output of the last of these layers."""

    def compile(self, index: int) -> None:
        """Compile a layer, where it is one that is run by itself."""

    def hollow(self, index: int) -> AbstractContextManager[None]:
        """Let a layer between the first and the last pass on what it is given: what is left is what goes around it."""


Walk = Callable[[Any, Through], Any]


def one_after_another(layers: Sequence[tuple[int, nn.Module]]) -> Walk:
    """Return a walk that gives each layer the output of the one before."""

    def walk(received: Any, through: Through) -> Any:
        output = received
        for index, layer in layers:
            output = through(index, layer, output)
        return output

    return walk
