"""A user's own parts of a graph: autograd Functions, and checkpointed layers.

torch.utils.checkpoint runs a layer again in its backward pass. In one mode it is a Function that
asks whether the whole graph is run; in the other it saves tensors by hooks of its own.
"""

from collections.abc import Collection
from functools import cache
from types import CodeType

from torch import nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

from pipelinejob_trainer.base.errors import LayerError
from pipelinejob_trainer.stage.backward.saved_tensors import SavedTensors

Function = BackwardCFunction  # what a torch.autograd.Function is in a graph; all else there is torch's own C++


class RunsAgain:
    """Tells whether any layer of a graph is run again within its backward pass.

    It is called for every micro-batch, so a graph of a known size is not searched again.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], bool] = {}

    def __call__(self, nodes: Collection[Node], saved: SavedTensors) -> bool:
        size = (len(nodes), len(saved))
        known = self._known.get(size)
        if known is None:
            known = self._known[size] = any(
                _asks_for_all(type(node)) or saved.has_foreign_hooks(node) for node in nodes
            )
        return known


@cache
def _asks_for_all(of: type) -> bool:
    """Return whether a Function's backward may re-enter autograd, as checkpointing does."""
    code = getattr(getattr(getattr(of, "_forward_cls", None), "backward", None), "__code__", None)
    return isinstance(code, CodeType) and "_is_checkpoint_valid" in code.co_names


def is_against_hooks(error: BaseException) -> bool:
    """Return whether torch.func raised an error because tensors are saved by hooks."""
    return type(error) is RuntimeError and "saved tensor hooks" in str(error)  # others may have no words


def not_in_halves(index: int, layer: nn.Module) -> LayerError:
    """Return the error for a layer whose backward pass cannot be split into halves."""
    return LayerError(
        "NotInHalves",
        f"layer {index} ({type(layer).__name__}) derives by torch.func, which cannot work where a backward pass comes"
        " in two halves; derive by torch.autograd.grad, or use a schedule with whole backward passes, such as 1F1B or"
        " Interleaved1F1B",
    )
