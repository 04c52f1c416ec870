"""The index of a folder of prepared tokens: what `pipelinejob data prepare` wrote, and what tells that it is intact.

    DIR/index.json               this, written last
        tokenizer/               the tokenizer's files, copied
        tokens-00000-000.bin     shards: of piece 0 of the input the first, ...

A shard has three sections, each beginning at a multiple of 8 bytes: its tokens, 2 or 4 bytes each,
little endian; in chats one bit for each token, 1 where it counts as a target; and where each
document ends, in tokens from the shard's first, 8 bytes each.
"""

import base64
import hashlib
import json
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from pipelinejob.base.values import Value
from pipelinejob_trainer.base.errors import UserError

FORMAT = 1
INDEX = "index.json"
PREPARING = ".preparing"  # a folder that is there until the index is
TOKENIZER = "tokenizer"
BLOCK_BYTES = 2**20  # a checksum covers so many bytes of a shard


class TokenizerIdentity(Value):
    """What tokens mean: `sha256` is of the tokenizer's tokenizer.json."""

    sha256: str
    vocabulary_size: int  # the largest token + 1
    end_of_text: int | None


class Settings(Value):
    """How documents were made into tokens; other settings make other tokens."""

    column: str
    is_chat: bool
    chat_template_sha256: str | None = None
    tools_column: str | None = None
    separator: str | None = None
    end_of_text: str | None = None
    skips_bad: bool = False


class InputFile(Value):
    """A file that documents were read from, as it was then."""

    path: str
    bytes: int
    modified_ns: int


class ShardRecord(Value):
    """A shard: its sizes, and what its content is. `crc32` has 4 bytes for each block, in base 64."""

    name: str
    documents: int
    tokens: int
    counted: int  # tokens that count as targets
    bytes: int
    sha256: str
    crc32: str

    @cached_property
    def block_sums(self) -> npt.NDArray[np.uint32]:
        """The CRC-32 of each block."""
        return np.frombuffer(base64.b64decode(self.crc32), dtype="<u4")


class Index(Value):
    """What a folder of prepared tokens holds."""

    format: int = FORMAT
    tokenizer: TokenizerIdentity
    settings: Settings
    inputs: tuple[InputFile, ...]
    token_bytes: int
    largest_token: int
    stops: int  # counted tokens that end texts
    shards: tuple[ShardRecord, ...]
    left_out: dict[str, int]  # documents, by the reason

    @property
    def tokens(self) -> int:
        """Count the tokens."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def documents(self) -> int:
        """Count the documents."""
        return sum(shard.documents for shard in self.shards)

    @property
    def counted(self) -> int:
        """Count the tokens that count as targets."""
        return sum(shard.counted for shard in self.shards)

    @property
    def content_sha256(self) -> str:
        """The digest of what is read in training: of nothing that copying or preparing it once more would change."""
        parts = (self.format, self.token_bytes, self.tokenizer.sha256, self.settings.is_chat)
        shards = [(shard.documents, shard.tokens, shard.sha256) for shard in self.shards]
        return hashlib.sha256(json.dumps([parts, shards]).encode()).hexdigest()


def read_index(folder: Path, *, field: str) -> Index:
    """Read a folder's index; `field` is what named the folder.

    Raises UserError when there is none, or it is not as `data prepare` of this version writes it.
    """
    try:
        content = (folder / INDEX).read_bytes()
    except FileNotFoundError as error:
        raise UserError("DataNotFound", f"{field}: {_why_missing(folder)}") from error
    except OSError as error:
        raise UserError(
            "DataUnreadable", f"{field}: cannot read {folder / INDEX}: {error.strerror}; make it readable here"
        ) from error
    return _parsed(content, folder, field)


def _why_missing(folder: Path) -> str:
    if (folder / PREPARING).is_dir():
        return f"{folder} is not prepared to its end; run the same `pipelinejob data prepare` again, which goes on"
    what = "holds no index.json" if folder.is_dir() else "is no folder here"
    return f"{folder} {what}; mount what `pipelinejob data prepare --to` wrote, or correct the path"


def _parsed(content: bytes, folder: Path, field: str) -> Index:
    try:
        document = json.loads(content)
        found = document.get("format") if isinstance(document, dict) else None
        if isinstance(found, int) and found != FORMAT:
            raise UserError(
                "DataOfAnotherVersion",
                f"{field}: {folder} has format {found}, this version reads {FORMAT}; prepare it anew, or use the"
                " version that wrote it",
            )
        return Index.model_validate(document)
    except (ValueError, ValidationError) as error:
        raise UserError(
            "DataDamaged", f"{field}: {folder / INDEX} is not as `pipelinejob data prepare` writes it; prepare it anew"
        ) from error
