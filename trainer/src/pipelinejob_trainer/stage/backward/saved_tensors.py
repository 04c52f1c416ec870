"""Holds what autograd saves for a backward pass, so that it can be freed piece by piece.

Between the two halves of a backward pass, torch keeps everything that the graph has saved: it
frees a node's tensors only when it knows that the node will not run again. We know: of the nodes
that ran in the first half, only junctions (see `split_backward`) run once more. So each saved
tensor is put into a box, and boxes opened in the first half, but by no junction, are emptied after
it.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from types import NoneType
from typing import Any

import torch
from torch.autograd.graph import Node, saved_tensors_hooks
from torch.utils.hooks import RemovableHandle

from pipelinejob_trainer.base.errors import ChangedInPlaceError


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
        """Keep here what autograd saves inside."""
        return saved_tensors_hooks(self._pack, self._unpack)

    @contextmanager
    def watching(self, junctions: Iterable[Node]) -> Iterator[None]:
        """Record which boxes are opened inside by other nodes than these."""
        hooks = [hook for node in junctions for hook in self._watch(node)]
        self._is_watching = True
        yield
        self._is_watching = False
        for hook in hooks:
            hook.remove()

    def has_foreign_hooks(self, node: Node) -> bool:
        """Return whether a node's saved tensors are held by a user's own hooks."""
        return any(_is_strange(getattr(node, slot)) for slot in _slots(type(node)))

    def __len__(self) -> int:
        return len(self._boxes)

    def empty_opened(self) -> None:
        """Empty the boxes opened while watching, but by no junction."""
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
            raise ChangedInPlaceError(
                "one of the tensors that a layer's backward pass needs was changed in place after the layer used it"
            )
        if self._is_watching and not self._junctions_at_work:
            box.is_of_the_way = True
        return tensor


def _is_strange(kept: Any) -> bool:
    if isinstance(kept, tuple):
        return any(map(_is_strange, kept))
    return not isinstance(kept.data, (_Box, torch.Tensor, NoneType))


@cache
def _slots(of: type) -> tuple[str, ...]:
    """Return the attributes of a node type that hold what it saved."""
    return tuple(name for name in dir(of) if name.startswith("_raw_saved_"))
