"""Reading a shard of tokens: any stretch of it, each block held against its checksum when it is first read.

Not a memory map, though it is read in place and out of the page cache as one would be: a map ends
the process without a word (SIGBUS) where a file became shorter or a volume failed; a read says so.
"""

import hashlib
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.data.tokens.index import BLOCK_BYTES, Index, ShardRecord

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
_ALIGNMENT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Sections:
    """Where each section of a shard begins, and how long it is, in bytes."""

    marks: int
    ends: int
    bytes: int


def aligned(offset: int) -> int:
    """Return the first multiple of 8 that is not below `offset`."""
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def sections(*, tokens: int, documents: int, token_bytes: int, has_marks: bool) -> Sections:
    """Return where a shard's sections begin; its tokens do at 0."""
    marks = aligned(tokens * token_bytes)
    ends = aligned(marks + (-(-tokens // 8) if has_marks else 0))
    return Sections(marks=marks, ends=ends, bytes=ends + 8 * documents)


class Shard:
    """One shard, read where it lies."""

    def __init__(self, folder: Path, index: Index, record: ShardRecord) -> None:
        """Raise UserError where the file is not there, or not as long as it was."""
        self.record = record
        self._path = folder / record.name
        self._type = np.dtype("<u2" if index.token_bytes == np.dtype(np.uint16).itemsize else "<u4")
        self._has_marks = index.settings.is_chat
        self._sections = sections(
            tokens=record.tokens,
            documents=record.documents,
            token_bytes=index.token_bytes,
            has_marks=self._has_marks,
        )
        self._is_verified = bytearray(-(-record.bytes // BLOCK_BYTES))
        self._file: int | None = None
        self._check_size()

    def tokens(self, begin: int, count: int) -> Tokens:
        """Read tokens [begin, begin + count)."""
        width = self._type.itemsize
        return np.frombuffer(self._read(begin * width, count * width), dtype=self._type)

    def counts(self, begin: int, count: int) -> npt.NDArray[np.bool_]:
        """Read for tokens [begin, begin + count) whether they count as targets."""
        if not self._has_marks:
            return np.ones(count, dtype=np.bool_)
        first, last = begin // 8, (begin + count + 7) // 8
        marks = np.frombuffer(self._read(self._sections.marks + first, last - first), dtype=np.uint8)
        return np.unpackbits(marks, bitorder="little")[begin - 8 * first :][:count].astype(np.bool_)

    def ends(self) -> npt.NDArray[np.int64]:
        """Read where each document ends, in tokens from the shard's first."""
        return np.frombuffer(self._read(self._sections.ends, 8 * self.record.documents), dtype="<i8")

    def verify(self) -> None:
        """Hold all of the file against its SHA-256.

        Raises UserError where it differs.
        """
        with self._path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != self.record.sha256:
            for block in range(len(self._is_verified)):
                self._verify(block)
            raise self._damaged("its SHA-256 differs")

    def close(self) -> None:
        """Let go of the file until it is read again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _read(self, offset: int, count: int) -> bytes:
        for block in range(offset // BLOCK_BYTES, -(-(offset + count) // BLOCK_BYTES)):
            if not self._is_verified[block]:
                self._verify(block)
        return self._piece(offset, count)

    def _verify(self, block: int) -> None:
        begin = block * BLOCK_BYTES
        content = self._piece(begin, min(BLOCK_BYTES, self.record.bytes - begin))
        if zlib.crc32(content) != self.record.block_sums[block]:
            raise self._damaged(f"block {block} (bytes {begin} to {begin + len(content)}) differs from its checksum")
        self._is_verified[block] = 1

    def _piece(self, offset: int, count: int) -> bytes:
        try:
            if self._file is None:
                self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            content = os.pread(self._file, count, offset)
        except OSError as error:
            raise UserError(
                "DataUnreadable", f"spec.data: cannot read {self._path}: {error.strerror}; make it readable here"
            ) from error
        if len(content) < count:
            raise UserError(
                "DataChanged", f"spec.data: {self._path} became shorter while it was read; keep data as they are"
            )
        return content

    def _check_size(self) -> None:
        try:
            size = self._path.stat().st_size
        except OSError as error:
            raise UserError(
                "DataNotFound",
                f"spec.data: {self._path} of the index is not here ({error.strerror}); copy the whole folder, or"
                " prepare it anew",
            ) from error
        if size != self.record.bytes or self._sections.bytes != size:
            raise UserError(
                "DataDamaged",
                f"spec.data: {self._path} has {size} bytes, its index says {self.record.bytes}; copy the folder once"
                " more, or prepare it anew",
            )

    def _damaged(self, how: str) -> UserError:
        return UserError(
            "DataDamaged",
            f"spec.data: {self._path} is not as it was written: {how}; copy this file once more from where it was"
            " prepared, or delete the folder and prepare it anew",
        )
