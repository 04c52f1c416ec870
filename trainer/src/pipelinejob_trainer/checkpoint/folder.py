"""Checkpoints on disk, as one process sees them; how a gang writes one is in `checkpoints.py`.

    checkpoints/
        fence.json                which run may publish here, and from which step it resumed
        step-00000100/
            stage-00000.safetensors   one file a stage, tensors by global name, so any other split can read them; each
                                      name is in one file, whichever ranks hold it
            stage-00000-tensor-00001.safetensors   pieces of what several ranks divide: `pieces.py`
            manifest.json
            SHA256SUMS                `sha256sum -c SHA256SUMS` checks a checkpoint by hand

A folder gets its name by one rename, when all of it is on disk and has been read back. No file is
a pickle, so reading a checkpoint runs no code from it.
"""

import hashlib
import math
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError

from pipelinejob.base.values import Value
from pipelinejob_trainer.base.disk import sync, write_atomically, write_durably
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.checkpoint.pieces import Contents
from pipelinejob_trainer.checkpoint.shards import (
    DamagedCheckpointError,
    file_digest,
    parse_sums,
    telling_damage,
)
from pipelinejob_trainer.data.position import TextPosition

STEP = re.compile(r"step-(\d{8,})")
_MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
_FENCE = "fence.json"


# What a process keeps of a whole tensor, by its name.
PartOf = Callable[[str, torch.Tensor], torch.Tensor]


class Manifest(Value):
    """What a checkpoint contains. `run` is the gang that wrote it; each attempt is its own run.

    `rate` is the learning rate of its step, not there in older ones.

    `place`, the position in the text, is missing in checkpoints of versions that did not count
    samples. `base` identifies the weights that low-rank adapters belong to, and are not in here.
    """

    version: Literal[1] = 1
    step: int
    attempt: int
    run: str
    loss: float | None = None
    rate: float | None = None
    place: TextPosition | None = None
    base: str | None = None
    shards: tuple[str, ...]


class Fence(Value):
    """The gang that may publish now, and the step that it resumed from (0: from the start)."""

    attempt: int
    run: str
    step: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint whose manifest has been verified.

    Shards are verified as they are read.
    """

    path: Path
    manifest: Manifest
    digests: Mapping[str, str]

    @property
    def step(self) -> int:
        """The step after which it was taken."""
        return self.manifest.step

    def check_base(self, base: str | None) -> None:
        """Check that it holds adapters of this base, or, if that is None, a whole model.

        Raises UserError.
        """
        has = self.manifest.base
        if has == base:
            return
        if has is None:
            what = "it holds a whole model, not the adapters of spec.training.lora"
        elif base is None:
            what = "it holds the adapters of a job with spec.training.lora, and no model"
        else:
            what = f"its adapters belong to a model whose weights have the digest {has[:12]}, these have {base[:12]}"
        raise UserError(
            "CheckpointMismatch",
            f"checkpoint {self.path}: {what}; use another spec.checkpoint.path, or the model and spec.training.lora"
            " that it was made with",
        )

    def read(
        self,
        wanted: Mapping[str, torch.Size],
        is_taken: Callable[[str], bool],
        part_of: PartOf = lambda _, whole: whole,
    ) -> dict[str, torch.Tensor]:
        """Read the wanted tensors from all shards, and others that `is_taken` accepts.

        Shapes are those of whole tensors; what is returned is `part_of` each by name. Raises
        DamagedCheckpointError if a shard was changed, UserError if the checkpoint is of
        another model.
        """
        found: dict[str, torch.Tensor] = {}
        with telling_damage(self.path):
            contents = self.contents()
            names = [name for name in contents.names if name in wanted or is_taken(name)]
            for file in contents.files(names):
                self._verify(file.name)
            for name in names:
                whole = contents.tensor(name)
                if name in wanted:
                    self._check(name, wanted[name], whole)
                found[name] = part_of(name, whole)
        for name in wanted.keys() - found.keys():
            self._check(name, wanted[name], None)
        return found

    def contents(self) -> Contents:
        """Return what its shards hold. Raises OSError and SafetensorError."""
        return Contents(self.path / shard for shard in self.manifest.shards)

    def check_files(self) -> None:
        """Check that no shard is missing, and read none. Raises DamagedCheckpointError."""
        for shard in self.manifest.shards:
            if not (self.path / shard).is_file():
                raise DamagedCheckpointError(f"{self.path / shard} is missing")

    def verify(self) -> None:
        """Verify all shards. Raises DamagedCheckpointError."""
        for shard in self.manifest.shards:
            with telling_damage(self.path / shard):
                self._verify(shard)

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
        """Make the folder and check that it can be written, before the first step is trained.

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
        found = (STEP.fullmatch(entry.name) for entry in self.root.iterdir())
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def open(self, step: int) -> Checkpoint:
        """Open a step's checkpoint and verify its manifest.

        Raises DamagedCheckpointError, and UserError for one that another version wrote.
        """
        path = self.path(step)
        with telling_damage(path):
            digests = parse_sums((path / SUMS).read_text(encoding="utf-8", errors="replace"))
            content = (path / _MANIFEST).read_bytes()
        if hashlib.sha256(content).hexdigest() != digests.get(_MANIFEST):
            raise DamagedCheckpointError(f"{path / _MANIFEST} is not as it was written: its SHA-256 differs")
        manifest = _parse_manifest(path / _MANIFEST, content)
        if manifest.step != step:
            raise DamagedCheckpointError(f"{path} is the checkpoint of step {manifest.step} under another name")
        return Checkpoint(path, manifest, digests)

    def candidates(self) -> Iterator[Checkpoint | DamagedCheckpointError]:
        """Return checkpoints to resume from, newest first, damaged ones as their error.

        A checkpoint that an older run published after a newer run had begun is skipped: it is not
        part of the newer run's history.
        """
        for step in self.steps():
            try:
                checkpoint = self.open(step)
            except DamagedCheckpointError as error:
                yield error
                continue
            if self.is_of_history(step, checkpoint.manifest.run):
                yield checkpoint

    def is_of_history(self, step: int, run: str) -> bool:
        """Tell whether a step that a run wrote belongs to what the newest run went on from, or has done."""
        fence = self.fence()
        return fence is None or run == fence.run or step <= fence.step

    def fence(self) -> Fence | None:
        """Return which run may publish; None if there was none yet."""
        try:
            return Fence.model_validate_json((self.root / _FENCE).read_bytes())
        except (FileNotFoundError, ValidationError):  # a damaged fence excludes no run: the next one writes its own
            return None

    def take_over(self, fence: Fence) -> None:
        """Fence off every earlier run."""
        write_atomically(self.root / _FENCE, fence.model_dump_json(by_alias=True).encode())

    def begin(self, step: int, *, run: str) -> Path:
        """Make the folder in which a checkpoint is assembled; several ranks may call it."""
        path = self._assembled(step, run)
        path.mkdir(exist_ok=True)
        return path

    def abandon(self, step: int, *, run: str) -> None:
        """Delete what was assembled of a checkpoint that cannot be completed."""
        shutil.rmtree(self._assembled(step, run), ignore_errors=True)

    def publish(self, gathered: Path, manifest: Manifest, digests: Mapping[str, str]) -> Path:
        """Publish an assembled checkpoint by one rename, replacing an earlier run's."""
        content = manifest.model_dump_json(by_alias=True, exclude_none=True).encode()
        write_durably(gathered / _MANIFEST, content)
        sums = dict(digests) | {_MANIFEST: hashlib.sha256(content).hexdigest()}
        write_durably(gathered / SUMS, "".join(f"{each}  {name}\n" for name, each in sums.items()).encode())
        sync(gathered)
        target = self.path(manifest.step)
        if target.exists():
            target.rename(gathered.with_name(f"{gathered.name}.replaced"))
        gathered.rename(target)
        sync(self.root)
        return target

    def prune(
        self, *, newest: int, keep: int, run: str, keep_s: float = 0.0, spared: AbstractSet[int] = frozenset()
    ) -> None:
        """Delete all checkpoints but the last `keep` up to the verified checkpoint `newest`.

        Older ones stay until they are `keep_s` old, those of steps that are `spared` in any case.
        """
        older = [step for step in self.steps() if step < newest]
        abandoned = [step for step in self.steps() if step > newest and not self._is_by(step, run)]
        outdated = [step for step in older[keep - 1 :] if self.age_s(step) >= keep_s]
        for step in {*outdated, *abandoned} - spared:
            with suppress(FileNotFoundError):  # somebody else deleted it meanwhile
                self._set_aside(step)
        self.sweep()

    def delete(self, step: int) -> None:
        """Delete one checkpoint, unless it is gone already. Raises OSError."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self._set_aside(step))

    def age_s(self, step: int) -> float:
        """Return how long ago a checkpoint was published, in seconds; infinite for one that is gone."""
        try:
            return time.time() - (self.path(step) / SUMS).stat().st_mtime
        except FileNotFoundError:
            return math.inf

    def adopt(self, fetched: Path, step: int) -> None:
        """Publish a whole checkpoint that was written elsewhere, and stands below the folder under another name."""
        target = self.path(step)
        if target.exists():  # a damaged one
            target.rename(fetched.with_name(f"{fetched.name}.replaced"))
        fetched.rename(target)
        sync(self.root)

    @staticmethod
    def run_of(path: Path) -> str:
        """Return the run that wrote a checkpoint. Raises UserError for one of another version."""
        return _parse_manifest(path, (path / _MANIFEST).read_bytes()).run

    def _set_aside(self, step: int) -> Path:
        """Rename a checkpoint, so that no process reads one that is half deleted."""
        doomed = self.root / f".{self.path(step).name}.pruned"
        shutil.rmtree(doomed, ignore_errors=True)
        return self.path(step).rename(doomed)

    def sweep(self) -> None:
        """Delete what interrupted runs left incomplete."""
        for leftover in self.root.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def path(self, step: int) -> Path:
        """Return a step's folder."""
        return self.root / f"step-{step:08d}"

    def _assembled(self, step: int, run: str) -> Path:
        return self.root / f".{self.path(step).name}.{run}"

    def _is_by(self, step: int, run: str) -> bool:
        try:
            return self.open(step).manifest.run == run
        except DamagedCheckpointError:
            return False


def _parse_manifest(path: Path, content: bytes) -> Manifest:
    """Read a verified manifest.

    If it cannot be parsed, another version wrote it, so it is not damaged.
    """
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            "CheckpointOfAnotherVersion",
            f"checkpoint {path}: {'.'.join(map(str, first['loc'])) or 'manifest'}: {first['msg']}; it is whole, but of"
            " another version of the trainer; go on with the image that wrote it, or use another spec.checkpoint.path",
        ) from error
