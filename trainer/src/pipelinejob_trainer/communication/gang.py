"""Collectives: what all ranks of a job do together.

A failed collective means that a rank went away, so its error becomes PeerLostError, here and
nowhere else.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import distributed

from pipelinejob_trainer.base.errors import PeerLostError
from pipelinejob_trainer.base.waiting import Awaiting
from pipelinejob_trainer.communication.process_groups import Groups

_Value = TypeVar("_Value")
_PIECE_BYTES = 256 << 20


class Gang:
    """All ranks of a job, seen from one of them.

    Small values go over the CPU, sums over their own device.
    """

    def __init__(self, groups: Groups, *, num_stages: int, tensor: int = 1) -> None:
        self._groups = groups
        self.rank = distributed.get_rank(groups.world)
        self.size = distributed.get_world_size(groups.world)
        self.num_stages = num_stages
        self.num_tensor = tensor  # ranks that share a stage's layers
        place, self.tensor = divmod(self.rank, tensor)
        self.replica, self.stage = divmod(place, num_stages)

    @property
    def is_leader(self) -> bool:
        """Whether this rank does what only one rank may do."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> list[float]:
        """Add a vector up over all ranks."""
        with peer_errors():
            distributed.all_reduce(values, group=self._groups.world)
        return [float(value) for value in values.tolist()]

    def agree(self, numbers: Sequence[int]) -> list[int]:
        """Return the leader's numbers, on every rank."""
        values = torch.tensor(numbers, dtype=torch.int64)
        with peer_errors():
            distributed.broadcast(values, src=0, group=self._groups.world)
        return [int(value) for value in values.tolist()]

    def gather(self, row: torch.Tensor) -> list[torch.Tensor]:
        """Return every rank's row, in order of rank."""
        rows = [torch.empty_like(row) for _ in range(self.size)]
        with peer_errors():
            distributed.all_gather(rows, row, group=self._groups.world)
        return rows

    def gather_values(self, value: _Value) -> list[_Value]:
        """Return every rank's value, in order of rank."""
        values = [value] * self.size
        with peer_errors():
            distributed.all_gather_object(values, value, group=self._groups.world)
        return values

    def all_agree(self, vote: bool) -> bool:  # noqa: FBT001  # a value, not a switch
        """Return whether every rank says yes."""
        votes = torch.tensor([int(vote)])
        with peer_errors():
            distributed.all_reduce(votes, op=distributed.ReduceOp.MIN, group=self._groups.world)
        return bool(votes.item())

    def send_bytes(self, values: torch.Tensor, to: int) -> None:
        """Send a rank bytes, uint8 on the CPU, that it expects."""
        with peer_errors():
            for piece in torch.split(values, _PIECE_BYTES):
                distributed.send(piece, to, group=self._groups.world)

    def receive_bytes(self, values: torch.Tensor, source: int) -> None:
        """Fill a tensor with the bytes that a rank sends."""
        with peer_errors():
            for piece in torch.split(values, _PIECE_BYTES):
                distributed.recv(piece, source, group=self._groups.world)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.all_agree(True)


@contextmanager
def peer_errors() -> Iterator[None]:
    """Turn the failure of a collective into PeerLostError; what is inside waits for others."""
    try:
        with Awaiting(None):
            yield
    except RuntimeError as error:
        raise PeerLostError(f"another rank went away: {str(error).splitlines()[0]}") from error
