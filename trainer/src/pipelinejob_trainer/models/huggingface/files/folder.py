"""The folder of a Hugging Face model, as a stage finds it: its config, held against what the manifest says of it.

Nothing of the folder is run unless `trustRemoteCode` allows it, and nothing is fetched from
elsewhere.
"""

import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pipelinejob.base.errors import SpecError
from pipelinejob.models.sizes import differences, sizes_of_config
from pipelinejob.spec.job import Model
from pipelinejob_trainer.base.errors import UserError

CONFIG = "config.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
FIELD = "spec.model.huggingFace"
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_SHOWN = 3  # fields, files or tensors in a sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """A folder whose config can be read, and says what the manifest does.

    `config` is transformers' own; `said` are the fields as they stand in config.json, or as
    transformers reads them of `gguf`, the file that holds the weights. `remarks` are for the
    user's eyes.
    """

    path: Path
    gguf: Path | None = None
    config: Any
    said: Mapping[str, Any]
    trust_remote_code: bool
    remarks: tuple[str, ...] = ()


def open_folder(model: Model) -> ModelFolder:
    """Read the config of a model's folder.

    Raises UserError if it is no model's, cannot be trained, or is not what the manifest says.
    """
    assert model.hugging_face is not None, "asked for such models only"
    trusts = model.hugging_face.trust_remote_code
    path, gguf = located(Path(model.hugging_face.path))
    if gguf is None:
        file, said = path / CONFIG, _read(path)
        _refuse_quantised(file, said)
        config, remarks = _config(path, said, trusts=trusts)
    else:
        file, (said, config), remarks = gguf, config_of_gguf(gguf), ()
    _check_heads(file, config)
    _hold_against(model, file, said, config)
    return ModelFolder(path=path, gguf=gguf, config=config, said=said, trust_remote_code=trusts, remarks=remarks)


def located(path: Path) -> tuple[Path, Path | None]:
    """Return a model's folder, and the GGUF file in it that its weights are in, if they are.

    That is so where the path names it, or where the folder has no other weights. Raises UserError
    for several.
    """
    if path.suffix == ".gguf" and path.is_file():
        return path.parent, _one_part(path)
    found = sorted(path.glob("*.gguf")) if path.is_dir() else []
    if not found or any(path.glob("*.safetensors*")) or any((path / name).exists() for name in PICKLED):
        return path, None
    if len(found) > 1 and not _PART.search(found[0].name):
        raise bad(f"{path} holds {few(each.name for each in found)}; name one of these files instead of the folder")
    return path, _one_part(found[0])


def _one_part(gguf: Path) -> Path:
    if _PART.search(gguf.name):
        raise bad(f"{gguf} is one of several parts of a model; join them: llama-gguf-split --merge {gguf} NEW.gguf")
    return gguf


@cache
def config_of_gguf(gguf: Path) -> tuple[Mapping[str, Any], Any]:
    """Return the fields of a GGUF file's config, and the config, as transformers makes them of its metadata.

    Raises UserError where the file cannot be read, or only in another way than by tensors.
    """
    refuse_without_library(gguf)
    from transformers import PretrainedConfig  # noqa: PLC0415  # slow, and for such models alone
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS, read_gguf_metadata  # noqa: PLC0415  # as above
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: PLC0415  # as above

    with _refusals(gguf):
        architecture = read_gguf_metadata(str(gguf))[0]["general.architecture"]
    if architecture in GGUF_CONFIG_ARCHS:
        raise bad(
            f"{gguf} is of the architecture {architecture}, which stages cannot read part of; convert it once: "
            f"{command(gguf.parent, gguf=gguf.name)}"
        )
    with _refusals(gguf):
        said, _ = PretrainedConfig.get_config_dict(str(gguf.parent), gguf_file=gguf.name, local_files_only=True)
        return said, CONFIG_MAPPING[said["model_type"]].from_dict(dict(said))


def refuse_without_library(gguf: Path) -> None:
    """Raise UserError where the package is missing that reads GGUF files."""
    if importlib.util.find_spec("gguf") is None:
        raise bad(f"{gguf} is read by the package gguf, which is not installed; pip install 'pipelinejob[gguf]'")


def with_sizes(model: Model) -> Model:
    """Return a model with the sizes of its folder, where the manifest has none and they can be counted."""
    if model.hugging_face is None or model.config is not None:
        return model
    path, gguf = located(Path(model.hugging_face.path))
    try:
        said = _read(path) if gguf is None else config_of_gguf(gguf)[0]
        return model.model_copy(update={"config": sizes_of_config(said)})
    except SpecError:
        return model


def bad(problem: str) -> UserError:
    """Return the error for a folder, of which `problem` says value, rule and way out."""
    return UserError("BadHuggingFaceModel", f"{FIELD}.path: {problem}")


def few(names: Any) -> str:
    """List some names, and how many more there are."""
    listed = [str(name) for name in names]
    more = len(listed) - _SHOWN
    return ", ".join(listed[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def command(folder: Path, *, gguf: str | None = None) -> str:
    """Return a command that writes a folder anew as transformers does, a GGUF file's values as plain numbers."""
    file = "" if gguf is None else f", gguf_file='{gguf}'"
    plain = "" if gguf is None else ", quantization_config=GgufConfig(dequantize=True)"
    return (
        f"python -c \"from transformers import *; f, to = '{folder}', 'NEW-FOLDER'; AutoModelForCausalLM"
        f".from_pretrained(f{file}{plain}, dtype='auto').save_pretrained(to); "
        f'AutoTokenizer.from_pretrained(f{file}).save_pretrained(to)"'
    )


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_dir():
        what = "is a file; name its folder" if path.exists() else "is not there"
        raise bad(
            f"{path} {what}; every stage needs the model's folder at this path: mount its volume (spec.template), or "
            "put it into the image"
        )
    file = path / CONFIG
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise bad(_without_config(path)) from error
    except OSError as error:
        raise bad(f"{file} cannot be read: {error.strerror}; let the stage's user read it") from error
    except ValueError as error:
        raise bad(f"{file} is no JSON ({error}); download it again") from error
    if not isinstance(said, dict):
        raise bad(f"{file} is no mapping of fields to values; download it again")
    return said


def _without_config(path: Path) -> str:
    names = sorted(each.name for each in path.iterdir())
    if "adapter_config.json" in names:
        return f"{path} holds no {CONFIG}, but {adapter_alone(path)}"
    held = f"only {few(names)}" if names else "nothing at all"
    return f"{path} holds no {CONFIG}, {held}; name a folder as save_pretrained or a download writes it"


def adapter_alone(path: Path) -> str:
    """Say what to do about a folder that holds an adapter."""
    try:
        base = json.loads((path / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None
    of = f" of {base}" if base else ""
    return (
        f"an adapter{of} (adapter_config.json); name the folder of the whole model, into which peft's merge_and_unload "
        "and save_pretrained can put the adapter"
    )


def _refuse_quantised(file: Path, said: Mapping[str, Any]) -> None:
    parts = (said, said.get("text_config"))
    for part in parts:
        found = part.get("quantization_config") if isinstance(part, Mapping) else None
        if found:
            how = found.get("quant_method", "unnamed") if isinstance(found, Mapping) else found
            raise bad(
                f"{file} has a quantization_config ({how}): its weights are codes, which have no gradients; "
                "use the model's unquantised weights, or write them once with dtype bf16 (transformers: "
                "model.dequantize(), then save_pretrained)"
            )


def _config(path: Path, said: Mapping[str, Any], *, trusts: bool) -> tuple[Any, tuple[str, ...]]:
    from transformers import AutoConfig  # noqa: PLC0415  # slow, and for such models alone
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: PLC0415  # slow, and for such models alone

    kind = said.get("model_type")
    brings_code = bool(said.get("auto_map"))
    if kind not in CONFIG_MAPPING and not (brings_code and trusts):
        raise bad(_unknown(path, kind, brings_code=brings_code))
    with _refusals(path / CONFIG):
        config = AutoConfig.from_pretrained(str(path), trust_remote_code=trusts, local_files_only=True)
    if not brings_code or trusts:
        return config, ()
    remark = (
        f"{path} brings code of its own (auto_map), which is not run; transformers knows a {kind} itself, so that is "
        "what is trained (spec.model.huggingFace.trustRemoteCode)"
    )
    return config, (remark,)


def _unknown(path: Path, kind: object, *, brings_code: bool) -> str:
    from transformers import __version__  # noqa: PLC0415  # slow, and for such models alone

    if brings_code:
        return (
            f"{path} needs code that it brings along (auto_map) for its model type {kind!r}; read that code, and set "
            f"{FIELD}.trustRemoteCode to true if stages may run it"
        )
    if not kind:
        return f"{path / CONFIG} has no model_type; name a folder as save_pretrained writes it"
    return (
        f"{path / CONFIG} has the model type {kind!r}, which transformers {__version__} does not know; use another "
        "model, or an image with a version that knows it"
    )


@contextmanager
def _refusals(file: Path) -> Iterator[None]:
    """Turn what a config class, the folder's own too, finds wrong into one sentence."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        reason = " ".join(str(error.__cause__ or error).split())[:400]
        raise bad(f"{file} is refused by transformers: {reason}; correct it, or download it again") from error


def _check_heads(file: Path, config: Any) -> None:
    """Refuse groups of queries that keys cannot be shared by, of which models speak only when they run."""
    text = config.get_text_config()
    if getattr(text, "is_heterogeneous", False):  # each block has numbers of its own
        return
    heads, groups = (getattr(text, name, None) for name in ("num_attention_heads", "num_key_value_heads"))
    if isinstance(heads, int) and isinstance(groups, int) and groups > 0 and heads % groups:
        raise bad(
            f"{file}: num_attention_heads {heads} cannot be divided among num_key_value_heads {groups}; "
            "correct it, or download it again"
        )


def _hold_against(model: Model, file: Path, said: Mapping[str, Any], config: Any) -> None:
    """Refuse a folder that is not the one that the plan was made for."""
    way_out = (
        "the plan was made for the manifest's; write it anew with `pipelinejob validate --fill` for this folder, or "
        f"name the folder that it was written from in {FIELD}.path"
    )
    blocks = getattr(config.get_text_config(), "num_hidden_layers", None)
    if isinstance(blocks, int) and model.num_layers != blocks + 2:
        raise UserError(
            "OtherModel",
            f"spec.model.numLayers: is {model.num_layers}, but {file} has num_hidden_layers {blocks}, which "
            f"makes {blocks + 2} with embedding and head; {way_out}",
        )
    try:
        found = differences(model.config, said) if model.config is not None else ()
    except SpecError as error:
        raise bad(f"{file}: {error.path.rpartition('.')[2]} {error.problem}; {way_out}") from error
    if found:
        first, *others = found
        more = f" (and {few(each.field for each in others)})" if others else ""
        raise UserError(
            "OtherModel",
            f"spec.model.config.{first.field}: is {_shown(first.said)}, but {file} has "
            f"{_shown(first.found)}{more}; {way_out}",
        )


def _shown(value: Any) -> str:
    return "not given" if value is None else f"{json.dumps(value):.60}"
