"""Files of a checkpoint: their names, and tensors written so that what was written can be read."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pipelinejob.base.errors import PipelineJobError
from pipelinejob_trainer.base.disk import sync


class DamagedCheckpointError(PipelineJobError):
    """A checkpoint is torn, changed or incomplete; an older one may be intact."""


def num_stages(shards: Iterable[str]) -> int:
    """Count the stages of which some files are."""
    return len({name.removesuffix(".safetensors").split("-")[1] for name in shards})


def shard_name(stage: int, *, replica: int = 0, tensor: int = 0) -> str:
    """Return the name of a rank's file: of a stage mostly, of those that share or shard it, what they have alone."""
    others = "".join(f"-{kind}-{rank:05d}" for kind, rank in (("replica", replica), ("tensor", tensor)) if rank)
    return f"stage-{stage:05d}{others}.safetensors"


def write_shard(path: Path, tensors: Mapping[str, torch.Tensor], *, metadata: dict[str, str] | None = None) -> str:
    """Write tensors, read them back, and return the file's SHA-256.

    Raises OSError when it cannot be written, DamagedCheckpointError when it reads back
    differently.
    """
    try:
        save_file(dict(_apart(tensors)), path, metadata=metadata)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(f"{path}: {error}") from error
    sync(path)
    with telling_damage(path), safe_open(path, framework="pt") as written:
        for name, tensor in tensors.items():
            if not _same_bits(written.get_tensor(name), tensor.cpu()):
                raise DamagedCheckpointError(f"{path}: {name} reads back differently than it was written")
    return file_digest(path)


def file_digest(path: Path) -> str:
    """Return a file's SHA-256, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _apart(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Return tensors that share no memory, as a file stores them."""
    taken: set[int] = set()
    for name, tensor in tensors.items():
        whole = tensor.contiguous()
        memory = whole.untyped_storage().data_ptr()
        yield name, whole.clone() if memory in taken else whole
        taken.add(memory)


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    flat = one.contiguous().reshape(-1), other.contiguous().reshape(-1)
    return torch.equal(flat[0].view(torch.uint8), flat[1].view(torch.uint8))  # bits: a NaN equals itself


def parse_sums(text: str) -> dict[str, str]:
    """Read a file of sums; return each file's digest by its name."""
    pairs = (line.split("  ", 1) for line in text.splitlines() if "  " in line)
    return {name: digest for digest, name in pairs}


@contextmanager
def telling_damage(path: Path) -> Iterator[None]:
    """Raise DamagedCheckpointError if the file cannot be read within this context."""
    try:
        yield
    except (OSError, SafetensorError, ValidationError) as error:
        what = str(error).splitlines()[0]
        raise DamagedCheckpointError(f"{path}: cannot be read: {what}") from error
