"""Pieces shared among processes, which end with the one that started them."""

import ctypes
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.data.prepare.errors import FolderError
from pipelinejob_trainer.data.prepare.inputs import Piece
from pipelinejob_trainer.data.prepare.work import PieceRecord, Tick

Make = Callable[[Piece, Tick], PieceRecord]
_LOOK_EVERY_S = 0.2
_PR_SET_PDEATHSIG = 1


def made(pieces: Sequence[Piece], make: Make, *, workers: int, look: Tick) -> Iterator[tuple[Piece, PieceRecord]]:
    """Make pieces in so many processes; each is returned as it is done.

    `look` is told the documents and tokens so far. Raises what `make` does.
    """
    if workers == 1 or len(pieces) <= 1:
        yield from _here(pieces, make, look)
        return
    # Forked, so that what `make` holds (a tokenizer) is there at once; nothing here has threads
    # yet.
    context = multiprocessing.get_context("fork")
    counters = context.Array("Q", 2)
    pool = ProcessPoolExecutor(
        min(workers, len(pieces)), mp_context=context, initializer=_begin, initargs=(make, counters)
    )
    waiting = {pool.submit(_one, piece): piece for piece in pieces}
    try:
        while waiting:
            ended, _ = wait(waiting, timeout=_LOOK_EVERY_S, return_when=FIRST_COMPLETED)
            look(*counters[:])
            for future in ended:
                yield waiting.pop(future), _result(future.result())
    except BrokenProcessPool as error:
        raise UserError(
            "WorkerKilled",
            "--workers: a process was killed, most likely for want of memory; use fewer: the same command goes on from"
            " what is done",
        ) from error
    finally:
        for process in multiprocessing.active_children() if waiting else ():
            process.kill()  # after an error: what they are at would take minutes, and is done anew
        pool.shutdown(cancel_futures=True)


def _here(pieces: Sequence[Piece], make: Make, look: Tick) -> Iterator[tuple[Piece, PieceRecord]]:
    documents = tokens = 0

    def tick(more_documents: int, more_tokens: int) -> None:
        nonlocal documents, tokens
        documents, tokens = documents + more_documents, tokens + more_tokens
        look(documents, tokens)

    for piece in pieces:
        yield piece, make(piece, tick)


_in_worker: dict[str, Any] = {}


def _begin(make: Make, counters: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches all; the first process decides
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _in_worker.update(make=make, counters=counters)


def _one(piece: Piece) -> PieceRecord | tuple[str | None, str]:
    """Make a piece; errors are values, as exceptions of two arguments do not travel between processes."""
    counters = _in_worker["counters"]

    def tick(documents: int, tokens: int) -> None:
        with counters.get_lock():
            counters[0] += documents
            counters[1] += tokens

    try:
        record: PieceRecord = _in_worker["make"](piece, tick)
    except FolderError as error:
        return None, str(error)
    except UserError as error:
        return error.reason, str(error)
    return record


def _result(value: PieceRecord | tuple[str | None, str]) -> PieceRecord:
    if isinstance(value, PieceRecord):
        return value
    reason, message = value
    raise FolderError(message) if reason is None else UserError(reason, message)
