"""A folder of prepared tokens as one long array of tokens, cut into documents."""

from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelinejob_trainer.data.tokens.index import Index, read_index
from pipelinejob_trainer.data.tokens.shard import Shard

_MOST_OPEN = 64  # files of one folder


class TokenFolder:
    """Tokens and documents by their numbers, over all shards."""

    def __init__(self, path: Path, *, field: str) -> None:
        """Open a folder; `field` is what named it.

        Raises UserError where it is not as it was written: an index or shard is missing, or a
        shard shorter or longer. What is in the shards is held against checksums as it is read.
        """
        self.path = path
        self.index: Index = read_index(path, field=field)
        self._shards = [Shard(path, self.index, record) for record in self.index.shards]
        self._ends = list(accumulate(record.tokens for record in self.index.shards))
        self._open: OrderedDict[int, None] = OrderedDict()

    def tokens(self, begin: int, count: int) -> npt.NDArray[np.int64]:
        """Read tokens [begin, begin + count)."""
        pieces = [self._shards[at].tokens(first, number) for at, first, number in self._pieces(begin, count)]
        return np.concatenate(pieces).astype(np.int64) if pieces else np.empty(0, dtype=np.int64)

    def counts(self, begin: int, count: int) -> npt.NDArray[np.bool_]:
        """Read for tokens [begin, begin + count) whether they count as targets."""
        if not self.index.settings.is_chat:
            return np.ones(count, dtype=np.bool_)
        pieces = [self._shards[at].counts(first, number) for at, first, number in self._pieces(begin, count)]
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.bool_)

    def document_ends(self) -> npt.NDArray[np.int64]:
        """Read where each document ends, in tokens from the folder's first."""
        begins = [0, *self._ends]
        ends = [shard.ends() + begin for shard, begin in zip(self._shards, begins, strict=False)]
        for shard in self._shards:
            shard.close()
        return np.concatenate(ends) if ends else np.empty(0, dtype=np.int64)

    def verify(self) -> None:
        """Hold every shard against its SHA-256.

        Raises UserError naming the first one that differs.
        """
        for shard in self._shards:
            shard.verify()

    def _pieces(self, begin: int, count: int) -> list[tuple[int, int, int]]:
        """Return the shards of a stretch, each with its first token and how many."""
        pieces = []
        at = bisect_right(self._ends, begin)
        while count:
            first = begin - (self._ends[at] - self._shards[at].record.tokens)
            number = min(count, self._shards[at].record.tokens - first)
            if number:
                self._use(at)
                pieces.append((at, first, number))
            at, begin, count = at + 1, begin + number, count - number
        return pieces

    def _use(self, at: int) -> None:
        """Close the shard that was not read for longest, so that descriptors do not run out."""
        self._open[at] = None
        self._open.move_to_end(at)
        if len(self._open) > _MOST_OPEN:
            longest, _ = self._open.popitem(last=False)
            self._shards[longest].close()
