"""The files to read, and how they are cut into pieces of work.

The pieces follow from the files alone, not from how many processes share them, so the same files
give the same shards.
"""

import glob
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path

from pipelinejob.base.values import Value
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.data.prepare.arrow import record_batches, saved_files
from pipelinejob_trainer.data.tokens.index import InputFile

_SMALLEST_PIECE, _LARGEST_PIECE = 2**20, 2**28  # bytes
_PIECES = 64  # are aimed at


class Kind(StrEnum):
    """How a file holds documents."""

    TEXT = "text"
    LINES = "lines"  # of JSON
    PARQUET = "parquet"
    ARROW = "arrow"


class Part(Value):
    """A part of a file: bytes [begin, end) of lines, row groups [begin, end) of parquet, batches of Arrow, else all."""

    path: str
    kind: Kind
    is_compressed: bool
    begin: int
    end: int


class Piece(Value):
    """Work for one process at a time: what it reads goes into shards of its own."""

    number: int
    parts: tuple[Part, ...]
    bytes: int


_KINDS = {".jsonl": Kind.LINES, ".ndjson": Kind.LINES, ".parquet": Kind.PARQUET, ".txt": Kind.TEXT, ".md": Kind.TEXT}
_ARROW = ".arrow"  # in folders: those of a saved data set alone
_UNREAD = {
    ".json": "is JSON, not one document a line; write it so: jq -c '.[]' < FILE > FILE.jsonl",
    ".csv": "is CSV; write it as parquet or jsonl, with pandas or datasets (docs/data.md)",
    ".tsv": "is CSV; write it as parquet or jsonl, with pandas or datasets (docs/data.md)",
    ".zst": "is compressed with zstd; use gzip, or unpack it",
    ".bz2": "is compressed with bzip2; use gzip, or unpack it",
    ".xz": "is compressed with xz; use gzip, or unpack it",
    ".zip": "is an archive; unpack it",
    ".tar": "is an archive; unpack it",
}


def found_files(given: Sequence[str]) -> list[Path]:
    """Return the files that paths, globs and folders name, in the order given; those of each sorted.

    Raises UserError for what names none, names one twice, or is no kind that is read.
    """
    files: dict[Path, str] = {}
    for name in given:
        for file in _named(name):
            if file in files:
                raise UserError(
                    "DataTwice", f"--from {name}: {file} is named by --from {files[file]} too; name each file once"
                )
            files[file] = name
            kind_of(file)
    return list(files)


def kind_of(file: Path) -> tuple[Kind, bool]:
    """Return how a file holds documents, and whether it is compressed, by its name.

    Raises UserError for what is not read.
    """
    suffixes = file.suffixes
    is_compressed = bool(suffixes) and suffixes[-1] == ".gz"
    suffix = (suffixes[-2] if is_compressed and len(suffixes) > 1 else "" if is_compressed else file.suffix).lower()
    why = _UNREAD.get(suffix)
    if why is None and is_compressed and suffix in (".parquet", _ARROW):
        why = f"is {suffix.removeprefix('.')} within gzip; unpack it"
    if why is not None:
        raise UserError("DataUnreadable", f"--from {file}: {why}")
    return Kind.ARROW if suffix == _ARROW else _KINDS.get(suffix, Kind.TEXT), is_compressed


def as_inputs(files: Sequence[Path]) -> tuple[InputFile, ...]:
    """Return the files as they are now."""
    stats = [(file, file.stat()) for file in files]
    return tuple(InputFile(path=str(file), bytes=stat.st_size, modified_ns=stat.st_mtime_ns) for file, stat in stats)


def pieces(files: Sequence[InputFile], *, separator: str | None) -> list[Piece]:
    """Cut files into pieces of about a 64th of all, and between 1 and 256 MiB."""
    size = max(_SMALLEST_PIECE, min(_LARGEST_PIECE, sum(file.bytes for file in files) // _PIECES))
    found: list[Piece] = []
    parts: list[Part] = []
    weight = 0
    for file in files:
        for part, its in _parts(file, size, separator):
            if parts and weight + its > size:
                found.append(Piece(number=len(found), parts=tuple(parts), bytes=weight))
                parts, weight = [], 0
            parts.append(part)
            weight += its
    if parts:
        found.append(Piece(number=len(found), parts=tuple(parts), bytes=weight))
    return found


def overlaps_itself(separator: bytes) -> bool:
    """Tell whether a separator may begin within itself, so that where it is depends on where one began to look."""
    return any(separator.startswith(separator[shift:]) for shift in range(1, len(separator)))


def _named(name: str) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        saved = saved_files(path)
        if saved is not None:
            return saved
        files = sorted(file for file in path.rglob("*") if file.is_file() and _is_data(file, path))
        if not files:
            raise UserError(
                "DataNotFound",
                f"--from {name}: the folder holds no file that ends with {', '.join(_KINDS)}, or these and .gz, and"
                " is no data set that datasets has saved; name the files",
            )
        return files
    matches = [each for each in map(Path, sorted(glob.glob(name, recursive=True))) if each.is_file()]  # noqa: PTH207
    if path.is_file():  # a name may have brackets in it
        return [path]
    if not matches:
        raise UserError("DataNotFound", f"--from {name}: no such file or folder here; correct the path")
    return matches


def _is_data(file: Path, folder: Path) -> bool:
    inner = file.suffixes[-2:-1] if file.suffix == ".gz" else file.suffixes[-1:]
    is_hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return bool(inner) and inner[0].lower() in _KINDS and not is_hidden


def _parts(file: InputFile, size: int, separator: str | None) -> Iterator[tuple[Part, int]]:
    kind, is_compressed = kind_of(Path(file.path))
    if kind in (Kind.PARQUET, Kind.ARROW):
        weights = _row_groups(file) if kind is Kind.PARQUET else [each.nbytes for each in record_batches(file.path)]
        for begin, end in _stretches(weights, size):
            part = Part(path=file.path, kind=kind, is_compressed=False, begin=begin, end=end)
            yield part, sum(weights[begin:end])
        return
    is_cut = kind is Kind.LINES or (separator is not None and not overlaps_itself(separator.encode()))
    step = size if is_cut and not is_compressed else max(1, file.bytes)
    for begin in range(0, file.bytes, step):
        end = min(begin + step, file.bytes)
        part = Part(path=file.path, kind=kind, is_compressed=is_compressed, begin=begin, end=end)
        yield part, end - begin


def _row_groups(file: InputFile) -> list[int]:
    import pyarrow as pa  # noqa: PLC0415  # takes long to import
    from pyarrow import parquet  # noqa: PLC0415  # as above

    try:
        with parquet.ParquetFile(file.path) as opened:
            return [opened.metadata.row_group(group).total_byte_size for group in range(opened.metadata.num_row_groups)]
    except (OSError, pa.ArrowException) as error:
        raise UserError("DataUnreadable", f"--from {file.path}: is no parquet file: {error}") from error


def _stretches(weights: Sequence[int], size: int) -> Iterator[tuple[int, int]]:
    """Cut groups of rows into stretches of about `size` bytes, of one group at least."""
    begin = weight = 0
    for group, its in enumerate(weights):
        if group > begin and weight + its > size:
            yield begin, group
            begin, weight = group, 0
        weight += its
    if begin < len(weights):
        yield begin, len(weights)
