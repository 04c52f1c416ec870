"""The folder that tokens are written to: whose it is, what is done in it, and when it is complete.

    DIR/.preparing/plan.json          what is being prepared, written first
                  piece-00000.json    what came of a piece, once its shards are in DIR
                  shard-00000         a shard in the making
        index.json                    written when all pieces are there; then .preparing goes

Each of these is written beside its place and renamed, so whoever is killed at whatever moment
leaves pieces that are done, and pieces that are not.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from pipelinejob.base.values import Value
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.data.prepare.errors import FolderError
from pipelinejob_trainer.data.prepare.inputs import Piece
from pipelinejob_trainer.data.prepare.tokenizer import Tokenizer
from pipelinejob_trainer.data.prepare.work import PieceRecord
from pipelinejob_trainer.data.prepare.writer import cannot_write, write_whole
from pipelinejob_trainer.data.tokens.folder import TokenFolder
from pipelinejob_trainer.data.tokens.index import (
    FORMAT,
    INDEX,
    PREPARING,
    TOKENIZER,
    Index,
    InputFile,
    Settings,
    TokenizerIdentity,
    read_index,
)

_PLAN = "plan.json"
_WAY_OUT = "begin anew with --fresh, which deletes it, or choose another folder with --to"


class Preparation(Value):
    """What is prepared: the same again gives the same shards."""

    format: int = FORMAT
    tokenizer: TokenizerIdentity
    settings: Settings
    inputs: tuple[InputFile, ...]


class PreparedFolder:
    """A folder, locked by whoever prepares it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.scratch = path / PREPARING

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder, made if it is not there.

        Raises FolderError where it cannot be made, or another process holds it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as error:
            raise FolderError(
                f"--to {self.path}: another `pipelinejob data prepare` is at work there; wait for it, or choose another"
            ) from error
        finally:
            os.close(descriptor)

    def clear(self) -> None:
        """Delete what preparing wrote, and nothing where it wrote nothing.

        The folder is marked as begun first, and that goes last, so whoever is killed meanwhile can
        do it again.
        """
        plan = self.scratch / _PLAN
        shards = list(self.path.glob("tokens-*.bin"))
        try:
            if (self.path / INDEX).exists() and shards:
                self.scratch.mkdir(exist_ok=True)
                plan.touch()
            if plan.exists():
                (self.path / INDEX).unlink(missing_ok=True)
                for shard in shards:
                    shard.unlink()
                shutil.rmtree(self.path / TOKENIZER, ignore_errors=True)
                shutil.rmtree(self.scratch)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def finished(self, wanted: Preparation) -> Index | None:
        """Return the index if the folder holds just what is wanted, None if it is not there yet.

        Raises FolderError where it holds something else, UserError where it is damaged.
        """
        if (self.path / INDEX).exists():
            index = read_index(self.path, field="--to")
            _refuse_other(self.path, _of_index(index), wanted)
            TokenFolder(self.path, field="--to")
            shutil.rmtree(self.scratch, ignore_errors=True)
            return index
        others = [each.name for each in self.path.iterdir() if each.name != PREPARING]
        if others and not (self.scratch / _PLAN).exists():
            raise FolderError(f"--to {self.path}: holds something else ({min(others)}); choose another folder")
        return None

    def begin(self, wanted: Preparation) -> None:
        """Begin, or go on with what was begun.

        Raises FolderError where something else was begun.
        """
        plan = self.scratch / _PLAN
        try:
            self.scratch.mkdir(exist_ok=True)
            begun = plan.read_text(encoding="utf-8") if plan.exists() else None
        except OSError as error:
            raise cannot_write(self.scratch, error) from error
        if begun is None or not any(self.scratch.glob("piece-*.json")):
            write_whole(plan, wanted.model_dump_json(by_alias=True), scratch=self.scratch / "plan.new")
            return
        try:
            _refuse_other(self.path, Preparation.model_validate_json(begun), wanted)
        except ValidationError as error:
            raise FolderError(f"--to {self.path}: was begun by another version; {_WAY_OUT}") from error

    def done(self, piece: Piece) -> PieceRecord | None:
        """Return what came of a piece, if it is done and its shards are there."""
        try:
            record = PieceRecord.model_validate_json(self._record(piece).read_bytes())
        except (OSError, ValidationError):
            return None
        sizes = [(self.path / shard.name, shard.bytes) for shard in record.shards]
        return record if all(file.is_file() and file.stat().st_size == size for file, size in sizes) else None

    def keep(self, piece: Piece, record: PieceRecord) -> None:
        """Write down that a piece is done."""
        content = record.model_dump_json(by_alias=True)
        write_whole(self._record(piece), content, scratch=self.scratch / f"record-{piece.number:05}")

    def finish(self, wanted: Preparation, records: list[PieceRecord], tokenizer: Tokenizer, token_bytes: int) -> Index:
        """Write the index: from now on the folder can be trained on."""
        left_out: dict[str, int] = {}
        for record in records:
            for what, count in record.left_out.items():
                left_out[what] = left_out.get(what, 0) + count
        index = Index(
            tokenizer=wanted.tokenizer,
            settings=wanted.settings,
            inputs=wanted.inputs,
            token_bytes=token_bytes,
            largest_token=max((record.largest_token for record in records), default=0),
            stops=sum(record.stops for record in records),
            shards=tuple(shard for record in records for shard in record.shards),
            left_out=dict(sorted(left_out.items())),
        )
        if not index.shards:
            raise UserError("NoDocuments", f"--from: no document is left to train on ({said(left_out)}); give others")
        try:
            tokenizer.copy_to(self.path / TOKENIZER)
        except OSError as error:
            raise cannot_write(self.path / TOKENIZER, error) from error
        content = index.model_dump_json(by_alias=True, indent=1) + "\n"
        write_whole(self.path / INDEX, content, scratch=self.scratch / "index.new")
        shutil.rmtree(self.scratch, ignore_errors=True)
        return index

    def _record(self, piece: Piece) -> Path:
        return self.scratch / f"piece-{piece.number:05}.json"


def said(left_out: dict[str, int]) -> str:
    """Return in words what was left out."""
    return ", ".join(f"{count:,} {what}" for what, count in left_out.items()) or "the files hold none"


def _of_index(index: Index) -> Preparation:
    return Preparation(format=index.format, tokenizer=index.tokenizer, settings=index.settings, inputs=index.inputs)


def _refuse_other(path: Path, there: Preparation, wanted: Preparation) -> None:
    if there == wanted:
        return
    what = (
        "by another tokenizer"
        if there.tokenizer != wanted.tokenizer
        else f"with other settings ({_different(there.settings, wanted.settings)})"
        if there.settings != wanted.settings
        else f"from other files, or files as they were before ({_other_file(there.inputs, wanted.inputs)})"
    )
    raise FolderError(f"--to {path}: holds what was prepared {what}; {_WAY_OUT}")


def _different(there: Settings, wanted: Settings) -> str:
    before, after = there.dump(), wanted.dump()
    names = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    return ", ".join(f"{name} was {before.get(name, 'unset')}, is {after.get(name, 'unset')}" for name in names)


def _other_file(there: tuple[InputFile, ...], wanted: tuple[InputFile, ...]) -> str:
    before, after = {each.path: each for each in there}, {each.path: each for each in wanted}
    different = next((name for name in {**before, **after} if before.get(name) != after.get(name)), None)
    return "their order" if different is None else different
