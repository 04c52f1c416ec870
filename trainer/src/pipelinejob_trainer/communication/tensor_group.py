"""The ranks that share each layer of a stage: tensor parallelism's group, and what it exchanges."""

import torch
from torch import distributed

from pipelinejob_trainer.communication.gang import peer_errors
from pipelinejob_trainer.communication.layer_group import LayerGroup


class TensorGroup(LayerGroup):
    """`size` ranks that hold a part of each layer.

    With `divides_tokens` each has the stream of an equal stretch of each sequence's tokens, too.
    `bytes_exchanged` counts what this rank has sent: of a sum or a gathering of n bytes, by a
    ring, a part (size - 1) / size, twice for a sum.
    """

    def __init__(self, rank: int = 0, size: int = 1, *, divides_tokens: bool = False) -> None:
        super().__init__(rank, size)
        self.divides_tokens = divides_tokens and size > 1

    def add(self, tensor: torch.Tensor) -> None:
        """Add a contiguous tensor up over the group, in place. Raises PeerLostError."""
        self._reduce(tensor, distributed.ReduceOp.SUM)

    def largest(self, tensor: torch.Tensor) -> None:
        """Replace each entry by the group's largest, in place. Raises PeerLostError."""
        self._reduce(tensor, distributed.ReduceOp.MAX)

    def gathered(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return every rank's contiguous tensor, (size, ...), all of one shape. Raises PeerLostError."""
        found = tensor.new_empty(self.size * tensor.numel())
        self.bytes_exchanged += (self.size - 1) * tensor.nbytes
        with peer_errors():
            distributed.all_gather_into_tensor(found, tensor.flatten(), group=self._met())
        return found.view(self.size, *tensor.shape)

    def scattered(self, tensors: torch.Tensor) -> torch.Tensor:
        """Return this rank's of the sums over the group of contiguous tensors (size, ...). Raises PeerLostError."""
        found = tensors.new_empty(tensors[0].numel())
        self.bytes_exchanged += (self.size - 1) * found.nbytes
        with peer_errors():
            distributed.reduce_scatter_tensor(found, tensors.flatten(), group=self._met())
        return found.view(tensors.shape[1:])

    def _reduce(self, tensor: torch.Tensor, operation: distributed.ReduceOp.RedOpType) -> None:
        self.bytes_exchanged += 2 * (self.size - 1) * tensor.nbytes // self.size
        with peer_errors():
            distributed.all_reduce(tensor, op=operation, group=self._met())


ALONE = TensorGroup()
"""Of layers that are not shared."""
