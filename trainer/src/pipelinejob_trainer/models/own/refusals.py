"""Layers of a user's own that would be trained wrongly, refused with the reason.

Classes are compared by name: importing torch's wrappers would take seconds.
"""

from torch import nn
from torch.nn.parameter import is_lazy

from pipelinejob_trainer.base.errors import UserError

SPARSE = "torch.optim.AdamW takes none, for its moments move every row of a weight; leave sparse=True out"
# torch itself trains these combinations wrongly in silence: a stage's weight gradients come after
# the hooks that the wrapper adds up in (pytorch/pytorch#144530 for DDP; with FSDP's resharding
# some parameters get no gradient at all).
_WRAPPERS = frozenset({"DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"})


def check_layer(index: int, layer: nn.Module, *, is_split: bool) -> None:
    """Refuse a layer that would be trained wrongly.

    Raises UserError.
    """
    _check_filled(index, layer)
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
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise UserError(
                "ExtraState",
                f"spec.model.entrypoint: {where} has state besides tensors (get_extra_state), which no checkpoint keeps"
                " and copies do not agree on; register it as a buffer",
            )
        if _is_sparse(module):
            raise UserError(
                "SparseGradient",
                f"spec.model.entrypoint: {where} is {type(module).__name__}(sparse=True); its gradients are sparse, and"
                f" {SPARSE}",
            )
        if is_split and _is_compiled(module):
            raise UserError(
                "CompiledLayer",
                f"spec.model.entrypoint: {where} is compiled by torch.compile, whose backward pass is one piece; this"
                " schedule runs it in two; give the module uncompiled, or use a schedule with whole backward passes,"
                " such as 1F1B or Interleaved1F1B",
            )


def _check_filled(index: int, layer: nn.Module) -> None:
    """Refuse parameters and buffers without values: nothing would ever set them."""
    for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
        if is_lazy(tensor):
            raise UserError(
                "LazyLayer",
                f"spec.model.entrypoint: layer {index}: {name} has no shape before the layer's first call; parameters"
                " must be there before the first step: give the sizes (nn.Linear for nn.LazyLinear), or call the layer"
                " once on an example in your function",
            )
        if tensor.is_meta:
            raise UserError(
                "MetaLayer",
                f"spec.model.entrypoint: layer {index}: {name} is on torch's meta device and has no values; make the"
                ' layer on a real one, or fill it in your function: layer.to_empty(device="cpu"), then initialise it',
            )


def _is_sparse(module: nn.Module) -> bool:
    return isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse and module.weight.requires_grad


def _is_compiled(module: nn.Module) -> bool:
    called = getattr(module, "_compiled_call_impl", None)  # what module.compile() sets
    return called is not None or type(module).__name__ == "OptimizedModule"
