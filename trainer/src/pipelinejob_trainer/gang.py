"""This rank among the others: where it stands, and what all ranks do together.

A collective that fails means that a rank went away, so every error of one becomes PeerLostError, here and nowhere else.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import distributed

from pipelinejob_trainer.errors import PeerLostError
from pipelinejob_trainer.parallel import Groups


class Gang:
    """All ranks of a job, seen from one of them. Values are agreed on by way of the CPU, sums where they are needed."""

    def __init__(self, groups: Groups, *, num_stages: int) -> None:
        self._groups = groups
        self.rank = distributed.get_rank(groups.world)
        self.size = distributed.get_world_size(groups.world)
        self.num_stages = num_stages
        self.replica, self.stage = divmod(self.rank, num_stages)

    @property
    def is_leader(self) -> bool:
        """Tell whether this rank does what is done once."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> list[float]:
        """Add a vector up over all ranks."""
        with peer_errors():
            distributed.all_reduce(values, group=self._groups.world)
        return [float(value) for value in values.tolist()]

    def agree(self, numbers: Sequence[int]) -> list[int]:
        """Give the leader's numbers, on every rank."""
        values = torch.tensor(numbers, dtype=torch.int64)
        with peer_errors():
            distributed.broadcast(values, src=0, group=self._groups.world)
        return [int(value) for value in values.tolist()]

    def gather(self, row: torch.Tensor) -> list[torch.Tensor]:
        """Give every rank's row, in order of rank."""
        rows = [torch.empty_like(row) for _ in range(self.size)]
        with peer_errors():
            distributed.all_gather(rows, row, group=self._groups.world)
        return rows

    def all_say(self, word: bool) -> bool:  # noqa: FBT001  # a word, not a switch
        """Tell whether every rank says yes."""
        votes = torch.tensor([int(word)])
        with peer_errors():
            distributed.all_reduce(votes, op=distributed.ReduceOp.MIN, group=self._groups.world)
        return bool(votes.item())

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.all_say(True)


@contextmanager
def peer_errors() -> Iterator[None]:
    """Turn the failure of a collective into the loss of a peer."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLostError(f"another rank went away: {str(error).splitlines()[0]}") from error
