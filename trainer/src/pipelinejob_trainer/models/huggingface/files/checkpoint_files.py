"""Which file of a folder holds which tensor, without opening more of them than are asked for."""

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

from pipelinejob_trainer.models.huggingface.files.folder import PICKLED, adapter_alone, bad, command, few
from pipelinejob_trainer.models.huggingface.files.safetensors_file import Stored, tensors_of

_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class CheckpointFiles:
    """The tensors of a folder, by the names that they have there."""

    def __init__(self, folder: Path, *, named: str | None = None) -> None:
        """Find the folder's safetensors; `named` is the file that its config names, if it does.

        Raises UserError if there are none, or not all that the index names.
        """
        self._folder = folder
        self._headers: dict[Path, Mapping[str, Stored]] = {}
        _refuse_adapter(folder)
        candidates = (named,) if named else (_WHOLE, _INDEX)
        chosen = next((folder / name for name in candidates if (folder / name).is_file()), None)
        if chosen is None:
            raise bad(_nothing_to_read(folder))
        self._index = chosen if chosen.name.endswith(".json") else None
        self._files = _files_of(chosen, folder) if self._index else dict.fromkeys(self._header(chosen), chosen)

    @property
    def names(self) -> Iterable[str]:
        """The names of all tensors."""
        return self._files.keys()

    @cached_property
    def described(self) -> str:
        """What says which tensors there are."""
        return str(self._index or next(iter(self._files.values()), self._folder))

    def stored(self, name: str) -> Stored:
        """Return where a tensor is.

        Raises UserError if the file that should hold it does not, or is no whole one.
        """
        file = self._files[name]
        header = self._header(file)
        if name not in header:
            raise bad(f"{file} has no tensor {name}, which {self._index} says it has; download both again")
        return header[name]

    def _header(self, file: Path) -> Mapping[str, Stored]:
        if file not in self._headers:
            self._headers[file] = tensors_of(file)
        return self._headers[file]


def _files_of(index: Path, folder: Path) -> dict[str, Path]:
    try:
        by_name = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {str(name): folder / file for name, file in by_name.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise bad(f"{index} is no index of safetensors (weight_map); download it again") from error
    absent = sorted({file.name for file in files.values() if not file.is_file()})
    if absent:
        raise bad(f"{index} names {few(absent)}, which the folder does not hold; download the rest of it")
    return files


def _refuse_adapter(folder: Path) -> None:
    if (folder / "adapter_config.json").exists():
        raise bad(f"{folder} holds {adapter_alone(folder)}")


def _nothing_to_read(folder: Path) -> str:
    names = sorted(each.name for each in folder.iterdir())
    parts = [name for name in names if name.endswith(".safetensors")]
    if any(name in PICKLED for name in names):
        return (
            f"{folder} holds its weights as pytorch_model.bin, which can only be read whole; write them once as "
            f"safetensors: {command(folder)}"
        )
    if parts:
        return f"{folder} holds {few(parts)}, but neither {_WHOLE} nor {_INDEX}; download the rest of it"
    return (
        f"{folder} holds no weights ({_WHOLE} or {_INDEX}); download them, or set spec.model.huggingFace.weights to "
        "Random to begin with random ones"
    )
