"""Writes a checkpoint as a folder that transformers, or PEFT, loads: layer by layer, whole or not at all.

Tensors are converted one layer at a time, and written file by file, so that memory holds a file's
worth and a layer, whatever the model's size. What was written is read back before the folder gets
its name.
"""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from pipelinejob.contract.trained import Trained
from pipelinejob.spec.lora import Lora
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.checkpoint.shards import DamagedCheckpointError, write_shard
from pipelinejob_trainer.export.families import target_of
from pipelinejob_trainer.export.request import Request
from pipelinejob_trainer.export.source import Source, open_checkpoint
from pipelinejob_trainer.export.target import Target
from pipelinejob_trainer.export.tokenizer import add_tokenizer
from pipelinejob_trainer.export.writing import TensorFiles, new_folder, write_json
from pipelinejob_trainer.process.output import say

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def main(trained: Trained, request: Request) -> None:
    """Export a checkpoint.

    Raises UserError where there is none, it is another model's, or the folder cannot be written;
    then nothing is left behind.
    """
    with new_folder(request.to) as folder:
        checkpoint = open_checkpoint(request.checkpoint)
        source = Source(trained, checkpoint)
        if request.adapters_only:
            what = _write_adapters(source, folder, request)
        else:
            what = _write_model(source, folder, request)
    say(f"{request.to}: {what}, of step {checkpoint.step}")


def _write_model(source: Source, folder: Path, request: Request) -> str:
    target = target_of(source.trained)
    files = TensorFiles(folder, file_bytes=request.shard_bytes)
    for index in range(source.num_layers):
        tensors = source.layer(index)
        for name, tensor in (target.stored(tensors) if target else tensors).items():
            files.add(name, tensor.to(request.dtype) if tensor.is_floating_point() else tensor)
    source.check_base()
    if target is None:
        num_bytes = files.finish()
        write_json(folder / "pipelinejob.json", _described(source, request))
        kind = "layers of your own by their global names, which transformers cannot load"
    else:
        target.check_complete()
        num_bytes = files.finish()
        for file in target.files:
            shutil.copyfile(file, folder / file.name)
        write_json(folder / "config.json", {**target.config, "dtype": _DTYPES[request.dtype]})
        for remark in add_tokenizer(folder, source.trained.data, target.config):
            say(f"{request.to}: {remark}")
        kind = f"a {target.config['model_type']} that transformers loads"
    _check_readable(folder)
    return f"{kind}, {num_bytes / 2**20:,.1f} MiB"


def _described(source: Source, request: Request) -> Mapping[str, object]:
    trained = source.trained
    return {
        "entrypoint": trained.model.entrypoint,
        "arguments": dict(trained.model.arguments),
        "numLayers": source.num_layers,
        "dtype": _DTYPES[request.dtype],
        "names": "layers.<index in the list that the entrypoint returns>.<name within the layer>",
    }


def _write_adapters(source: Source, folder: Path, request: Request) -> str:
    lora = source.trained.training.lora
    if lora is None:
        raise UserError(
            "NoAdapters",
            "--adapters-only: the job trained the whole model, not adapters (spec.training.lora); leave it out",
        )
    target = target_of(source.trained)
    tensors, modules = {}, dict[str, None]()
    for name, tensor in source.adapters():
        module, side = name.rsplit(".", 1)
        full = _module_name(module, target)
        modules[full] = None
        tensors[f"base_model.model.{full}.{side}.weight"] = tensor.to(request.dtype)
    if not tensors:
        raise source.mismatch("it holds no adapters")
    source.check_base_alone()
    write_shard(folder / "adapter_model.safetensors", tensors, metadata={"format": "pt"})
    write_json(folder / "adapter_config.json", _adapter_config(lora, list(modules), target))
    for file in target.files if target else ():
        if "token" in file.name or file.suffix in {".model", ".jinja"}:
            shutil.copyfile(file, folder / file.name)
    for remark in add_tokenizer(folder, source.trained.data, None) if target else ():
        say(f"{request.to}: {remark}")
    _check_readable(folder)
    return f"{len(modules)} adapters that PEFT loads"


def _module_name(module: str, target: Target | None) -> str:
    return target.full(f"{module}.weight").removesuffix(".weight") if target else module


def _adapter_config(lora: Lora, modules: list[str], target: Target | None) -> Mapping[str, object]:
    """Return what PEFT's `LoraConfig` says of the same."""
    alpha = int(lora.alpha) if math.floor(lora.alpha) == lora.alpha else lora.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if target else None,
        "base_model_name_or_path": target.base_path if target else None,
        "r": lora.rank,
        "lora_alpha": alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rank_stabilised,
        "target_modules": modules,
        "fan_in_fan_out": target is not None and _is_turned(target),
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": True,
    }


def _is_turned(target: Target) -> bool:
    """Return whether matrices stand on their side: all that have adapters do in GPT-2, none elsewhere."""
    return bool(target.config["model_type"] == "gpt2")


def _check_readable(folder: Path) -> None:
    """Open what was written once more, as a reader would."""
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            if not list(opened.keys()):
                raise DamagedCheckpointError(f"{file} reads back empty")
