"""Preparing from end to end: what is asked, what is there already, the work shared, the index written."""

import sys
from dataclasses import dataclass
from pathlib import Path

from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.data.prepare.chat import TOOLS, ChatTemplate
from pipelinejob_trainer.data.prepare.folder import Preparation, PreparedFolder, said
from pipelinejob_trainer.data.prepare.inputs import Kind, Piece, as_inputs, found_files, kind_of, pieces
from pipelinejob_trainer.data.prepare.processes import made
from pipelinejob_trainer.data.prepare.progress import Progress
from pipelinejob_trainer.data.prepare.tokenizer import Tokenizer
from pipelinejob_trainer.data.prepare.work import PieceRecord, Tick, Workshop
from pipelinejob_trainer.data.tokens.index import Index, Settings

_TEXT = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to prepare, as asked; None is what was left out."""

    sources: tuple[str, ...]
    tokenizer: Path
    target: Path
    workers: int
    text_column: str | None = None
    messages_column: str | None = None
    separator: str | None = None
    end_of_text: str | None = None
    skips_bad: bool = False
    is_fresh: bool = False


def prepare(request: Request) -> None:
    """Prepare a folder of tokens, or go on with it; print what came of it.

    Raises UserError for what cannot be prepared, FolderError for a folder that cannot be written.
    """
    files = found_files(request.sources)
    _refuse_idle_options(request, {kind_of(file)[0] for file in files})
    folder = PreparedFolder(request.target)
    tokenizer = Tokenizer(request.tokenizer, end_of_text=request.end_of_text)
    template = ChatTemplate(tokenizer, request.tokenizer) if request.messages_column else None
    wanted = Preparation(tokenizer=tokenizer.identity, settings=_settings(request, template), inputs=as_inputs(files))
    with folder.locked():
        if request.is_fresh:
            folder.clear()
        index = folder.finished(wanted)
        if index is not None:
            sys.stdout.write(f"{request.target}: prepared already; begin anew with --fresh\n")
        else:
            folder.begin(wanted)
            workshop = Workshop(
                tokenizer=tokenizer,
                template=template,
                settings=wanted.settings,
                target=folder.path,
                scratch=folder.scratch,
            )
            records = _work(request, wanted, folder, workshop)
            index = folder.finish(wanted, records, tokenizer, workshop.token_bytes)
    sys.stdout.write("".join(f"{line}\n" for line in summary(request.target, index)))


def summary(path: Path, index: Index) -> list[str]:
    """Return what a folder holds, in a few lines."""
    width = 8 * index.token_bytes
    lines = [
        f"{path}: {index.documents:,} documents, {index.tokens:,} tokens of {width} bits, {len(index.shards):,} shards",
    ]
    if index.settings.is_chat:
        lines.append(f"targets that count: {index.counted:,} ({index.counted / index.tokens:.1%}), what assistants say")
        if index.stops == 0 and index.tokenizer.end_of_text is not None:
            lines.append(
                "warning: no answer ends with the token that ends texts, so a model that is trained on it does not"
                " learn to stop; look at the chat template, or name the token with --end-of-text"
            )
    if index.left_out:
        lines.append(f"left out: {said(index.left_out)}")
    lines.append(
        f"to train on it: spec.data.tokens: [{{path: {path}}}], and a vocabularySize of"
        f" {index.tokenizer.vocabulary_size} or more"
    )
    return lines


def _settings(request: Request, template: ChatTemplate | None) -> Settings:
    return Settings(
        column=request.messages_column or request.text_column or _TEXT,
        is_chat=template is not None,
        chat_template_sha256=None if template is None else template.sha256,
        tools_column=None if template is None else TOOLS,
        separator=request.separator,
        end_of_text=request.end_of_text,
        skips_bad=request.skips_bad,
    )


def _refuse_idle_options(request: Request, kinds: set[Kind]) -> None:
    """Refuse options that would do nothing."""
    has_columns = bool(kinds - {Kind.TEXT})
    if request.messages_column and Kind.TEXT in kinds:
        raise UserError(
            "BadOption", "--messages-column: text files have no messages; give jsonl or parquet, or leave it out"
        )
    if request.text_column and not has_columns:
        raise UserError(
            "BadOption", "--text-column: text files have no columns; give jsonl or parquet, or leave it out"
        )
    if request.text_column and request.messages_column:
        raise UserError("BadOption", "--text-column and --messages-column: a document is one or the other; give one")
    if request.separator == "":
        raise UserError("BadOption", "--separator: is empty; name what stands between documents, or leave it out")
    if request.separator is not None and Kind.TEXT not in kinds:
        raise UserError("BadOption", "--separator: only text files are split; jsonl and parquet have a document a row")


def _work(request: Request, wanted: Preparation, folder: PreparedFolder, workshop: Workshop) -> list[PieceRecord]:
    """Make the pieces that are not there yet."""
    planned = pieces(wanted.inputs, separator=request.separator)
    records = {piece.number: record for piece in planned if (record := folder.done(piece)) is not None}
    todo = [piece for piece in planned if piece.number not in records]
    if records:
        sys.stderr.write(f"going on: {len(records)} of {len(planned)} pieces are done\n")
    total = sum(piece.bytes for piece in planned)
    progress = Progress(total, done_bytes=total - sum(piece.bytes for piece in todo))

    def make(piece: Piece, tick: Tick) -> PieceRecord:
        record = workshop.make(piece, tick)
        folder.keep(piece, record)  # here, by whoever made it: nothing is lost when the first process is killed
        return record

    try:
        for piece, record in made(todo, make, workers=request.workers, look=progress.show):
            records[piece.number] = record
            progress.finish_piece(piece.bytes)
    finally:
        progress.end()
    return [records[piece.number] for piece in planned]
