"""Whole models in one process, changed as training changes them, and saved as stages save them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pipelinejob.contract.trained import Trained
from pipelinejob_trainer.checkpoint import snapshot
from pipelinejob_trainer.checkpoint.folder import CheckpointFolder, Fence, Manifest
from pipelinejob_trainer.checkpoint.shards import shard_name, write_shard
from pipelinejob_trainer.models.part import Part, build_part, num_layers


def whole(job: Trained) -> Part:
    stretches = [(0, num_layers(job.model))]
    part = build_part(job.model, job.data, stretches=stretches, seed=job.training.seed, lora=job.training.lora)
    part.settle(torch.device("cpu"))
    for layer in part.layers:
        layer.module.eval()
    return part


def moved(part: Part) -> Part:
    """Change what is trained a little, as training does."""
    dice = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in part.kept_parameters().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=dice))
    return part


def saved(root: Path, part: Part, *cuts: int, step: int = 4) -> CheckpointFolder:
    """Write a checkpoint as stages that begin at these layers do."""
    folder = CheckpointFolder(root)
    folder.prepare(who="test")
    folder.take_over(Fence(attempt=1, run="ab", step=0))
    gathered = folder.begin(step, run="ab")
    taken = snapshot.take(part, None, step=step).tensors
    digests = {}
    for stage, (first, end) in enumerate(zip((0, *cuts), (*cuts, 1000), strict=True)):
        own = {name: each for name, each in taken.items() if first <= int(name.split(".")[1]) < end}
        digests[shard_name(stage)] = write_shard(gathered / shard_name(stage), own)
    manifest = Manifest(step=step, attempt=1, run="ab", shards=tuple(digests), base=part.base_digest())
    folder.publish(gathered, manifest, digests)
    return folder


def in_pieces(to: Path, kind: str, sizes: Mapping[str, Any]) -> None:
    """Write a model's random weights as a download has them, a block at a time, so that nobody holds it whole."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.core_model_loading import revert_weight_conversion

    config = AutoConfig.for_model(kind, **sizes)
    config.save_pretrained(to)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    files: dict[str, str] = {}
    shapes = {name: each.shape for name, each in model.state_dict().items()}
    for block in range(-1, config.num_hidden_layers):
        part = ".layers." if block < 0 else f".layers.{block}."
        own = [name for name in shapes if (part in name) == (block >= 0)]
        values = {name: torch.randn(shapes[name], dtype=torch.bfloat16) for name in own}
        tensors = {name: each.contiguous() for name, each in revert_weight_conversion(model, values).items()}
        name = f"model-{block + 2:05}-of-{config.num_hidden_layers + 1:05}.safetensors"
        save_file(tensors, to / name)
        files |= dict.fromkeys(tensors, name)
    (to / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
