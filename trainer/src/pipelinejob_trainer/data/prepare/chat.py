"""Conversations as tokens, by the tokenizer's own chat template; only what the assistant says counts.

Which tokens those are the template says itself, where it marks them ({% generation %}). Elsewhere
an answer is what a conversation up to it has beyond the prompt for it: then every such beginning
must be a beginning of the whole, which is verified for each conversation. The templates that
rewrite earlier turns (and drop what was thought in them) do not pass. Either way the tokens before
an answer must be those that its prompt has when it stands alone, as it does when a model is asked.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.data.prepare.errors import BadDocumentError
from pipelinejob_trainer.data.prepare.tokenizer import Tokenizer

_MARKS_ANSWERS = re.compile(r"\{%-?\s*generation\b")
_TAKES_TOOLS = re.compile(r"\{[{%][^}]*\btools\b")
_ASSISTANT = "assistant"
_JOINS = (
    "the tokenizer joins where the answer begins or ends with what is beside it, as it will not when the model answers;"
    " take white space off the answer's beginning and end"
)
_REWRITES = (
    "the chat template writes it otherwise where more follows, so what counts cannot be told; mark answers in the"
    " template with {% generation %}, or split the conversation"
)

Messages = Sequence[Mapping[str, Any]]
Tools = list[dict[str, Any]]

TOOLS = "tools"
"""The column beside the conversations that holds the tools which each may call."""


class Span(NamedTuple):
    """Characters [begin, end) of a conversation's text."""

    begin: int
    end: int


class Conversation(NamedTuple):
    """A conversation's tokens, and which of them count."""

    tokens: list[int]
    counts: list[bool]


class ChatTemplate:
    """A tokenizer's chat template."""

    def __init__(self, tokenizer: Tokenizer, folder: Path) -> None:
        """Raise UserError where the tokenizer has none."""
        self._tokenizer = tokenizer
        try:
            template: str = tokenizer.transformers.get_chat_template()
        except ValueError as error:
            raise UserError(
                "NoChatTemplate",
                f"--tokenizer {folder}: has no chat template (chat_template.jinja, or chat_template in"
                " tokenizer_config.json); use a chat model's tokenizer, or --text-column",
            ) from error
        self._template = template
        self.sha256 = hashlib.sha256(template.encode()).hexdigest()
        self._marks_answers = bool(_MARKS_ANSWERS.search(template))
        self._takes_tools = bool(_TAKES_TOOLS.search(template))

    def encode(self, value: Any, tools: Any = None) -> Conversation | None:
        """Return a conversation's tokens; None where nothing in it counts.

        `tools` are those that the model is told of. Raises BadDocumentError for what is no
        conversation, or none that the template takes.
        """
        messages, known = _messages(value), self._tools(tools)
        if not any(message["role"] == _ASSISTANT for message in messages):
            return None
        text, spans = self._marked(messages, known) if self._marks_answers else self._by_beginnings(messages, known)
        encoded = self._counted(text, spans)
        return encoded if any(encoded.counts) else None

    def _tools(self, value: Any) -> Tools | None:
        """Return the tools of a conversation, which tables often hold as JSON; None where there are none."""
        tools = _of_json(value) if value and isinstance(value, str) else value
        if not tools:
            return None
        if not (isinstance(tools, list) and all(isinstance(each, dict) for each in tools)):
            raise BadDocumentError("no tools", f"{TOOLS} is no list of JSON schemas; write it as OpenAI's API has it")
        if not self._takes_tools:
            raise BadDocumentError(
                "tools that the template does not take",
                f"it has {TOOLS}, of which the chat template would not tell the model; use a template that does, or"
                " take the column out",
            )
        return tools

    def _marked(self, messages: Messages, tools: Tools | None) -> tuple[str, list[Span]]:
        """Return a conversation's text, and what of it the template marks as answers."""
        # Not by `return_assistant_tokens_mask` of apply_chat_template: where a span's last
        # character has no token of its own, all that follows is marked
        # (huggingface/transformers#47325).
        from transformers.utils.chat_template_utils import render_jinja_template  # noqa: PLC0415  # takes seconds

        try:
            texts, spans = render_jinja_template(
                conversations=[list(messages)],
                tools=tools,
                chat_template=self._template,
                return_assistant_tokens_mask=True,
                **self._tokenizer.transformers.special_tokens_map,
            )
        except Exception as error:
            raise _refused(error) from error
        return texts[0], [Span(begin, end) for begin, end in spans[0] if begin < end]

    def _by_beginnings(self, messages: Messages, tools: Tools | None) -> tuple[str, list[Span]]:
        """Return a conversation's text, and what of it comes after the prompt for each answer."""
        whole = self._text(messages, tools)
        spans = []
        for number, message in enumerate(messages):
            if message["role"] != _ASSISTANT:
                continue
            prompt = self._text(messages[:number], tools, asks=True)
            so_far = self._text(messages[: number + 1], tools)
            if not (so_far.startswith(prompt) and whole.startswith(so_far)):
                raise BadDocumentError("rewritten turns", f"message {number}: {_REWRITES}")
            spans.append(Span(len(prompt), len(so_far)))
        return whole, spans

    def _counted(self, text: str, spans: Sequence[Span]) -> Conversation:
        """Return a text's tokens, of which those in the spans count."""
        tokens = self._tokens(text)
        counts = [False] * len(tokens)
        for number, span in enumerate(spans):
            begin, end = self._place(tokens, text[: span.begin]), self._place(tokens, text[: span.end])
            if begin is None or end is None:
                raise BadDocumentError("joined tokens", f"answer {number}: {_JOINS}")
            if not self._marks_answers:
                end = _end_of_answer(tokens[:end], begin, self._tokenizer.end_of_text)
            counts[begin:end] = [True] * (end - begin)
        return Conversation(tokens, counts)

    def _place(self, tokens: Sequence[int], beginning: str) -> int | None:
        """Return how many tokens are a beginning's; None where its tokens are others when it stands alone."""
        its = self._tokens(beginning)
        return len(its) if tokens[: len(its)] == its else None

    def _text(self, messages: Messages, tools: Tools | None, *, asks: bool = False) -> str:
        try:
            text: str = self._tokenizer.transformers.apply_chat_template(
                messages, tools=tools, tokenize=False, add_generation_prompt=asks
            )
        except Exception as error:
            raise _refused(error) from error
        return text

    def _tokens(self, text: str) -> list[int]:
        return self._tokenizer.encode([text], adds_special=False)[0]


def _end_of_answer(tokens: Sequence[int], begin: int, end_of_text: int | None) -> int:
    """Return where an answer ends: after the last token that ends texts, which is where generation stops."""
    for place in range(len(tokens) - 1, begin - 1, -1):
        if tokens[place] == end_of_text:
            return place + 1
    return len(tokens)


def _messages(value: Any) -> list[dict[str, Any]]:
    if not (isinstance(value, list) and value and all(isinstance(each, dict) for each in value)):
        raise BadDocumentError("no messages", 'is no list of messages; write [{"role": "user", "content": "..."}, ...]')
    for number, message in enumerate(value):
        if not isinstance(message.get("role"), str):
            raise BadDocumentError(
                "no role",
                f"message {number} has no role, but {', '.join(map(repr, message)) or 'nothing'}; give each"
                " a role and content",
            )
    # Columns of parquet have every key in every message; templates ask whether a key is there.
    return [{key: each for key, each in message.items() if each is not None} for message in value]


def _of_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadDocumentError("no tools", f"{TOOLS} is a text that is no JSON ({error}); correct it") from error


def _refused(error: Exception) -> BadDocumentError:
    words = " ".join(str(error).split())[:200] or type(error).__name__
    return BadDocumentError("refused by the template", f"the chat template refuses it: {words}")
