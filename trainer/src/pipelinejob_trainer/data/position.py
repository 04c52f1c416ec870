"""The position in the training text: how many samples a run has consumed, and in which order.

A sample is one sequence. Which sequence comes n-th follows from the text, the sequence length and
the seed alone, so a count of samples is a run's whole position: batch, micro-batches, replicas and
schedule may change with each resume. In another order the count means nothing.
"""

import hashlib
from collections.abc import Iterator

import torch

from pipelinejob.base.values import Value
from pipelinejob.spec.training import OnDataChange
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.communication.gang import Gang
from pipelinejob_trainer.data.text import Readable

_PIECES, _PIECE_BYTES = 256, 4096  # few enough for a volume on which each read takes long
_ROW_BYTES = 256


class TextIdentity(Value):
    """What identifies a text: its length, and a digest of pieces of it.

    Of prepared tokens, whose number is given then, the digest is of their checksums, mixture and
    packing.
    """

    bytes: int
    sha256: str
    tokens: int | None = None


class Order(Value):
    """What determines the order of samples."""

    text: TextIdentity
    sequence_length: int
    seed: int


class TextPosition(Value):
    """The first `samples` samples of an order have been consumed."""

    samples: int
    order: Order


def identity_of(text: Readable) -> TextIdentity:
    """Read what identifies a text: all of it, or 256 evenly spaced pieces of 4 KiB above 1 MiB."""
    digest = hashlib.sha256()
    for begin in _pieces(text.size):
        digest.update(text.read(begin, min(_PIECE_BYTES, text.size - begin)).tobytes())
    return TextIdentity(bytes=text.size, sha256=digest.hexdigest())


def _pieces(size: int) -> Iterator[int]:
    if size <= _PIECES * _PIECE_BYTES:
        yield from range(0, size, _PIECE_BYTES)
        return
    yield from ((size - _PIECE_BYTES) * number // (_PIECES - 1) for number in range(_PIECES))


def agreed_text(gang: Gang, seen: TextIdentity | None, *, field: str) -> TextIdentity:
    """Return, on every rank, the text that all reading ranks see; None: this rank reads none.

    Raises UserError, on all of them, when two ranks see different texts: targets would not match
    inputs.
    """
    found = [(rank, each) for rank, row in enumerate(gang.gather(_row(seen))) if (each := _read(row)) is not None]
    (first, expected), *others = found
    for rank, other in others:
        if other != expected:
            raise UserError(
                "DataDiffers",
                f"{field}: {_rank(gang, rank)} sees a text of {_described(other)}, {_rank(gang, first)} one of"
                f" {_described(expected)}; give every first and last stage the same files",
            )
    return expected


def samples_before(
    found: TextPosition | None, order: Order, *, checkpoint_step: int, on_change: OnDataChange
) -> tuple[int, str]:
    """Return how many samples a resumed run has consumed, and a line for the log.

    A position that is None, or in another order, cannot be used. Raises UserError then, unless
    `on_change` restarts.
    """
    if found is not None and found.order == order:
        return found.samples, f"{found.samples} samples into the text"
    why = _why_not(found, order)
    if on_change is OnDataChange.START_ANEW:
        return 0, f"at the beginning of the text, as spec.checkpoint.onDataChange says: {why}"
    raise UserError(
        "DataChanged",
        f"spec.data: the checkpoint of step {checkpoint_step} cannot be resumed with this text: {why}; put back what"
        " it was trained on, or set spec.checkpoint.onDataChange to StartAnew: weights, optimiser and step go on, the"
        " text is read from its beginning",
    )


def _why_not(found: TextPosition | None, order: Order) -> str:
    if found is None:
        return "it was written by a version that did not count samples"
    return " and ".join(_differences(found.order, order))


def _differences(was: Order, now: Order) -> Iterator[str]:
    if was.sequence_length != now.sequence_length:
        yield f"sequenceLength was {was.sequence_length} and is {now.sequence_length}"
    if (was.text.tokens is None) != (now.text.tokens is None):
        yield f"it was trained on {_size(was.text)} and would go on with {_size(now.text)}"
    elif was.text.tokens is not None and was.text != now.text:
        yield (
            f"it was trained on {_size(was.text)} and would go on with {_size(now.text)}, whose content, weights,"
            " packing or held-out part is another (an evaluation without tokens takes the last twentieth of the"
            " documents)"
        )
    elif was.text.bytes != now.text.bytes:
        yield (
            f"the training text had {was.text.bytes} bytes and has {now.text.bytes} (an evaluation without paths takes"
            " the last twentieth of it)"
        )
    elif was.text != now.text:
        yield f"the training text has other content, at the same {now.text.bytes} bytes"
    if was.seed != now.seed:
        yield f"spec.training.seed was {was.seed} and is {now.seed}"


def _row(seen: TextIdentity | None) -> torch.Tensor:
    content = b"" if seen is None else seen.model_dump_json().encode()
    return torch.tensor(list(content.ljust(_ROW_BYTES)), dtype=torch.uint8)


def _read(row: torch.Tensor) -> TextIdentity | None:
    content = bytes(row.tolist()).strip()
    return TextIdentity.model_validate_json(content) if content else None


def _rank(gang: Gang, rank: int) -> str:
    replica, stage = divmod(rank, gang.num_stages)
    return f"stage {stage} of replica {replica}"


def _described(text: TextIdentity) -> str:
    return f"{_size(text)} (SHA-256 {text.sha256[:12]}…)"


def _size(text: TextIdentity) -> str:
    return f"{text.bytes} bytes" if text.tokens is None else f"{text.tokens} prepared tokens"
