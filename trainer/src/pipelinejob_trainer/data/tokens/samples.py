"""The sequences of prepared tokens, numbered: sources take turns by weight, each in shuffled epochs of its own.

Which sequence is number n follows from the sources, the seed and n alone.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from pipelinejob.spec.workload import Packing, TokenSource
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.base.seeds import mix
from pipelinejob_trainer.data.position import TextIdentity
from pipelinejob_trainer.data.shuffling import shuffled
from pipelinejob_trainer.data.tokens.folder import TokenFolder
from pipelinejob_trainer.data.tokens.mixture import turns
from pipelinejob_trainer.data.tokens.packing import Documents, Packed, Pieces, Row, packed

_PARTS = 20  # of a source's documents; the last one is what is evaluated on, where nothing else is given


class Part(StrEnum):
    """Which documents of each source are read."""

    ALL = "all"
    TRAINING = "training"  # all but the last twentieth
    EVALUATION = "evaluation"  # that


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How sources are read. `vocabulary_size` is the model's, None where it is not known."""

    packing: Packing
    sequence_length: int
    seed: int
    vocabulary_size: int | None = None
    part: Part = Part.ALL


class TokenSamples:
    """The sequences of some sources."""

    def __init__(self, sources: Sequence[TokenSource], reading: Reading, *, field: str) -> None:
        """Open the sources, which `field` of the spec names.

        Raises UserError where one cannot be read or is not intact, where they were made by
        different tokenizers, or by one that the model is too small for, or where one is too short.
        """
        self._sources = tuple(sources)
        self._reading = reading
        _refuse_twins(sources, field)
        self.folders = tuple(
            TokenFolder(Path(source.path), field=f"{field}[{number}].path") for number, source in enumerate(sources)
        )
        _check_tokenizers(self.folders, reading.vocabulary_size, field)
        self._packed = tuple(map(self._opened, self.folders))
        self._turns = turns([source.weight for source in sources])

    def held_out(self, sources: Sequence[TokenSource] | None) -> "TokenSamples":
        """Return what to evaluate on: those sources, or the part of these that is not trained on.

        Raises UserError as the constructor does.
        """
        if sources is None:
            return TokenSamples(self._sources, replace(self._reading, part=Part.EVALUATION), field="spec.data.tokens")
        samples = TokenSamples(sources, replace(self._reading, part=Part.ALL), field="spec.evaluation.tokens")
        _check_tokenizers((*self.folders, *samples.folders), self._reading.vocabulary_size, "spec.evaluation.tokens")
        return samples

    def sample(self, number: int) -> Row:
        """Return sequence `number`, counted from 0."""
        source, taken = self._turns.turn(number)
        documents = self._packed[source]
        epoch, place = divmod(taken, documents.size)
        key = mix(self._reading.seed, epoch, source)
        return documents.row(shuffled(place, documents.size, key=mix(key, 1)), epoch_key=key)

    def identity(self) -> TextIdentity:
        """Return what identifies the sources, in this mixture and packing; no shard is read for it."""
        contents = [folder.index.content_sha256 for folder in self.folders]
        parts = (contents, self._turns.shares, self._reading.packing, self._reading.part)
        return TextIdentity(
            bytes=sum(folder.index.tokens * folder.index.token_bytes for folder in self.folders),
            tokens=sum(folder.index.tokens for folder in self.folders),
            sha256=hashlib.sha256(json.dumps(parts).encode()).hexdigest(),
        )

    def describe(self, num_samples: int) -> Iterator[str]:
        """Return a line for each source: its share, and how often `num_samples` samples go through it."""
        taken = self._turns.taken(num_samples)
        rows = zip(self._sources, self._packed, self._turns.shares, taken, strict=True)
        for source, documents, share, its in rows:
            filled = f", {documents.filled:.1%} filled" if isinstance(documents, Pieces) else ""
            yield (
                f"{source.path}: {share / sum(self._turns.shares):.1%} of the sequences, {its / documents.size:.2f}"
                f" epochs of {documents.size} sequences ({self._reading.packing}{filled})"
            )
            if isinstance(documents, Pieces) and documents.num_cut:
                yield (
                    f"{source.path}: {documents.num_cut} documents are longer than {self._reading.sequence_length}"
                    " tokens and are cut: what comes after a cut, an answer's end too, does not see what came before"
                    " it; a larger spec.data.sequenceLength cuts fewer"
                )

    def _opened(self, folder: TokenFolder) -> Packed:
        documents = _part(folder, self._reading)
        opened = packed(documents, self._reading.packing, self._reading.sequence_length)
        if opened.size == 0:
            raise UserError(
                "DataTooShort",
                f"spec.data.tokens: {folder.path} has {documents.last - documents.first} documents of"
                f" {documents.end - documents.begin} tokens ({self._reading.part}), too few for one sequence of"
                f" {self._reading.sequence_length}; give more text, evaluation.tokens, or a smaller"
                " spec.data.sequenceLength",
            )
        return opened


def _part(folder: TokenFolder, reading: Reading) -> Documents:
    """Return the documents to read: all, or all but the last twentieth, or that."""
    count = folder.index.documents
    if reading.part is Part.ALL:
        return Documents(folder, 0, count, 0, folder.index.tokens)
    ends = folder.document_ends()
    first = count - max(1, count // _PARTS)
    border = int(ends[first - 1]) if first > 0 else 0
    if reading.part is Part.TRAINING:
        return Documents(folder, 0, first, 0, border)
    return Documents(folder, max(0, first), count, border, folder.index.tokens)


def _refuse_twins(sources: Sequence[TokenSource], field: str) -> None:
    seen: set[str] = set()
    for source in sources:
        if source.path in seen:
            raise UserError(
                "DataTwice", f"{field}: {source.path} is named twice; name it once, with the sum of the weights"
            )
        seen.add(source.path)


def _check_tokenizers(folders: Sequence[TokenFolder], vocabulary_size: int | None, field: str) -> None:
    first = folders[0]
    for folder in folders:
        index = folder.index
        if index.tokenizer.sha256 != first.index.tokenizer.sha256:
            raise UserError(
                "TokenizersDiffer",
                f"{field}: {folder.path} was made by another tokenizer ({index.tokenizer.sha256[:12]}…) than"
                f" {first.path} ({first.index.tokenizer.sha256[:12]}…); prepare both with the model's own",
            )
        if vocabulary_size is not None and index.largest_token >= vocabulary_size:
            raise UserError(
                "VocabularyTooSmall",
                f"{field}: {folder.path} has token {index.largest_token}, of a tokenizer with"
                f" {index.tokenizer.vocabulary_size} tokens, but the model's vocabulary ends at {vocabulary_size - 1};"
                " prepare the data with the model's own tokenizer, or give a built-in model (gpt, decoder) a"
                f" vocabularySize of {index.tokenizer.vocabulary_size} or more",
            )
