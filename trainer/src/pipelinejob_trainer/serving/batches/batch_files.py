"""The two files of a batch: requests, one in a line, and their answers, appended one by one.

A request's line is OpenAI's: `custom_id`, `url`, `body`. An answer is there or it is not: a line
is written in one piece and flushed to the disk, and what a kill left of a line is cut off before
the next begins. So a batch that begins again goes on with what has no answer yet.
"""

import fcntl
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from pipelinejob_trainer.base.errors import UserError

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
_FIELDS = {"custom_id", "method", "url", "body"}
_INPUT, _OUTPUT = "spec.serving.batch.input", "spec.serving.batch.output"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One line: who asks, in the client's words, and what."""

    custom_id: str
    is_chat: bool
    body: Mapping[str, Any]


def read_ids(path: Path) -> Sequence[str]:
    """Read all of a file once; return the ids of its requests, in order.

    Raises UserError, with the line's number, for a line that is no request, and an id that is
    there twice.
    """
    found: dict[str, int] = {}
    for number, request in _requests(path):
        if request.custom_id in found:
            raise _wrong(path, number, f"custom_id {request.custom_id!r} stands in line {found[request.custom_id]} too")
        found[request.custom_id] = number
    if not found:
        raise UserError("NoRequests", f"{_INPUT}: {path} holds no request; write one in each line")
    return list(found)


def requests_of(path: Path) -> Iterator[Request]:
    """Return a file's requests, read as they are asked for. Raises UserError as `read_ids`."""
    return (request for _, request in _requests(path))


def _requests(path: Path) -> Iterator[tuple[int, Request]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _request(path, number, line)
    except OSError as error:
        raise UserError("NoRequests", f"{_INPUT}: {path}: {error.strerror}; mount or write it there") from error


def _request(path: Path, number: int, line: bytes) -> Request:
    try:
        said = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise _wrong(path, number, f"is no JSON ({error})") from error
    if not isinstance(said, dict) or not isinstance(said.get("body"), dict):
        raise _wrong(path, number, "is no object with a body, which is one, too")
    custom_id = said.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        raise _wrong(path, number, "has no custom_id, a text by which its answer is known")
    unknown = sorted(said.keys() - _FIELDS)
    if unknown:
        raise _wrong(path, number, f"has a field {unknown[0]!r}; a request has {', '.join(sorted(_FIELDS))}")
    if said.get("method", "POST") != "POST":
        raise _wrong(path, number, f"has the method {said['method']!r}; only POST is answered")
    url = said.get("url", CHAT if "messages" in said["body"] else COMPLETIONS)
    if url not in {COMPLETIONS, CHAT}:
        raise _wrong(path, number, f"has the url {url!r}; use {CHAT} or {COMPLETIONS}")
    return Request(custom_id=custom_id, is_chat=url == CHAT, body=said["body"])


def _wrong(path: Path, number: int, problem: str) -> UserError:
    return UserError("BadRequests", f"{_INPUT}: {path}, line {number} {problem}; nothing was answered, mend it first")


class Answers:
    """The file of answers, which one process alone appends to.

    Raises UserError for a file that cannot be written, that another process holds, or that holds
    what is no answer to `ids`.
    """

    def __init__(self, path: Path, ids: Sequence[str]) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            raise UserError(
                "BadAnswers", f"{_OUTPUT}: {path}: {error.strerror}; name a file that can be written"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.done = self._read(frozenset(ids))
        except BlockingIOError as error:
            self._file.close()
            raise UserError(
                "BadAnswers", f"{_OUTPUT}: {path}: another process writes there; end it, or name another file"
            ) from error
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the file go, once no answer is being written."""
        with self._lock:
            self._file.close()

    def append(self, answer: Mapping[str, Any]) -> None:
        """Write an answer, so that it stays whatever happens next; from any thread. Raises OSError."""
        left = memoryview(orjson.dumps(answer) + b"\n")
        with self._lock:
            while left:
                left = left[self._file.write(left) :]
            os.fdatasync(self._file.fileno())

    def _read(self, ids: frozenset[str]) -> set[str]:
        """Return the ids that are answered; cut off what was left of a line."""
        done: set[str] = set()
        self._file.seek(0)
        end = 0
        with open(self._file.fileno(), "rb", closefd=False) as reader:  # the descriptor that is locked
            for number, line in enumerate(reader, start=1):
                if not line.endswith(b"\n"):
                    break
                end += len(line)
                done.add(self._answered(number, line, ids, done))
        self._file.truncate(end)
        return done

    def _answered(self, number: int, line: bytes, ids: frozenset[str], done: set[str]) -> str:
        try:
            custom_id = orjson.loads(line)["custom_id"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            custom_id = None
        if custom_id not in ids or custom_id in done:
            raise UserError(
                "BadAnswers",
                f"{_OUTPUT}: {self._path}, line {number} is no answer to a request of this batch, or a second one; name"
                " another file",
            )
        return str(custom_id)
