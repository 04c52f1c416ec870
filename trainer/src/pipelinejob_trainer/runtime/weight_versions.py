"""Weight versions of an asynchronous step: those in use are kept, bit for bit.

The optimiser changes parameters in place, but passes in flight still need the weights that they
began with. So before an update changes the memory of a version in use, the parameters move to a
copy; and for each forward or backward pass they move to the memory of the version that it names.
They stay the same Parameter objects: whatever uses one, by any name, when the layer runs first or
again, uses that version, and hooks on it still run. Memory holds as many copies of the weights as
versions are live.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter  # torch has no other name for it

Memory = tuple[torch.Tensor, ...]


class Versions:
    """The versions of a rank's trained parameters; a step begins with version 0.

    Parameters that are not trained have one version.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = tuple(each for each in parameters if each.requires_grad)
        self._newest = self._present = 0
        self._live: dict[int, Memory] = {}
        self.peak = 0

    @property
    def num_live(self) -> int:
        return len(self._live)

    def begin(self) -> None:
        """Begin a step: the newest version becomes version 0, and is in place."""
        self._newest = self._present = 0
        self._live = {0: self._memory()}
        self.peak = max(self.peak, 1)

    def use(self, version: int) -> None:
        """Put a live version in place."""
        if version == self._present:
            return
        for parameter, memory in zip(self._parameters, self._live[version], strict=True):
            parameter.data = memory
        self._present = version

    @contextmanager
    def making_next(self) -> Iterator[None]:
        """Change the parameters in place inside; they become the next version."""
        self.use(self._newest)
        if self._newest in self._live:
            for parameter in self._parameters:
                parameter.data = parameter.data.clone()
        # autograd counts changes by parameter, not by memory: passes in flight would take this one
        # for a change of what they have saved.
        with _unsafe_preserve_version_counter(self._parameters):
            yield
        self._newest = self._present = self._newest + 1
        self._live[self._newest] = self._memory()
        self.peak = max(self.peak, self.num_live)

    def drop(self, version: int) -> None:
        """Free a version; if it is the newest, the next update reuses its memory."""
        if version in {self._present, self._newest}:
            self.use(self._newest)
        del self._live[version]

    def _memory(self) -> Memory:
        return tuple(parameter.data for parameter in self._parameters)
