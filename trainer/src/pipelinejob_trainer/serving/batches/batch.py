"""A batch: requests of a file are answered as those of clients are, as many at once as groups hold."""

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from pipelinejob_trainer.process.output import say
from pipelinejob_trainer.serving.batches.batch_files import Answers, Request, read_ids, requests_of
from pipelinejob_trainer.serving.front.answering import Answering, Usage
from pipelinejob_trainer.serving.front.answers import Form
from pipelinejob_trainer.serving.front.errors import LOST_TOO_OFTEN, ApiError, wrong
from pipelinejob_trainer.serving.front.wanted import read_chat, read_completion

_OK = 200
_FULL, _NOT_READY = 429, 503  # the same request may be sent again: it is
_AGAIN_S = 0.5
_TELL_S = 10.0


class Batch:
    """The requests of one file, and the file of their answers.

    Raises UserError for files that cannot be used; then nothing was answered.
    """

    def __init__(self, requests: Path, answers: Path) -> None:
        self._requests = requests
        ids = read_ids(requests)
        self._answers = Answers(answers, ids)
        self._count = len(ids)
        self._told_s = 0.0
        if not self.num_left:
            self._answers.close()

    @property
    def num_requests(self) -> int:
        """Count all requests."""
        return self._count

    @property
    def num_left(self) -> int:
        """Count the requests without an answer."""
        return self._count - len(self._answers.done)

    async def answer(self, answering: Answering, *, at_once: int) -> None:
        """Answer all that have no answer yet, so many at once. Raises OSError where an answer cannot be written."""
        with self._answers:
            self._say()
            left = (each for each in requests_of(self._requests) if each.custom_id not in self._answers.done)
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(at_once, self.num_left)):
                        group.create_task(self._work(answering, left))
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
            self._say()

    async def _work(self, answering: Answering, left: Iterator[Request]) -> None:
        for request in left:
            answer = await _answered(answering, request)
            await asyncio.to_thread(self._answers.append, answer)
            self._answers.done.add(request.custom_id)
            if time.monotonic() - self._told_s > _TELL_S:
                self._say()

    def _say(self) -> None:
        self._told_s = time.monotonic()
        say(f"{self._count - self.num_left} of {self._count} requests are answered")


async def _answered(answering: Answering, request: Request) -> Mapping[str, Any]:
    """Answer a request, with an error that it deserves too; wait while the chain is broken, or full."""
    while True:
        try:
            return _line(request, _OK, await _body(answering, request))
        except ApiError as error:
            if error.status not in {_FULL, _NOT_READY} and error.code != LOST_TOO_OFTEN:
                return _line(request, error.status, error.body)
        await asyncio.sleep(_AGAIN_S)


async def _body(answering: Answering, request: Request) -> Mapping[str, Any]:
    read: Callable[[bytes], Any] = read_chat if request.is_chat else read_completion
    prepared = await asyncio.to_thread(lambda: answering.prepare(read(orjson.dumps(request.body))))
    if prepared.wanted.stream:
        raise wrong("stream", "an answer of a batch is written whole; leave it out")
    usage = Usage()
    with answering.admitted(prepared):
        pieces = answering.pieces(prepared, usage, client="batch")
        try:
            told = [piece async for piece in pieces]
        finally:
            await pieces.aclose()
    return Form(prepared, answering.tokenizer).whole(told, usage)


def _line(request: Request, status: int, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an answer as OpenAI's batches have it."""
    return {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": request.custom_id,
        "response": {"status_code": status, "request_id": uuid.uuid4().hex, "body": body},
        "error": None,
    }
