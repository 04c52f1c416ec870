"""Answers in OpenAI's form: whole ones, chunks of a stream, usage and probabilities."""

import codecs
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelinejob.serving.passes import Sampled
from pipelinejob.serving.scheduler import Ending
from pipelinejob_trainer.serving.front.answering import Piece, Prepared, Usage
from pipelinejob_trainer.serving.front.text import Tokenizer


@dataclass(slots=True)
class _Told:
    text: str = ""
    sampled: list[Sampled] = field(default_factory=list)
    ending: Ending | None = None


class Form:
    """How one request is answered."""

    def __init__(self, prepared: Prepared, tokenizer: Tokenizer) -> None:
        self._prepared = prepared
        self._tokenizer = tokenizer
        self._is_chat = prepared.wanted.is_chat
        self._offsets: dict[int, _Offset] = {}
        self._head = {
            "id": f"{'chatcmpl' if self._is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": prepared.wanted.model,
        }

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> dict[str, Any]:
        """Return the answer that is sent at once."""
        told: dict[int, _Told] = {}
        for piece in pieces:
            of = told.setdefault(piece.index, _Told())
            of.text += piece.text
            of.sampled.append(piece.sampled)
            of.ending = piece.ending
        choices = [
            {
                "index": index,
                **({"message": {"role": "assistant", "content": of.text}} if self._is_chat else {"text": of.text}),
                "logprobs": self._logprobs(index, of.sampled),
                "finish_reason": of.ending,
            }
            for index, of in sorted(told.items())
        ]
        kind = "chat.completion" if self._is_chat else "text_completion"
        return {**self._head, "object": kind, "choices": choices, "usage": self.usage(usage)}

    def begin(self) -> list[dict[str, Any]]:
        """Return the chunks that a stream begins with."""
        if not self._is_chat:
            return []
        count = len(self._prepared.prompts) * self._prepared.wanted.n
        return [self._chunk(index, {"role": "assistant", "content": ""}, None, None) for index in range(count)]

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """Return a piece as a chunk of a stream."""
        logprobs = self._logprobs(piece.index, [piece.sampled])
        delta: Any = ({"content": piece.text} if piece.text else {}) if self._is_chat else piece.text
        return self._chunk(piece.index, delta, piece.ending, logprobs)

    def last(self, usage: Usage) -> dict[str, Any]:
        """Return the chunk that tells a stream's usage."""
        return {**self._head, "object": self._chunk_kind, "choices": [], "usage": self.usage(usage)}

    def usage(self, usage: Usage) -> dict[str, Any]:
        """Return how many tokens an answer took."""
        prompt = self._prepared.num_prompt_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": usage.generated,
            "total_tokens": prompt + usage.generated,
            "prompt_tokens_details": {"cached_tokens": usage.cached},
        }

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self._is_chat else "text_completion"

    def _chunk(self, index: int, delta: Any, ending: Ending | None, logprobs: Any) -> dict[str, Any]:
        choice = {
            "index": index,
            ("delta" if self._is_chat else "text"): delta,
            "logprobs": logprobs,
            "finish_reason": ending,
        }
        usage = {"usage": None} if self._prepared.wanted.include_usage else {}  # the last chunk has it
        return {**self._head, "object": self._chunk_kind, "choices": [choice], **usage}

    def _logprobs(self, index: int, sampled: Sequence[Sampled]) -> dict[str, Any] | None:
        if self._prepared.wanted.sampling.logprobs is None:
            return None
        if self._is_chat:
            return {"content": [self._entry(each) for each in sampled], "refusal": None}
        offset = self._offsets.setdefault(index, _Offset())
        return {
            "tokens": [self._text(each.token) for each in sampled],
            "token_logprobs": [each.logprob for each in sampled],
            "top_logprobs": [self._likeliest(each) for each in sampled],
            "text_offset": [offset.passed(self._tokenizer.bytes_of(each.token)) for each in sampled],
        }

    def _likeliest(self, sampled: Sampled) -> dict[str, float]:
        """Return the likeliest texts; of tokens that have one text in common the likeliest counts."""
        told: dict[str, float] = {}
        for token, value in sampled.top:
            told.setdefault(self._text(token), value)
        return told

    def _entry(self, sampled: Sampled) -> dict[str, Any]:
        top = [self._token(token, value) for token, value in sampled.top]
        return {**self._token(sampled.token, sampled.logprob), "top_logprobs": top}

    def _token(self, token: int, logprob: float | None) -> dict[str, Any]:
        told = self._tokenizer.bytes_of(token)
        return {"token": told.decode(errors="replace"), "logprob": logprob, "bytes": list(told)}

    def _text(self, token: int) -> str:
        """Return a token's text; bytes that are a part of a character are spelled, so that they differ."""
        told = self._tokenizer.bytes_of(token)
        try:
            return told.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{each:02x}" for each in told)


class _Offset:
    """How many characters of an answer are before a token; one that several tokens make is before the next alone."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._characters = 0

    def passed(self, told: bytes) -> int:
        """Return where a token begins, and go on behind it."""
        begin = self._characters
        self._characters += len(self._decoder.decode(told))
        return begin
