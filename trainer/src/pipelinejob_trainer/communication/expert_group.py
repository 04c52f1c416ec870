"""The replicas of a stage that divide the experts of its blocks among them, and what they send to one another.

Consecutive replicas form a group; each holds an equal stretch of the experts, and the other groups
hold the same ones again: rank r of a group those that rank r of any other has.
"""

from collections.abc import Sequence

import torch
from torch import distributed

from pipelinejob_trainer.communication.gang import peer_errors
from pipelinejob_trainer.communication.layer_group import LayerGroup


class ExpertGroup(LayerGroup):
    """`size` replicas, each with its share of all experts; what stays on a rank is not counted as exchanged."""

    def announced(self, counts: torch.Tensor) -> torch.Tensor:
        """Return how many rows each rank has for each of this one's experts, (size, experts / size).

        `counts` are this rank's own rows for all experts, int64. Raises PeerLostError.
        """
        found = torch.empty_like(counts)
        self.bytes_exchanged += (self.size - 1) * counts.nbytes // self.size
        with peer_errors():
            distributed.all_to_all_single(found, counts, group=self._met())
        return found.view(self.size, -1)

    def exchanged(self, rows: torch.Tensor, given: Sequence[int], taken: Sequence[int]) -> torch.Tensor:
        """Send contiguous rows (rows, width), so many to each rank; return those taken from each, in their order.

        Raises PeerLostError.
        """
        found = rows.new_empty(sum(taken), rows.shape[1])
        self.bytes_exchanged += (sum(given) - given[self.rank]) * rows.shape[1] * rows.element_size()
        with peer_errors():
            distributed.all_to_all_single(found, rows, list(taken), list(given), group=self._met())
        return found


UNDIVIDED = ExpertGroup()
"""Of experts that each replica holds all of."""
