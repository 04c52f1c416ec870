"""A folder that is there whole or not at all, and tensors in files of a limited size."""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch

from pipelinejob_trainer.base.disk import sync, write_durably
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.checkpoint.shards import DamagedCheckpointError, write_shard
from pipelinejob_trainer.process.output import warn

_METADATA = {"format": "pt"}  # transformers reads no file without it
_STEM = "model"


@contextmanager
def new_folder(to: Path) -> Iterator[Path]:
    """Give a folder to fill beside `to`; it gets that name when all went well, and is deleted when not.

    What a process that was killed left there of an earlier one is deleted first. Raises UserError
    where `to` exists, or cannot be written.
    """
    if to.exists() or to.is_symlink():
        raise UserError("TargetExists", f"--to {to}: is there already, and nothing is overwritten; choose another")
    with ExitStack() as held:
        try:
            to.parent.mkdir(parents=True, exist_ok=True)
            gathered = _begun(to, held)
        except OSError as error:
            raise _unwritable(to, error) from error
        yield from _filled(gathered, to)


def _begun(to: Path, held: ExitStack) -> Path:
    """Make a folder beside `to` that is locked while this process lives; delete those whose process does not."""
    prefix = f".{to.name}.export-"
    with _locked(to.parent):  # so that none is seen before it is locked
        for left in to.parent.iterdir():
            if left.name.startswith(prefix) and left.is_dir() and not _is_in_use(left):
                shutil.rmtree(left, ignore_errors=True)
                warn(f"{left} was left by an export that was killed, and is deleted")
        gathered = Path(tempfile.mkdtemp(prefix=prefix, dir=to.parent))
        held.enter_context(_locked(gathered))
    return gathered


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock inside, where its file system has locks. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_in_use(folder: Path) -> bool:
    """Return whether a process has a folder's lock, or may have."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _filled(gathered: Path, to: Path) -> Iterator[Path]:
    try:
        yield gathered
        gathered.chmod(0o755)  # mkdtemp's are its owner's alone
        sync(gathered)
        gathered.rename(to)
        sync(to.parent)
    except (OSError, DamagedCheckpointError) as error:
        raise _unwritable(to, error) from error
    finally:
        shutil.rmtree(gathered, ignore_errors=True)


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write a mapping as JSON, and wait until it is on disk."""
    write_durably(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


class TensorFiles:
    """Tensors, written file by file, each read back and compared; memory holds one file's at a time."""

    def __init__(self, folder: Path, *, file_bytes: int) -> None:
        self._folder = folder
        self._file_bytes = file_bytes
        self._waiting: dict[str, torch.Tensor] = {}
        self._files: list[list[str]] = []
        self._num_bytes = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Add a tensor. Raises OSError, or DamagedCheckpointError where a file reads back differently."""
        assert name not in self._waiting, f"{name} is written once"
        if self._waiting and sum(each.nbytes for each in self._waiting.values()) + tensor.nbytes > self._file_bytes:
            self._write()
        self._waiting[name] = tensor
        self._num_bytes += tensor.nbytes

    def finish(self) -> int:
        """Write the rest, and an index if there are several files; return the bytes of all tensors."""
        self._write()
        count = len(self._files)
        if count == 1:
            self._part(1).rename(self._folder / f"{_STEM}.safetensors")
            return self._num_bytes
        by_name: dict[str, str] = {}
        for number, names in enumerate(self._files, start=1):
            file = f"{_STEM}-{number:05d}-of-{count:05d}.safetensors"
            self._part(number).rename(self._folder / file)
            by_name |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self._num_bytes}, "weight_map": dict(sorted(by_name.items()))}
        write_json(self._folder / f"{_STEM}.safetensors.index.json", index)
        return self._num_bytes

    def _write(self) -> None:
        self._files.append(list(self._waiting))
        write_shard(self._part(len(self._files)), self._waiting, metadata=_METADATA)
        self._waiting = {}

    def _part(self, number: int) -> Path:
        return self._folder / f"{_STEM}-{number:05d}.safetensors"


def _unwritable(to: Path, error: Exception) -> UserError:
    what = (getattr(error, "strerror", None) or str(error)).splitlines()[0]
    return UserError("CannotExport", f"--to {to}: cannot be written: {what}; free space there, or choose another")
