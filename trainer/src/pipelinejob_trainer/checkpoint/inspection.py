"""What a folder of checkpoints holds, whether it is whole, and what may go: list, verify, prune."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.checkpoint.folder import Checkpoint, CheckpointFolder, DamagedCheckpointError


def inspect(kind: str, root: Path, *, keep: int, is_json: bool) -> bool:
    """List, verify or prune the checkpoints in a folder; return whether all that were looked at are whole.

    Raises UserError if there are none.
    """
    if not root.is_dir():
        raise UserError("NoFolder", f"{root}: there is no such folder; give the one of the checkpoints")
    folder = CheckpointFolder(root)
    if not folder.steps():
        raise UserError("NoCheckpoint", f"{root} has no checkpoint: no folder step-... is in it")
    if kind == "list":
        return _list(folder, is_json=is_json)
    return _verify(folder) if kind == "verify" else _prune(folder, keep=keep)


def _list(folder: CheckpointFolder, *, is_json: bool) -> bool:
    """Print each checkpoint, newest first; return whether all can be opened."""
    found = [_facts(folder, step) for step in folder.steps()]
    if is_json:
        _print(json.dumps(found, indent=1))
    else:
        for each in found:
            loss = f"loss {each['loss']:.4f}, " if each.get("loss") is not None else ""
            size = f"{each['shards']} shards, {each['bytes'] / 1e6:.1f} MB" if not each["damage"] else ""
            whole = f"{loss}{size}, attempt {each.get('attempt')}"
            _print(f"step {each['step']}: {each['damage'] or whole}")
    return not any(each["damage"] for each in found)


def _verify(folder: CheckpointFolder) -> bool:
    """Read all of every checkpoint and hold it against its checksums; return whether all are whole."""
    is_whole = True
    for step, damage in _damages(folder):
        _print(f"step {step}: {damage or 'whole'}")
        is_whole = is_whole and damage is None
    return is_whole


def _prune(folder: CheckpointFolder, *, keep: int) -> bool:
    """Delete what is older than the newest `keep` that are whole; damaged ones count as none."""
    kept = 0
    for step, damage in _damages(folder):
        if kept >= keep:
            folder.delete(step)
            _print(f"step {step}: deleted")
        else:
            _print(f"step {step}: {damage or 'kept'}")
            kept += damage is None
    return True


def _damages(folder: CheckpointFolder) -> Iterator[tuple[int, str | None]]:
    for step in folder.steps():
        try:
            folder.open(step).verify()
            yield step, None
        except DamagedCheckpointError as error:
            yield step, f"damaged: {error}"


def _facts(folder: CheckpointFolder, step: int) -> dict[str, Any]:
    try:
        checkpoint = folder.open(step)
    except DamagedCheckpointError as error:
        return {"step": step, "damage": f"damaged: {error}"}
    manifest = checkpoint.manifest
    return {
        "step": step,
        "damage": None,
        "loss": manifest.loss,
        "attempt": manifest.attempt,
        "shards": len(manifest.shards),
        "bytes": _num_bytes(checkpoint),
        "samples": manifest.place.samples if manifest.place else None,
    }


def _num_bytes(checkpoint: Checkpoint) -> int:
    return sum(file.stat().st_size for file in checkpoint.path.iterdir())


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
