"""Documents out of files: whole texts, texts between separators, lines of JSON, rows of parquet and Arrow."""

import gzip
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import orjson

from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.data.prepare.arrow import record_batches
from pipelinejob_trainer.data.prepare.errors import BadDocumentError
from pipelinejob_trainer.data.prepare.inputs import Kind, Part

_CHUNK_BYTES = 2**22
_LARGEST_BYTES = 2**28  # of one document: more is a file whose separator was not named
_ROWS = 256  # of parquet, at a time
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Found = tuple[str, Any | BadDocumentError]
"""Where a document stands, for messages, and what it is."""


class Beside(NamedTuple):
    """What a row holds, and what it holds in another column; None where that is not there."""

    value: Any
    other: Any


def documents(part: Part, *, column: str, separator: str | None, beside: str | None = None) -> Iterator[Found]:
    """Read a part's documents, in order: texts, or what the column holds; None where it is empty.

    Where a column `beside` it is named, that is read too (`Beside`). Raises UserError for a file
    that cannot be read as what it is.
    """
    try:
        if part.kind is Kind.PARQUET:
            yield from _rows(part, column, beside)
        elif part.kind is Kind.ARROW:
            yield from _rows_of_batches(part, column, beside)
        elif part.kind is Kind.LINES:
            for offset, line in _between(part, b"\n"):
                if line.strip():
                    yield _where(part, offset), _of_json(line, column, beside)
        else:
            for offset, text in _between(part, None if separator is None else separator.encode()):
                yield _where(part, offset), _decoded(text)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            "DataUnreadable", f"--from {part.path}: cannot be read to its end: {error}; is it whole?"
        ) from error


def _where(part: Part, offset: int) -> str:
    return f"{part.path}, at byte {offset}" + (" of its content" if part.is_compressed else "")


def _of_json(line: bytes, column: str, beside: str | None) -> Any | BadDocumentError:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return BadDocumentError("no JSON", f"the line is no JSON ({error}); correct it")
    if not isinstance(value, dict):
        return BadDocumentError("no JSON object", "the line is no JSON object; write {...}, one a line")
    if column not in value:
        there = ", ".join(map(repr, value)) or "nothing"
        return BadDocumentError(
            f"no {column!r}",
            f"the line has no {column!r}, but {there}; name one of them with --text-column or --messages-column",
        )
    return value[column] if beside is None else Beside(value[column], value.get(beside))


def _decoded(text: bytes) -> str | BadDocumentError:
    try:
        return text.removeprefix(_BYTE_ORDER_MARK).decode()
    except UnicodeDecodeError as error:
        return BadDocumentError(
            "no UTF-8", f"the text is no UTF-8 ({error.reason} at its byte {error.start}); convert it with iconv"
        )


def _between(part: Part, separator: bytes | None) -> Iterator[tuple[int, bytes]]:
    """Return what stands between separators, with its place: all that begins within the part.

    What begins before the part's first separator belongs to the part before, unless this is the
    first.
    """
    with _opened(part) as file:
        offset = 0
        if not part.is_compressed and separator is not None and part.begin > 0:
            # A separator that ends just where the part begins lets a document begin there.
            offset = max(0, part.begin - len(separator))
            file.seek(offset)
        end = None if part.is_compressed else part.end
        for begin, text in _split(file, offset, separator):
            if end is not None and begin >= end:
                return
            if begin >= part.begin:
                yield begin, text


def _split(file: BinaryIO, offset: int, separator: bytes | None) -> Iterator[tuple[int, bytes]]:
    waiting = bytearray()
    searched = 0
    while chunk := file.read(_CHUNK_BYTES):
        waiting += chunk
        begin = 0
        while separator and (at := waiting.find(separator, max(begin, searched))) >= 0:
            yield offset + begin, bytes(waiting[begin:at])
            begin = at + len(separator)
        del waiting[:begin]
        offset += begin
        searched = max(0, len(waiting) - len(separator or b"") + 1)
        if len(waiting) > _LARGEST_BYTES:
            raise UserError(
                "DocumentTooLong",
                f"--from {file.name}: the document at byte {offset} has more than {_LARGEST_BYTES // 2**20} MiB; name"
                " what stands between documents with --separator, or split the file",
            )
    yield offset, bytes(waiting)


def _opened(part: Part) -> Any:
    return gzip.open(part.path, "rb") if part.is_compressed else open(part.path, "rb")  # noqa: PTH123


def _rows(part: Part, column: str, beside: str | None) -> Iterator[Found]:
    import pyarrow as pa  # noqa: PLC0415  # takes long to import
    from pyarrow import parquet  # noqa: PLC0415  # as above

    try:
        with parquet.ParquetFile(part.path) as file:
            there = file.schema_arrow.names
            _check_column(part, column, there)
            columns = [each for each in (column, beside) if each in there]
            row = sum(file.metadata.row_group(group).num_rows for group in range(part.begin))
            groups = list(range(part.begin, part.end))
            for batch in file.iter_batches(batch_size=_ROWS, row_groups=groups, columns=columns):
                for value in _values(batch, column, beside):
                    yield f"{part.path}, row {row}", value
                    row += 1
    except pa.ArrowException as error:
        raise UserError("DataUnreadable", f"--from {part.path}: cannot be read: {error}") from error


def _rows_of_batches(part: Part, column: str, beside: str | None) -> Iterator[Found]:
    row = 0
    for number, batch in enumerate(record_batches(part.path)):
        if number >= part.end:
            return
        if number >= part.begin:
            _check_column(part, column, batch.schema.names)
            for first in range(0, batch.num_rows, _ROWS):
                values = _values(batch.slice(first, _ROWS), column, beside)
                for place, value in enumerate(values, start=row + first):
                    yield f"{part.path}, row {place}", value
        row += batch.num_rows


def _values(batch: Any, column: str, beside: str | None) -> list[Any]:
    """Return what a batch of rows holds, without the keys that stand in a row only because others have them."""
    values = [_own_keys(each) for each in batch.column(column).to_pylist()]
    if beside is None:
        return values
    others = batch.column(beside).to_pylist() if beside in batch.schema.names else [None] * batch.num_rows
    return [Beside(value, _own_keys(other)) for value, other in zip(values, others, strict=True)]


def _own_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _own_keys(each) for key, each in value.items() if each is not None}
    return [_own_keys(each) for each in value] if isinstance(value, list) else value


def _check_column(part: Part, column: str, there: Sequence[str]) -> None:
    if column not in there:
        raise UserError(
            "NoColumn",
            f"--from {part.path}: has no column {column!r}, but {', '.join(map(repr, there))}; name one of them with"
            " --text-column or --messages-column",
        )
