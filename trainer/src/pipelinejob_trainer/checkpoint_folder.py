"""Checkpoints on disk, as one process sees them; how a gang writes one is in `checkpoint.py`.

    checkpoints/
        fence.json                who may publish here, and from which step it went on
        step-00000100/
            stage-00000.safetensors   one file a stage, tensors by global name, so any other split can read them; each
                                      name stands in one file, whichever ranks hold it
            manifest.json
            SHA256SUMS                `sha256sum -c SHA256SUMS` checks a checkpoint by hand

A folder appears under its name by one rename, when all of it is on disk and has been read back. No file is a pickle, so
reading a checkpoint runs nobody's code.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pipelinejob.errors import PipelineJobError
from pipelinejob.values import Value
from pipelinejob_trainer.errors import UserError

_STEP = re.compile(r"step-(\d{8,})")
_MANIFEST = "manifest.json"
_SUMS = "SHA256SUMS"
_FENCE = "fence.json"


class DamagedCheckpointError(PipelineJobError):
    """A checkpoint is torn, changed or incomplete; the one before it may not be."""


class Manifest(Value):
    """What a checkpoint is. `run` is the gang that wrote it; two attempts are two runs."""

    version: Literal[1] = 1
    step: int
    attempt: int
    run: str
    loss: float | None = None
    shards: tuple[str, ...]


class Fence(Value):
    """The gang that may publish now, and the step that it went on from (0: from the start)."""

    attempt: int
    run: str
    step: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint whose manifest has been verified; shards are verified as they are read."""

    path: Path
    manifest: Manifest
    digests: Mapping[str, str]

    @property
    def step(self) -> int:
        """The step after which it was taken."""
        return self.manifest.step

    def read(self, wanted: Mapping[str, torch.Size]) -> dict[str, torch.Tensor]:
        """Read the tensors of these names and shapes, from whichever shards hold them.

        Raises DamagedCheckpointError when a shard is not as it was written, UserError when it is of another model.
        """
        found: dict[str, torch.Tensor] = {}
        for shard in self.manifest.shards:
            with _damage(self.path / shard), safe_open(self.path / shard, framework="pt") as opened:
                names = wanted.keys() & set(opened.keys())
                if names:
                    self._verify(shard)
                    found |= {name: opened.get_tensor(name) for name in names}
        for name, shape in wanted.items():
            self._check(name, shape, found.get(name))
        return found

    def _verify(self, shard: str) -> None:
        if file_digest(self.path / shard) != self.digests.get(shard):
            raise DamagedCheckpointError(f"{self.path / shard} is not as it was written: its SHA-256 differs")

    def _check(self, name: str, shape: torch.Size, tensor: torch.Tensor | None) -> None:
        if tensor is not None and tensor.shape == shape:
            return
        kind, _, parameter = name.partition("/")
        has = "none" if tensor is None else f"shape {tuple(tensor.shape)}"
        raise UserError(
            "CheckpointMismatch",
            f"checkpoint {self.path}: the model's {kind} {parameter} has shape {tuple(shape)}, the checkpoint has"
            f" {has}: it is of another model; use another spec.checkpoint.path, or the model it was made with",
        )


class CheckpointFolder:
    """All checkpoints of a job."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self, *, who: str) -> None:
        """Make the folder and prove that it can be written, before a step is trained in vain.

        Raises UserError if it cannot.
        """
        probe = self.root / f".probe-{who}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            write_durably(probe, b"checkpoints can be written here\n")
            probe.unlink()
        except OSError as error:
            raise UserError(
                "CheckpointUnwritable",
                f"checkpoint folder {self.root}: {error.strerror or error}; make it a writable volume with free"
                " space, or change spec.checkpoint.path or spec.checkpoint.volume",
            ) from error

    def steps(self) -> list[int]:
        """List the steps that have a folder, newest first."""
        if not self.root.is_dir():
            return []
        found = (_STEP.fullmatch(entry.name) for entry in self.root.iterdir())
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def open(self, step: int) -> Checkpoint:
        """Open a step's checkpoint and verify its manifest.

        Raises DamagedCheckpointError.
        """
        path = self.path(step)
        with _damage(path):
            digests = _parse_sums((path / _SUMS).read_text(encoding="utf-8", errors="replace"))
            content = (path / _MANIFEST).read_bytes()
            manifest = Manifest.model_validate_json(content)
        if hashlib.sha256(content).hexdigest() != digests.get(_MANIFEST) or manifest.step != step:
            raise DamagedCheckpointError(f"{path / _MANIFEST} is not as it was written: its SHA-256 differs")
        return Checkpoint(path, manifest, digests)

    def candidates(self) -> Iterator[Checkpoint | DamagedCheckpointError]:
        """Give what a run may go on from, newest first, damaged ones as their error.

        A checkpoint that an older run published after a newer one had begun is passed over: the newer one's history
        does not lead through it.
        """
        fence = self.fence()
        for step in self.steps():
            try:
                checkpoint = self.open(step)
            except DamagedCheckpointError as error:
                yield error
                continue
            if fence is None or checkpoint.manifest.run == fence.run or step <= fence.step:
                yield checkpoint

    def fence(self) -> Fence | None:
        """Say who may publish, if anybody ever did."""
        try:
            return Fence.model_validate_json((self.root / _FENCE).read_bytes())
        except (FileNotFoundError, ValidationError):  # a damaged fence keeps nobody out: the next run writes its own
            return None

    def take_over(self, fence: Fence) -> None:
        """Fence every earlier run off."""
        _write_atomically(self.root / _FENCE, fence.model_dump_json(by_alias=True).encode())

    def begin(self, step: int, *, run: str) -> Path:
        """Make the folder that a checkpoint is gathered in; several ranks may."""
        path = self.root / f".{self.path(step).name}.{run}"
        path.mkdir(exist_ok=True)
        return path

    def publish(self, gathered: Path, manifest: Manifest, digests: Mapping[str, str]) -> Path:
        """Give a gathered checkpoint its name, by one rename; one of the same step of an earlier run makes way."""
        content = manifest.model_dump_json(by_alias=True).encode()
        write_durably(gathered / _MANIFEST, content)
        sums = dict(digests) | {_MANIFEST: hashlib.sha256(content).hexdigest()}
        write_durably(gathered / _SUMS, "".join(f"{each}  {name}\n" for name, each in sums.items()).encode())
        _sync(gathered)
        target = self.path(manifest.step)
        if target.exists():
            target.rename(gathered.with_name(f"{gathered.name}.replaced"))
        gathered.rename(target)
        _sync(self.root)
        return target

    def prune(self, *, newest: int, keep: int, run: str) -> None:
        """Delete what the verified checkpoint `newest` makes superfluous: all but the last `keep` of its history."""
        older = [step for step in self.steps() if step < newest]
        abandoned = [step for step in self.steps() if step > newest and not self._is_by(step, run)]
        for step in older[keep - 1 :] + abandoned:
            # Renamed first, so that nobody meets a checkpoint of which half is deleted.
            doomed = self.root / f".{self.path(step).name}.pruned"
            shutil.rmtree(doomed, ignore_errors=True)
            self.path(step).rename(doomed)
        self.sweep()

    def sweep(self) -> None:
        """Delete what interrupted runs left half-written."""
        for leftover in self.root.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def path(self, step: int) -> Path:
        """Name a step's folder."""
        return self.root / f"step-{step:08d}"

    def _is_by(self, step: int, run: str) -> bool:
        try:
            return self.open(step).manifest.run == run
        except DamagedCheckpointError:
            return False


def shard_name(stage: int) -> str:
    """Name a stage's file."""
    return f"stage-{stage:05d}.safetensors"


def write_shard(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Write tensors, read them back, and give the file's SHA-256.

    Raises OSError when it cannot be written, DamagedCheckpointError when it reads back differently.
    """
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(f"{path}: {error}") from error
    _sync(path)
    with _damage(path), safe_open(path, framework="pt") as written:
        for name, tensor in tensors.items():
            if not _same_bits(written.get_tensor(name), tensor.cpu()):
                raise DamagedCheckpointError(f"{path}: {name} reads back differently than it was written")
    return file_digest(path)


def file_digest(path: Path) -> str:
    """Give a file's SHA-256, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_durably(path: Path, content: bytes) -> None:
    """Write a file that outlives a power cut."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _write_atomically(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.new")
    write_durably(beside, content)
    beside.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    flat = one.contiguous().reshape(-1), other.contiguous().reshape(-1)
    return torch.equal(flat[0].view(torch.uint8), flat[1].view(torch.uint8))  # bits: a NaN equals itself


def _parse_sums(text: str) -> dict[str, str]:
    pairs = (line.split("  ", 1) for line in text.splitlines() if "  " in line)
    return {name: digest for digest, name in pairs}


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError, ValidationError) as error:
        what = str(error).splitlines()[0]
        raise DamagedCheckpointError(f"{path}: cannot be read: {what}") from error
