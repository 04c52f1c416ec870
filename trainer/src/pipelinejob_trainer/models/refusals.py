"""Layers of a user's own that would be trained wrongly, refused with the reason.

Told by the names of classes: to import torch's wrappers only to look for them would take seconds.
"""

from torch import nn

from pipelinejob_trainer.errors import UserError

# torch itself trains these combinations wrongly in silence: a stage's weight gradients come after the hooks that the
# wrapper adds up in (pytorch/pytorch#144530 for DDP; with FSDP's resharding some parameters get no gradient at all).
_WRAPPERS = frozenset({"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"})


def check_layer(index: int, layer: nn.Module, *, is_split: bool) -> None:
    """Refuse a layer that is wrapped for data parallelism, or compiled where backward passes come in halves.

    Raises UserError.
    """
    for name, module in layer.named_modules():
        where = f"layer {index}" if not name else f"layer {index}, {name}"
        wrapper = _WRAPPERS.intersection(each.__name__ for each in type(module).__mro__)
        if wrapper:
            raise UserError(
                "WrappedLayer",
                f"spec.model.entrypoint: {where} is wrapped in {min(wrapper)}; gradients are added up over replicas by"
                " the trainer already, once a step, and would be twice; give the bare module, and say"
                " spec.parallelism.data how many replicas there are",
            )
        if is_split and _is_compiled(module):
            raise UserError(
                "CompiledLayer",
                f"spec.model.entrypoint: {where} is compiled by torch.compile, whose backward pass is one piece; this"
                " schedule runs it in two; give the module uncompiled, or use a schedule with whole backward passes,"
                " such as 1F1B or Interleaved1F1B",
            )


def _is_compiled(module: nn.Module) -> bool:
    called = getattr(module, "_compiled_call_impl", None)  # what module.compile() sets
    return called is not None or type(module).__name__ == "OptimizedModule"
