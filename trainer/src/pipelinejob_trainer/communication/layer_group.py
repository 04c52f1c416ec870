"""Ranks of which each holds a part of the same layers: what the groups that share and divide them have in common.

The layers are made before the ranks meet, so a group is made alone and meets later. All of its
ranks play the same list of actions, and so start the same exchanges in the same order.
"""

from torch import distributed


class LayerGroup:
    """`size` ranks; this one is number `rank`. `bytes_exchanged` counts what it has sent to the others."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size
        self.bytes_exchanged = 0
        self._group: distributed.ProcessGroup | None = None

    @property
    def is_split(self) -> bool:
        """Whether there is more than one rank."""
        return self.size > 1

    def meet(self, group: distributed.ProcessGroup) -> None:
        """Exchange over this process group from now on."""
        self._group = group

    def bounds(self, extent: int, rank: int | None = None) -> tuple[int, int]:
        """Return a rank's stretch [first, end) of so many, this one's if unset; lengths differ by one at most."""
        mine = self.rank if rank is None else rank
        return mine * extent // self.size, (mine + 1) * extent // self.size

    def _met(self) -> distributed.ProcessGroup:
        assert self._group is not None, "layers run after the ranks have met"
        return self._group
