"""What autograd saves for a backward pass, in our hands, so that it can be let go of piece by piece.

A graph of which the first half has run, and the second half not, holds everything that it ever saved: torch lets go of
a node's tensors only where it knows that the node will not run again. Here that is known: of the nodes that ran in the
first half, only junctions (see `backward`) run once more. So each saved tensor is put into a box, and the boxes that
were opened in the first half, but by no junction, are emptied after it.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch.autograd.graph import Node, saved_tensors_hooks
from torch.utils.hooks import RemovableHandle


class _Box:
    """A saved tensor, and the version that it had."""

    __slots__ = ("is_of_the_way", "tensor", "version")

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor: torch.Tensor | None = tensor
        self.version = tensor._version  # noqa: SLF001 # torch's documents name it; there is no other way to ask
        self.is_of_the_way = False


class SavedTensors:
    """What one micro-batch's forward pass saved."""

    def __init__(self) -> None:
        self._boxes: list[_Box] = []
        self._junctions_at_work = 0
        self._is_watching = False

    def keeping(self) -> AbstractContextManager[object]:
        """Save here what autograd saves inside."""
        return saved_tensors_hooks(self._pack, self._unpack)

    @contextmanager
    def watching(self, junctions: Iterable[Node]) -> Iterator[None]:
        """Note what is opened inside by other nodes than these."""
        hooks = [hook for node in junctions for hook in self._watch(node)]
        self._is_watching = True
        yield
        self._is_watching = False
        for hook in hooks:
            hook.remove()

    def let_go_of_the_way(self) -> None:
        """Let go of what was opened, while watched, by other nodes than junctions."""
        for box in self._boxes:
            if box.is_of_the_way:
                box.tensor = None
        self._boxes.clear()

    def _watch(self, junction: Node) -> tuple[RemovableHandle, RemovableHandle]:
        return junction.register_prehook(self._enter), junction.register_hook(self._leave)

    def _enter(self, _: object) -> None:
        self._junctions_at_work += 1

    def _leave(self, _: object, __: object) -> None:
        self._junctions_at_work -= 1

    def _pack(self, tensor: torch.Tensor) -> _Box:
        box = _Box(tensor)
        self._boxes.append(box)
        return box

    def _unpack(self, box: _Box) -> torch.Tensor:
        tensor = box.tensor
        assert tensor is not None, "only nodes that do not run again have their boxes emptied"
        # autograd leaves this check to who keeps its tensors
        if tensor._version != box.version:  # noqa: SLF001 # as above
            raise RuntimeError(
                "one of the tensors that a layer's backward pass needs was changed in place after the layer used it"
            )
        if self._is_watching and not self._junctions_at_work:
            box.is_of_the_way = True
        return tensor
