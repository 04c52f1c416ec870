"""Shards are written: beside their place first, read back for their checksums, then put there whole."""

import base64
import hashlib
import os
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from pipelinejob_trainer.base.disk import sync, write_atomically
from pipelinejob_trainer.data.prepare.errors import FolderError
from pipelinejob_trainer.data.tokens.index import BLOCK_BYTES, ShardRecord
from pipelinejob_trainer.data.tokens.shard import sections


class ShardWriter:
    """One shard in the making. All methods raise FolderError where it cannot be written."""

    def __init__(self, scratch: Path, *, token_bytes: int, has_marks: bool) -> None:
        self._scratch = scratch
        self._token_bytes = token_bytes
        self._marks = bytearray() if has_marks else None
        self._ends: list[int] = []
        self.tokens = self._counted = 0
        self.largest_token = 0
        try:
            self._file = scratch.open("wb")
        except OSError as error:
            raise cannot_write(scratch, error) from error

    @property
    def documents(self) -> int:
        """Count the documents so far."""
        return len(self._ends)

    def add(self, tokens: Sequence[int], counts: Sequence[bool] | None) -> None:
        """Add a document; `counts` says which of its tokens count as targets, None: all."""
        try:
            self._file.write(np.array(tokens, dtype=f"<u{self._token_bytes}").tobytes())
        except OSError as error:
            raise cannot_write(self._scratch, error) from error
        if self._marks is not None:
            self._marks += bytes(len(tokens)) if counts is None else bytes(counts)
        self.tokens += len(tokens)
        self._counted += len(tokens) if counts is None else sum(counts)
        self.largest_token = max(self.largest_token, *tokens)
        self._ends.append(self.tokens)

    def finish(self, target: Path) -> ShardRecord:
        """Write the rest, and put the shard into its place."""
        places = sections(
            tokens=self.tokens,
            documents=self.documents,
            token_bytes=self._token_bytes,
            has_marks=self._marks is not None,
        )
        try:
            with self._file as file:
                file.write(bytes(places.marks - file.tell()))
                if self._marks is not None:
                    file.write(np.packbits(np.frombuffer(self._marks, dtype=np.uint8), bitorder="little").tobytes())
                file.write(bytes(places.ends - file.tell()))
                file.write(np.array(self._ends, dtype="<i8").tobytes())
                file.flush()
                os.fsync(file.fileno())
            sha256, crc32 = _checksums(self._scratch)
            self._scratch.replace(target)
            sync(target.parent)
        except OSError as error:
            raise cannot_write(target, error) from error
        return ShardRecord(
            name=target.name,
            documents=self.documents,
            tokens=self.tokens,
            counted=self._counted,
            bytes=places.bytes,
            sha256=sha256,
            crc32=crc32,
        )

    def drop(self) -> None:
        """Forget a shard."""
        with suppress(OSError):  # of a full disk, which has been said
            self._file.close()
        self._scratch.unlink(missing_ok=True)


def write_whole(file: Path, content: str, *, scratch: Path) -> None:
    """Write a file so that it is there whole or not at all, whenever the machine stops.

    Raises FolderError.
    """
    try:
        write_atomically(file, content.encode(), scratch=scratch)
    except OSError as error:
        raise cannot_write(file, error) from error


def cannot_write(file: Path, error: OSError) -> FolderError:
    """Return the error that says why a file cannot be written, and what to do."""
    return FolderError(
        f"--to: cannot write {file}: {error.strerror}; make room there, or make it writable: the same command goes on"
        " from what is done"
    )


def _checksums(file: Path) -> tuple[str, str]:
    """Return a file's SHA-256, and the CRC-32 of each block in base 64, as they are read back."""
    digest = hashlib.sha256()
    blocks = []
    with file.open("rb") as opened:
        while block := opened.read(BLOCK_BYTES):
            digest.update(block)
            blocks.append(zlib.crc32(block))
    return digest.hexdigest(), base64.b64encode(np.array(blocks, dtype="<u4").tobytes()).decode()
