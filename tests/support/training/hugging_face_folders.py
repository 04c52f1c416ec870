"""Hugging Face folders as a stage reads them, and room for what it reads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipelinejob.spec.job import Model
from pipelinejob.spec.workload import HuggingFaceModel
from pipelinejob_trainer.models.huggingface.files.folder import open_folder
from pipelinejob_trainer.models.huggingface.files.weights import FolderWeights

BLOCKS = 2
LLAMA: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}


def weights_of(folder: Path, *, blocks: int = BLOCKS) -> tuple[FolderWeights, nn.Module]:
    from transformers import AutoModelForCausalLM

    read = open_folder(Model(hugging_face=HuggingFaceModel(path=str(folder)), num_layers=blocks + 2))
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)
    return FolderWeights(read, model, portions={}), model


def room_for(model: nn.Module, *, wanted: Callable[[str], bool] = lambda _: True) -> dict[str, torch.Tensor]:
    """Return memory for a model's tensors that holds none of their values."""
    return {
        name: torch.full(each.shape, -77 if not each.is_floating_point() else torch.nan, dtype=each.dtype)
        for name, each in model.state_dict().items()
        if wanted(name)
    }
