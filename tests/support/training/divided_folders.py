"""Hugging Face folders that several ranks divide: small ones, what of them a rank has, and what it reads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch

from pipelinejob.spec.job import Data, Model
from pipelinejob_trainer.communication.expert_group import UNDIVIDED, ExpertGroup
from pipelinejob_trainer.communication.tensor_group import ALONE, TensorGroup
from pipelinejob_trainer.models.huggingface.files import safetensors_file
from pipelinejob_trainer.models.huggingface.layers import Narrow
from pipelinejob_trainer.models.part import Part, build_part

LAYERS, LENGTH = 8, 16
DATA = Data(corpus="python-stdlib", sequence_length=LENGTH)
LATENT = {
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "q_lora_rank": None,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
# What a family's config says besides, for its layers to be as small as the others'.
MORE: dict[str, dict[str, Any]] = {
    "gemma2": {"head_dim": 8},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "olmoe": {"num_experts": 4},
    "granite": {"embedding_multiplier": 2.0, "logits_scaling": 3.0, "residual_multiplier": 0.5},
    "cohere": {"logit_scale": 0.25},
    "deepseek_v3": {**LATENT, "first_k_dense_replace": 1},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 8},
}


def part_of(
    model: Model, tensor: TensorGroup = ALONE, expert: ExpertGroup = UNDIVIDED, *, narrow: Narrow | None = None
) -> Part:
    """Return what a rank has of a model's layers."""
    return build_part(
        model, DATA, stretches=[(0, LAYERS)], seed=1, tensor_group=tensor, expert_group=expert, narrow=narrow
    )


def assert_make_up(whole: Part, parts: Iterable[Part]) -> None:
    """See that the ranks' portions, put together, are the whole model's parameters, bit for bit."""
    expected = whole.named_parameters()
    seen = {name: torch.full_like(each, torch.nan) for name, each in expected.items()}
    for part in parts:
        for name, each in part.named_parameters().items():
            if name in part.portions:
                assert each.numel() < seen[name].numel()
                part.portions[name].put(each.detach(), seen[name])
            else:
                seen[name] = each.detach()
    for name, each in expected.items():
        assert torch.equal(seen[name], each), name


class CountedReads:
    """How many bytes of safetensors files are read from now on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_bytes = 0
        fill = safetensors_file.Stored._fill

        def counted(stored: Any, descriptor: int, tensor: torch.Tensor, at: int) -> None:
            self.num_bytes += tensor.nbytes
            fill(stored, descriptor, tensor, at)

        monkeypatch.setattr(safetensors_file.Stored, "_fill", counted)


def bytes_of(part: Part) -> int:
    return sum(each.nbytes for each in part.named_parameters().values())
