"""One piece of the input made into shards. Each process does one piece at a time; none needs another."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pipelinejob.base.values import Value
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.data.prepare.chat import ChatTemplate
from pipelinejob_trainer.data.prepare.errors import BadDocumentError
from pipelinejob_trainer.data.prepare.inputs import Part, Piece
from pipelinejob_trainer.data.prepare.reading import Beside, Found, documents
from pipelinejob_trainer.data.prepare.tokenizer import Tokenizer
from pipelinejob_trainer.data.prepare.writer import ShardWriter
from pipelinejob_trainer.data.tokens.index import Settings, ShardRecord

_TOGETHER = 64  # texts that the tokenizer is given at once
_SHARD_TOKENS = 2**28
_SMALL_VOCABULARY = 2**16  # its tokens fit into two bytes

EMPTY, UNANSWERED = "empty", "without an answer that counts"


class PieceRecord(Value):
    """What came of a piece."""

    shards: tuple[ShardRecord, ...]
    largest_token: int
    stops: int  # counted tokens that end texts
    left_out: dict[str, int]


Tick = Callable[[int, int], None]  # is told of documents and tokens since it was told last


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """What every piece is made with. `scratch` is where files are written before they are put into `target`."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    settings: Settings
    target: Path
    scratch: Path

    @property
    def token_bytes(self) -> int:
        """The bytes of a token."""
        return 2 if self.tokenizer.identity.vocabulary_size <= _SMALL_VOCABULARY else 4

    def make(self, piece: Piece, tick: Tick) -> PieceRecord:
        """Write a piece's shards.

        Raises UserError for a document that cannot be used, FolderError for a folder that cannot
        be written.
        """
        making = _Making(self, piece)
        try:
            for part in piece.parts:
                self._read(part, making, tick)
        except BaseException:
            making.abandon()
            raise
        return making.finish()

    def _read(self, part: Part, making: "_Making", tick: Tick) -> None:
        settings = self.settings
        found = documents(part, column=settings.column, separator=settings.separator, beside=settings.tools_column)
        while some := list(islice(found, _TOGETHER)):
            before = making.documents, making.tokens
            for tokens, counts in self._encoded(some, making.left_out):
                making.add(tokens, counts)
            tick(making.documents - before[0], making.tokens - before[1])

    def _encoded(self, some: list[Found], left_out: Counter[str]) -> Iterator[tuple[list[int], list[bool] | None]]:
        if self.template is not None:
            yield from self._conversations(some, left_out)
            return
        texts = [(where, text) for where, value in some if (text := self._text(where, value, left_out))]
        if not texts:
            return
        try:
            encoded = self.tokenizer.documents([text for _, text in texts])
        except BadDocumentError:
            encoded = [self._alone(where, text, left_out) for where, text in texts]
        yield from ((tokens, None) for tokens in encoded if len(tokens) > 1)
        left_out[EMPTY] += sum(len(tokens) == 1 for tokens in encoded)

    def _text(self, where: str, value: Any, left_out: Counter[str]) -> str | None:
        if value is None or value == "":
            left_out[EMPTY] += 1
            return None
        if isinstance(value, str):
            return value
        bad = value if isinstance(value, BadDocumentError) else _no_text(value)
        self._leave_out(where, bad, left_out)
        return None

    def _alone(self, where: str, text: str, left_out: Counter[str]) -> list[int]:
        try:
            return self.tokenizer.documents([text])[0]
        except BadDocumentError as error:
            self._leave_out(where, error, left_out)
            return []

    def _conversations(self, some: list[Found], left_out: Counter[str]) -> Iterator[tuple[list[int], list[bool]]]:
        assert self.template is not None
        for where, found in some:
            value, tools = found if isinstance(found, Beside) else (found, None)
            if value is None or value == []:
                left_out[EMPTY] += 1
                continue
            try:
                if isinstance(value, BadDocumentError):
                    raise value
                conversation = self.template.encode(value, tools)
            except BadDocumentError as error:
                self._leave_out(where, error, left_out)
                continue
            if conversation is None:
                left_out[UNANSWERED] += 1
                continue
            yield conversation

    def _leave_out(self, where: str, error: BadDocumentError, left_out: Counter[str]) -> None:
        if not self.settings.skips_bad:
            raise UserError(
                "BadDocument", f"--from {where}: {error}; or leave such documents out with --skip-bad"
            ) from error
        left_out[error.what] += 1


class _Making:
    """The shards of a piece so far."""

    def __init__(self, workshop: Workshop, piece: Piece) -> None:
        self._workshop = workshop
        self._piece = piece
        self._done: list[ShardRecord] = []
        self._stops = self._largest = 0
        self.documents = self.tokens = 0
        self.left_out: Counter[str] = Counter()
        self._writer = self._begin()

    def add(self, tokens: list[int], counts: list[bool] | None) -> None:
        if self._writer.documents and self._writer.tokens + len(tokens) > _SHARD_TOKENS:
            self._close()
            self._writer = self._begin()
        self._writer.add(tokens, counts)
        self.documents += 1
        self.tokens += len(tokens)
        end = self._workshop.tokenizer.end_of_text
        if counts is None:
            self._stops += tokens[-1] == end
        else:
            self._stops += sum(token == end and counted for token, counted in zip(tokens, counts, strict=True))

    def finish(self) -> PieceRecord:
        self._close()
        return PieceRecord(
            shards=tuple(self._done),
            largest_token=self._largest,
            stops=self._stops,
            left_out=dict(sorted((+self.left_out).items())),
        )

    def abandon(self) -> None:
        self._writer.drop()

    def _begin(self) -> ShardWriter:
        scratch = self._workshop.scratch / f"shard-{self._piece.number:05}"
        return ShardWriter(
            scratch, token_bytes=self._workshop.token_bytes, has_marks=self._workshop.template is not None
        )

    def _close(self) -> None:
        if not self._writer.documents:
            self._writer.drop()
            return
        self._largest = max(self._largest, self._writer.largest_token)
        name = f"tokens-{self._piece.number:05}-{len(self._done):03}.bin"
        self._done.append(self._writer.finish(self._workshop.target / name))


def _no_text(value: object) -> BadDocumentError:
    return BadDocumentError(
        "no text", f"holds a {type(value).__name__}, not a text; name the column of the text with --text-column"
    )
