"""Makes a model of transformers without values, and finds its blocks."""

import copy
from typing import Any, NamedTuple

import torch
from torch import nn

from pipelinejob_trainer.base.errors import UserError


class Blocks(NamedTuple):
    """The list of blocks, and its path in the model."""

    path: str
    modules: nn.ModuleList


def skeleton(config: Any, *, trust_remote_code: bool = False, device: str = "meta") -> nn.Module:
    """Make the model of a `PretrainedConfig` in fp32; on the meta device nothing of it has values.

    Raises UserError where transformers has no causal language model for the config.
    """
    from transformers import AutoModelForCausalLM  # noqa: PLC0415  # slow, and for such models alone

    refuse_encoder_decoder(config)
    own = copy.deepcopy(config)  # transformers writes the type into it
    for each in (own, own.get_text_config()):
        each.use_cache = False  # what generation would need; in training it only takes memory
        if getattr(each, "output_router_logits", False):
            each.output_router_logits = False  # stages gather them by themselves
    try:
        with torch.device(device):
            model: nn.Module = AutoModelForCausalLM.from_config(
                own, dtype=torch.float32, trust_remote_code=trust_remote_code
            )
    except Exception as error:  # a family's own code raises what it likes for a config that it cannot use
        raise UserError(
            "BadHuggingFaceModel",
            f"spec.model.huggingFace: a {config.model_type} cannot be made: {' '.join(str(error).split())[:300]}",
        ) from error
    return model


def find_blocks(model: nn.Module, config: Any) -> Blocks:
    """Return the shortest path's list of as many modules as the config has layers.

    Raises UserError where there is none.
    """
    count = num_blocks(config)
    found = [
        Blocks(path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not found:
        raise refused(config, f"it has no list of {count} blocks, so that nothing says where to cut it")
    get_decoder: Any = getattr(model, "get_decoder", None)
    inside = set((get_decoder() if get_decoder else model).modules())  # it may have eyes and ears beside it
    return min(found, key=lambda each: (each.modules not in inside, each.path.count("."), len(each.path)))


def num_blocks(config: Any) -> int:
    """Return the number of blocks that a config says."""
    count = getattr(config.get_text_config(), "num_hidden_layers", None)
    if not isinstance(count, int) or count < 1:
        raise refused(config, f"its config has num_hidden_layers {count!r}, so that nothing says where to cut it")
    return count


def refuse_encoder_decoder(config: Any) -> None:
    """Raise UserError for a config whose decoder needs what an encoder gives."""
    if getattr(config, "is_encoder_decoder", False):
        raise refused(config, "it is an encoder-decoder, whose decoder's layers need what the encoder gives")


def refused(config: Any, reason: str) -> UserError:
    """Return the error for a model that cannot be cut."""
    return UserError(
        "NotCuttable",
        f"spec.model.huggingFace: a {config.model_type} cannot be cut into stages: {reason}; use a model of another"
        " type, or give its layers by spec.model.entrypoint",
    )
