"""Layers made by functions: each call of a function has to make new tensors.

Functions are called for a stage's own layers only, so no process sees both layers if two of them
share a tensor. What any rank with the layer can see is whether a function's tensors existed
before, or are returned again by a second call: only then can other layers have them too. If they
are trained, they are refused; otherwise they must not change, and every layer has its own copy.
"""

import gc
import warnings
import weakref
from collections.abc import Callable, Iterable
from functools import cached_property

import torch
from torch import nn

from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.models.identity import Made, memory_of, places, ties

NOT_ITS_OWN = "may be another layer's too, as its function did not make it"


class TensorsBefore:
    """The tensors that existed before the first function was called, as far as they still exist."""

    @cached_property
    def _tensors(self) -> list[weakref.ref[torch.Tensor]]:
        # By type(): isinstance asks a proxy for its class, which may import what it stands for.
        return [weakref.ref(each) for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]

    def note(self) -> None:
        """Record all live tensors, at the first call only."""
        _ = self._tensors

    def memory(self) -> set[tuple[str, int]]:
        """Return the memory that they use."""
        return {memory_of(tensor) for each in self._tensors if (tensor := each()) is not None}


def made_anew(index: int, make: Callable[[], nn.Module], before: TensorsBefore) -> Made:
    """Make a layer.

    Raises UserError for a trained parameter that the function did not make.
    """
    before.note()
    module = make()
    foreign = before.memory() | _memory(index, _made_again(make))
    immutable = {}
    for place in places(index, module):
        tensor = place.tensor
        if tensor is None or memory_of(tensor) not in foreign:
            continue
        if tensor.requires_grad:
            raise UserError(
                "SharedByFunctions",
                f"spec.model.entrypoint: layer {index}: its function did not make parameter {place.local}, which was"
                " there before or is given again by each call: functions are called for a stage's own layers only, so"
                " that layers on other stages could have it too, unnoticed; give the module itself in the"
                " list instead of a function (modules that share a parameter are tied, wherever they stand), or let"
                " the function make a new one",
            )
        immutable[place.name] = NOT_ITS_OWN
    return Made(module=module, tied=ties([(index, module)]), immutable=immutable)


def _made_again(make: Callable[[], nn.Module]) -> nn.Module:
    """Call a function a second time, on the meta device where its layer allows that."""
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            return make()
    except Exception:  # noqa: BLE001 # whatever is impossible on the meta device is possible on a real one
        return make()


def _memory(index: int, module: nn.Module) -> set[tuple[str, int]]:
    tensors: Iterable[torch.Tensor | None] = (place.tensor for place in places(index, module))
    return {memory_of(tensor) for tensor in tensors if tensor is not None}
