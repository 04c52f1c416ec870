"""A folder of checkpoints, looked at and tidied by hand.

All of it may be done while a job trains: what is published appears by one rename, and what is
deleted goes by one.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.checkpoint.folder import CheckpointFolder
from pipelinejob_trainer.checkpoint.shards import DamagedCheckpointError, num_stages

_DAMAGED = 65  # EX_DATAERR


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One checkpoint, whole or not."""

    step: int
    attempt: int | None  # None, as loss, where its manifest cannot be read
    loss: float | None
    stages: int | None
    bytes: int
    written: str  # RFC 3339
    damage: str | None = None


def folder_at(root: Path) -> CheckpointFolder:
    """Return the folder, which holds a checkpoint at least. Raises UserError."""
    folder = CheckpointFolder(root)
    if not folder.steps():
        what = "holds no checkpoint (step-...)" if root.is_dir() else "is no folder"
        raise UserError("NoCheckpoint", f"{root}: {what}; name a run's folder, or spec.checkpoint.path of a job")
    return folder


def found(folder: CheckpointFolder) -> Iterator[Found]:
    """Return all checkpoints, newest first, by their manifests."""
    return _looks(folder, verifies=False)


def verified(folder: CheckpointFolder) -> Iterator[Found]:
    """Return all checkpoints, newest first, each read whole."""
    return _looks(folder, verifies=True)


def _looks(folder: CheckpointFolder, *, verifies: bool) -> Iterator[Found]:
    for step in folder.steps():
        try:
            seen = _look(folder, step, verifies=verifies)
        except FileNotFoundError:  # the job pruned it meanwhile
            continue
        if folder.path(step).is_dir():
            yield seen


def _look(folder: CheckpointFolder, step: int, *, verifies: bool) -> Found:
    path = folder.path(step)
    bare = Found(step=step, attempt=None, loss=None, stages=None, bytes=_bytes(path), written=_written(path))
    try:
        checkpoint = folder.open(step)
        checkpoint.check_files()
        if verifies:
            checkpoint.verify()
    except (DamagedCheckpointError, UserError) as error:
        return _with(bare, damage=str(error))
    manifest = checkpoint.manifest
    return _with(bare, attempt=manifest.attempt, loss=manifest.loss, stages=num_stages(manifest.shards))


def _with(bare: Found, **values: object) -> Found:
    return Found(**(asdict(bare) | values))


def _bytes(path: Path) -> int:
    return sum(each.stat().st_size for each in path.iterdir() if each.is_file()) if path.is_dir() else 0


def _written(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def show(all_found: tuple[Found, ...], *, as_json: bool) -> None:
    """Print them, and end with 65 if one is damaged."""
    if as_json:
        sys.stdout.write(json.dumps([asdict(each) for each in all_found], indent=1) + "\n")
    else:
        sys.stdout.write(f"{'step':>10}  {'attempt':>7}  {'loss':>8}  {'files':>5}  {'MiB':>9}  written\n")
        for each in all_found:
            sys.stdout.write(f"{_row(each)}\n")
    if any(each.damage for each in all_found):
        sys.exit(_DAMAGED)


def _row(each: Found) -> str:
    attempt = "-" if each.attempt is None else str(each.attempt)
    loss = "-" if each.loss is None else f"{each.loss:.4f}"
    stages = "-" if each.stages is None else str(each.stages)
    size = f"{each.bytes / 2**20:.1f}"
    damage = f"  DAMAGED: {each.damage}" if each.damage else ""
    return f"{each.step:>10}  {attempt:>7}  {loss:>8}  {stages:>5}  {size:>9}  {each.written}{damage}"


def prune(folder: CheckpointFolder, *, keep: int, is_dry: bool, older_s: float = 0.0) -> None:
    """Delete all but the newest whole checkpoints, if they are so old. Damaged newer ones stay to be looked at.

    Raises UserError.
    """
    if keep < 1:
        raise UserError("BadKeep", f"--keep {keep}: the newest whole checkpoint always stays; use 1 or more")
    whole = [each.step for each in found(folder) if each.damage is None]
    if not whole:
        raise UserError("NoCheckpoint", f"{folder.root}: none of its checkpoints is whole, so none is deleted")
    oldest = whole[:keep][-1]
    gone = [step for step in folder.steps() if step < oldest and folder.age_s(step) >= older_s]
    if not is_dry:
        for step in gone:
            folder.delete(step)
    what = "would be deleted" if is_dry else "deleted"
    steps = ", ".join(map(str, gone)) or "none"
    sys.stdout.write(f"{what}: {steps}; kept: {', '.join(map(str, whole[:keep]))}\n")
