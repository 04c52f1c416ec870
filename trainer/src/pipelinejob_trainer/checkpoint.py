"""How a gang saves and resumes: every rank calls these functions at the same point, and all come to the same end.

A rank's file is written by its first replica only; the others hold the same bits. Rank 0 alone touches what is shared:
manifest, fence, names, deletions. Why not torch.distributed.checkpoint: docs/decisions/0004-checkpoints.md.
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from pipelinejob.errors import PipelineJobError
from pipelinejob_trainer.checkpoint_folder import (
    CheckpointFolder,
    DamagedCheckpointError,
    Fence,
    Manifest,
    shard_name,
    write_shard,
)
from pipelinejob_trainer.errors import SupersededError
from pipelinejob_trainer.gang import Gang
from pipelinejob_trainer.snapshot import Snapshot

_DIGEST_BYTES = 32
_RUN_BYTES = 7  # fits an int64
_MAX_CANDIDATES = 64


class CheckpointFailedError(PipelineJobError):
    """A checkpoint could not be written; the last one is still there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """What a run goes on from."""

    step: int
    loss: float | None
    tensors: Mapping[str, torch.Tensor]


class Checkpoints:
    """The checkpoints of a gang at work."""

    def __init__(
        self, folder: CheckpointFolder, gang: Gang, *, attempt: int, keep: int, warn: Callable[[str], None]
    ) -> None:
        self._folder = folder
        self._gang = gang
        self._attempt = attempt
        self._keep = keep
        self._warn = warn
        self._run = ""

    def resume(self, wanted: Mapping[str, torch.Size]) -> Resumed | None:
        """Read the newest checkpoint that all ranks find sound, and fence earlier attempts off; None if there is none.

        Raises UserError when it is of another model.
        """
        resumed = next((found for step in self._agreed_candidates() if (found := self._read(step, wanted))), None)
        self._run = f"{self._gang.agree([secrets.randbits(8 * _RUN_BYTES)])[0]:0{2 * _RUN_BYTES}x}"
        if self._gang.is_leader:
            self._folder.sweep()
            self._folder.take_over(Fence(attempt=self._attempt, run=self._run, step=resumed.step if resumed else 0))
        return resumed

    def save(self, snapshot: Snapshot) -> None:
        """Write a checkpoint; on return it is complete, verified and named, on every rank's word.

        Raises CheckpointFailedError when this rank could not write, SupersededError when a newer attempt has taken
        over, PeerLostError when another rank failed.
        """
        digest = b""
        try:
            gathered = self._folder.begin(snapshot.step, run=self._run)
            if self._gang.replica == 0:
                digest = bytes.fromhex(write_shard(gathered / shard_name(self._gang.stage), snapshot.tensors))
        except (OSError, DamagedCheckpointError) as error:
            raise CheckpointFailedError(
                f"step {snapshot.step}: cannot write a checkpoint to {self._folder.root}: {error}; free space there"
            ) from error
        digests = self._gang.gather(_row(digest))
        if self._gang.is_leader:
            self._publish(snapshot, [bytes(row.tolist()).hex() for row in digests])
        self._gang.barrier()

    def _publish(self, snapshot: Snapshot, digests: list[str]) -> None:
        fence = self._folder.fence()
        if fence is None or fence.run != self._run:
            by = f"attempt {fence.attempt}" if fence else "another run"
            raise SupersededError(f"step {snapshot.step}: {by} has taken over {self._folder.root}; nothing was changed")
        shards = {shard_name(stage): digests[stage] for stage in range(self._gang.num_stages)}  # ranks of replica 0
        manifest = Manifest(
            step=snapshot.step, attempt=self._attempt, run=self._run, loss=snapshot.loss, shards=tuple(shards)
        )
        try:
            self._folder.publish(self._folder.begin(snapshot.step, run=self._run), manifest, shards)
            self._folder.prune(newest=snapshot.step, keep=self._keep, run=self._run)
        except OSError as error:
            raise CheckpointFailedError(
                f"step {snapshot.step}: cannot publish a checkpoint in {self._folder.root}: {error}; free space there"
            ) from error

    def _agreed_candidates(self) -> list[int]:
        steps = [0] * _MAX_CANDIDATES
        if self._gang.is_leader:
            for place, step in enumerate(self._candidates()[:_MAX_CANDIDATES]):
                steps[place] = step
        return [step for step in self._gang.agree(steps) if step > 0]

    def _candidates(self) -> list[int]:
        steps = []
        for found in self._folder.candidates():
            if isinstance(found, DamagedCheckpointError):
                self._warn(f"{found}; it is passed over")
            else:
                steps.append(found.step)
        return steps

    def _read(self, step: int, wanted: Mapping[str, torch.Size]) -> Resumed | None:
        resumed = None
        try:
            checkpoint = self._folder.open(step)
            resumed = Resumed(step=step, loss=checkpoint.manifest.loss, tensors=checkpoint.read(wanted))
        except DamagedCheckpointError as error:
            self._warn(f"{error}; the checkpoint before it is used")
        return resumed if self._gang.all_say(resumed is not None) else None


def _row(digest: bytes) -> torch.Tensor:
    return torch.tensor(list(digest or bytes(_DIGEST_BYTES)), dtype=torch.uint8)
