"""How documents become sequences of one length: rows of tokens, targets, and positions.

A document of n tokens is n - 1 pairs of a token and its target, the token after it. Packed
documents are cut into pieces of at most a sequence's length, between pairs, so no pair is lost,
none spans two documents, and each is met once in an epoch.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from pipelinejob.spec.workload import Packing
from pipelinejob_trainer.base.seeds import mix
from pipelinejob_trainer.data.micro_batch import IGNORED
from pipelinejob_trainer.data.tokens.folder import TokenFolder

Numbers = npt.NDArray[np.int64]
_TOGETHER = 16384  # documents that are packed with one another; they lie near each other on disk


class Row(NamedTuple):
    """One sequence: each int64 (length,). A micro-batch is some of them."""

    tokens: Numbers
    targets: Numbers
    positions: Numbers | None = None


class Documents(NamedTuple):
    """Documents [first, last) of a folder, and their tokens [begin, end)."""

    folder: TokenFolder
    first: int
    last: int
    begin: int
    end: int


class Packed(Protocol):
    """Documents as sequences; all epochs have equally many."""

    @property
    def size(self) -> int:
        """The number of sequences in an epoch."""

    def row(self, place: int, *, epoch_key: int) -> Row:
        """Return sequence `place` of the epoch that `epoch_key` names."""


def packed(documents: Documents, packing: Packing, length: int) -> Packed:
    """Return documents as sequences of `length` tokens."""
    if packing is Packing.CONCATENATE:
        return Concatenated(documents, length)
    return Pieces(documents, length, is_shared=packing is Packing.DOCUMENTS)


class Concatenated:
    """All documents as one long text, cut into windows; each epoch cuts it elsewhere."""

    def __init__(self, documents: Documents, length: int) -> None:
        self._documents = documents
        self._length = length
        self._tokens = documents.end - documents.begin
        self.size = max(1, (self._tokens - length) // length) if self._tokens > length else 0

    def row(self, place: int, *, epoch_key: int) -> Row:
        num_offsets = min(self._length, self._tokens - self.size * self._length)
        begin = self._documents.begin + mix(epoch_key) % num_offsets + place * self._length
        folder = self._documents.folder
        window = folder.tokens(begin, self._length + 1)
        counts = folder.counts(begin + 1, self._length)
        return Row(window[:-1], np.where(counts, window[1:], IGNORED))


class Pieces:
    """Pieces of documents in rows: several where rows are shared, else one; the rest of a row does not count.

    What fills a row up is the token that ends texts, as a document of its own.
    """

    def __init__(self, documents: Documents, length: int, *, is_shared: bool) -> None:
        self._folder = documents.folder
        self._length = length
        self._filler = documents.folder.index.tokenizer.end_of_text or 0
        self._is_shared = is_shared
        begins, pairs = _documents(documents)
        self.num_cut = int((pairs > length).sum())  # documents that no sequence holds
        self._whole = _whole_pieces(begins, pairs, length)  # rows that one piece fills
        rest_begins, rest_pairs = begins + pairs // length * length, pairs % length
        rows = _together(rest_pairs, length) if is_shared else ([each] for each in np.flatnonzero(rest_pairs).tolist())
        members = list(rows)
        self._row_ends = np.array(list(accumulate(map(len, members))), dtype=np.int64)
        order = np.array([each for row in members for each in row], dtype=np.int64)
        self._begins, self._pairs = rest_begins[order], rest_pairs[order]
        self.size = len(self._whole) + len(members)

    @property
    def filled(self) -> float:
        """The share of the rows' tokens that are documents'."""
        pairs = len(self._whole) * self._length + int(self._pairs.sum())
        return pairs / (self.size * self._length) if self.size else 0.0

    def row(self, place: int, *, epoch_key: int) -> Row:
        del epoch_key  # all epochs have the same rows
        tokens = np.full(self._length, self._filler, dtype=np.int64)
        targets = np.full(self._length, IGNORED, dtype=np.int64)
        positions = np.empty(self._length, dtype=np.int64)
        at = 0
        for begin, pairs in self._pieces(place):
            read = self._folder.tokens(begin, pairs + 1)
            counts = self._folder.counts(begin + 1, pairs)
            tokens[at : at + pairs] = read[:-1]
            targets[at : at + pairs] = np.where(counts, read[1:], IGNORED)
            positions[at : at + pairs] = np.arange(pairs)
            at += pairs
        positions[at:] = np.arange(self._length - at)
        return Row(tokens, targets, positions if self._is_shared else None)

    def _pieces(self, place: int) -> Iterator[tuple[int, int]]:
        """Return a row's pieces: the first token of each, and its pairs."""
        row = place - len(self._whole)
        if row < 0:
            yield int(self._whole[place]), self._length
            return
        first = int(self._row_ends[row - 1]) if row else 0
        for piece in range(first, int(self._row_ends[row])):
            yield int(self._begins[piece]), int(self._pairs[piece])


def _documents(documents: Documents) -> tuple[Numbers, Numbers]:
    """Return each document's first token, and its pairs."""
    ends = documents.folder.document_ends()[documents.first : documents.last]
    begins = np.concatenate([np.array([documents.begin], dtype=np.int64), ends[:-1]])
    return begins[: len(ends)], np.maximum(ends - begins[: len(ends)] - 1, 0)


def _whole_pieces(begins: Numbers, pairs: Numbers, length: int) -> Numbers:
    """Return the first tokens of all pieces as long as a sequence."""
    counts = pairs // length
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # of a piece in its document
    firsts: Numbers = np.repeat(begins, counts) + number * length
    return firsts


def _together(pairs: Numbers, length: int) -> Iterator[list[int]]:
    """Return which pieces share a row: the longest first, each where the least room that suffices is left.

    Best fit decreasing wastes little (Ding et al. 2024, arXiv 2404.10830), and cuts nothing.
    """
    for first in range(0, len(pairs), _TOGETHER):
        some = pairs[first : first + _TOGETHER]
        order = np.argsort(-some, kind="stable")
        yield from _best_fit([(first + int(each), int(some[each])) for each in order if some[each]], length)


def _best_fit(pieces: list[tuple[int, int]], length: int) -> list[list[int]]:
    rows: list[list[int]] = []
    rooms: list[int] = []  # that some row has left, each once, in order
    rows_with: dict[int, list[list[int]]] = {}
    for piece, size in pieces:
        at = bisect_left(rooms, size)
        if at == len(rooms):
            row: list[int] = []
            rows.append(row)
            room = length
        else:
            room = rooms[at]
            row = rows_with[room].pop()
            if not rows_with[room]:
                del rooms[at]
        row.append(piece)
        left = room - size
        if left:
            waiting = rows_with.setdefault(left, [])
            if not waiting:
                insort(rooms, left)
            waiting.append(row)
    return rows
