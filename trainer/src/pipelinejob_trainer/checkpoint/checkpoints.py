"""How a gang saves and resumes; every rank calls these functions at the same point.

Of what several ranks hold alike, one writes a file. Only rank 0 changes what
is shared: manifest, fence, names, deletions. Why not torch.distributed.checkpoint:
docs/decisions/0004-checkpoints.md.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from pipelinejob.base.errors import PipelineJobError
from pipelinejob_trainer.base.errors import SupersededError
from pipelinejob_trainer.checkpoint.copies import Copies
from pipelinejob_trainer.checkpoint.folder import Checkpoint, CheckpointFolder, Fence, Manifest, PartOf
from pipelinejob_trainer.checkpoint.pieces import metadata_of
from pipelinejob_trainer.checkpoint.shards import DamagedCheckpointError, shard_name, write_shard
from pipelinejob_trainer.checkpoint.snapshot import Snapshot
from pipelinejob_trainer.communication.gang import Gang
from pipelinejob_trainer.data.position import TextPosition

_DIGEST_BYTES = 32
_RUN_BYTES = 7  # fits an int64
_MAX_CANDIDATES = 64


class CheckpointFailedError(PipelineJobError):
    """A checkpoint could not be written; the previous one still exists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """What a run goes on from."""

    step: int
    loss: float | None
    place: TextPosition | None
    rate: float | None = None
    tensors: Mapping[str, torch.Tensor]


class Checkpoints:
    """A gang's checkpoints, as one of its ranks sees them."""

    def __init__(
        self,
        folder: CheckpointFolder,
        gang: Gang,
        *,
        attempt: int,
        keep: int,
        warn: Callable[[str], None],
        keep_s: float = 0.0,
        copies: Sequence[str] = (),
        base: str | None = None,
    ) -> None:
        """Keep the newest `keep`, and older ones for `keep_s`; `copies` are URLs of where else each is written."""
        self._folder = folder
        self._gang = gang
        self._attempt = attempt
        self._keep = keep
        self._keep_s = keep_s
        self._copies = Copies(copies, folder, keep=keep, warn=warn)
        self._warn = warn
        self._base = base  # of adapters
        self._run = ""

    def resume(
        self,
        wanted: Mapping[str, torch.Size],
        is_taken: Callable[[str], bool],
        part_of: PartOf = lambda _, whole: whole,
    ) -> Resumed | None:
        """Read the newest checkpoint that all ranks find intact, and fence off earlier attempts.

        Returns None if there is none. Raises UserError when it is of another model.
        """
        if self._gang.is_leader:
            self._fetch_copies()
        resumed = next(
            (found for step in self._agreed_candidates() if (found := self._read(step, wanted, is_taken, part_of))),
            None,
        )
        self.take_over(resumed.step if resumed else 0)
        return resumed

    def _fetch_copies(self) -> None:
        newest = max((found.step for found in self._folder.candidates() if isinstance(found, Checkpoint)), default=0)
        self._copies.fetch_newer(newest, is_allowed=self._folder.is_of_history)

    def await_copies(self) -> list[str]:
        """Wait for copies that are being written; return why any could not be since the last call."""
        self._copies.wait()
        return self.take_failures()

    def take_failures(self) -> list[str]:
        """Return why copies could not be written since the last call."""
        return self._copies.take_failures()

    def take_over(self, step: int) -> None:
        """Fence off earlier attempts, and those who went on from here before, as this gang goes on from a step."""
        self._run = f"{self._gang.agree([secrets.randbits(8 * _RUN_BYTES)])[0]:0{2 * _RUN_BYTES}x}"
        if self._gang.is_leader:
            self._folder.sweep()
            self._folder.take_over(Fence(attempt=self._attempt, run=self._run, step=step))

    def save(self, snapshot: Snapshot, place: TextPosition) -> None:
        """Write a checkpoint.

        On return it is complete, verified and published, as every rank has confirmed. Raises
        CheckpointFailedError on all ranks when one could not write, SupersededError when a newer
        attempt has taken over, PeerLostError when another rank went away.
        """
        written: bytes | CheckpointFailedError
        try:
            written = self.write(snapshot)
        except CheckpointFailedError as error:
            written = error
        self.publish(snapshot, place, written)

    def write(self, snapshot: Snapshot) -> bytes:
        """Write this rank's file; return its digest, empty where another replica writes the same.

        No other rank is needed for it, so any thread may do it. Raises CheckpointFailedError.
        """
        try:
            gathered = self._folder.begin(snapshot.step, run=self._run)
            if (self._gang.replica == 0 and self._gang.tensor == 0) or snapshot.tensors:
                file = gathered / _shard_of(self._gang, self._gang.rank)
                return bytes.fromhex(write_shard(file, snapshot.tensors, metadata=metadata_of(snapshot.pieces)))
        except (OSError, DamagedCheckpointError) as error:
            raise CheckpointFailedError(
                f"step {snapshot.step}: cannot write a checkpoint to {self._folder.root}: {error}; free space there"
            ) from error
        return b""

    def publish(self, snapshot: Snapshot, place: TextPosition, written: bytes | CheckpointFailedError) -> None:
        """Publish a checkpoint, given what came of writing this rank's file. Raises what `save` does."""
        failure = written if isinstance(written, CheckpointFailedError) else None
        rows = [bytes(row.tolist()) for row in self._gang.gather(_row(written if isinstance(written, bytes) else None))]
        failed = [rank for rank, row in enumerate(rows) if not row[_DIGEST_BYTES]]
        if self._gang.is_leader and not failed:
            try:
                self._publish(snapshot, place, [row[:_DIGEST_BYTES].hex() for row in rows])
            except CheckpointFailedError as error:
                failure = error
        if self._gang.all_agree(failure is None and not failed):
            return
        if self._gang.is_leader:
            self._folder.abandon(snapshot.step, run=self._run)  # it may be what the volume lacks
        who = ", ".join(f"rank {rank}" for rank in failed or (0,))
        others = f"step {snapshot.step}: {who} could not write a checkpoint, and says why"
        raise failure or CheckpointFailedError(others)

    def _publish(self, snapshot: Snapshot, place: TextPosition, digests: list[str]) -> None:
        fence = self._folder.fence()
        if fence is None or fence.run != self._run:
            by = f"attempt {fence.attempt}" if fence else "another run"
            raise SupersededError(f"step {snapshot.step}: {by} has taken over {self._folder.root}; nothing was changed")
        nothing = bytes(_DIGEST_BYTES).hex()
        shards = {_shard_of(self._gang, rank): each for rank, each in enumerate(digests) if each != nothing}
        manifest = Manifest(
            step=snapshot.step,
            attempt=self._attempt,
            run=self._run,
            loss=snapshot.loss,
            rate=snapshot.rate,
            place=place,
            base=self._base,
            shards=tuple(shards),
        )
        try:
            self._folder.publish(self._folder.begin(snapshot.step, run=self._run), manifest, shards)
            self._folder.prune(
                newest=snapshot.step,
                keep=self._keep,
                keep_s=self._keep_s,
                run=self._run,
                spared=self._copies.in_use(),
            )
            self._copies.begin(snapshot.step)
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

    def _read(
        self, step: int, wanted: Mapping[str, torch.Size], is_taken: Callable[[str], bool], part_of: PartOf
    ) -> Resumed | None:
        resumed = None
        try:
            checkpoint = self._folder.open(step)
            checkpoint.check_base(self._base)
            manifest, tensors = checkpoint.manifest, checkpoint.read(wanted, is_taken, part_of)
            resumed = Resumed(step=step, loss=manifest.loss, place=manifest.place, rate=manifest.rate, tensors=tensors)
        except DamagedCheckpointError as error:
            self._warn(f"{error}; the checkpoint before it is used")
        return resumed if self._gang.all_agree(resumed is not None) else None


def _shard_of(gang: Gang, rank: int) -> str:
    place, tensor = divmod(rank, gang.num_tensor)
    replica, stage = divmod(place, gang.num_stages)
    return shard_name(stage, replica=replica, tensor=tensor)


def _row(digest: bytes | None) -> torch.Tensor:
    """Return a digest, and whether the file could be written, as bytes."""
    return torch.tensor([*(digest or bytes(_DIGEST_BYTES)), digest is not None], dtype=torch.uint8)
