"""Reads the bodies of requests: what is wanted, or which field is wrong, and why."""

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from pipelinejob.serving.passes import Sampling
from pipelinejob_trainer.serving.front.errors import ApiError, wrong

MOST_CHOICES = 64
_MOST_STOPS, _LONGEST_STOP = 16, 1000
_MOST_TOP_CHAT, _MOST_TOP = 20, 5
_UNASKED = 16  # tokens of a completion that does not say how many, as OpenAI has it
_HARMLESS = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "parallel_tool_calls",
    "safety_identifier",
    "prompt_cache_key",
}
_SAMPLED = {
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
}
_COMMON = {"model", "n", "max_tokens", "stop", "stream", "stream_options", "logprobs", "ignore_eos"} | _SAMPLED
_COMPLETION = _COMMON | {"prompt", "echo", "best_of", "suffix", "logit_bias"}
_CHAT = _COMMON | {
    "messages",
    "max_completion_tokens",
    "top_logprobs",
    "tools",
    "tool_choice",
    "response_format",
    "logit_bias",
    "chat_template_kwargs",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a request wants, whichever of the two kinds it is.

    `prompts` are texts or tokens of a completion; `messages`, `tools` and `template` a chat's.
    """

    model: str
    prompts: tuple[str | tuple[int, ...], ...] = ()
    messages: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    template: Mapping[str, Any]
    n: int
    max_tokens: int | None  # None: as many as there is room for, of a completion at most 16
    max_tokens_field: str = "max_tokens"  # by which it was said
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    ignore_eos: bool
    sampling: Sampling

    @property
    def is_chat(self) -> bool:
        """Whether it is a chat."""
        return bool(self.messages)

    def most_tokens(self, room: int) -> int:
        """Return how long an answer may be, where there is room for so many tokens."""
        if self.max_tokens is not None:
            return self.max_tokens
        return room if self.is_chat else min(room, _UNASKED)


def read_completion(body: bytes) -> Wanted:
    """Read the body of /v1/completions. Raises ApiError."""
    fields = _fields(body, _COMPLETION)
    _refuse(fields, {"echo": False, "best_of": fields.get("n", 1), "suffix": None, "logit_bias": None})
    logprobs = _whole(fields, "logprobs", None, 0, _MOST_TOP)
    max_tokens = _whole(fields, "max_tokens", None, 1, None)
    return _wanted(fields, logprobs, max_tokens, prompts=_prompts(fields))


def read_chat(body: bytes) -> Wanted:
    """Read the body of /v1/chat/completions. Raises ApiError."""
    fields = _fields(body, _CHAT)
    _refuse(fields, {"logit_bias": None})
    if (fields.get("response_format") or {"type": "text"}) != {"type": "text"}:
        raise wrong("response_format", "only text is answered; leave it out")
    if fields.get("tool_choice") not in (None, "auto", "none"):
        raise wrong("tool_choice", f"{_shown(fields['tool_choice'])} cannot be forced; use auto or none")
    top = _whole(fields, "top_logprobs", None, 0, _MOST_TOP_CHAT)
    if top is not None and not _flag(fields, "logprobs"):
        raise wrong("top_logprobs", "is told only with logprobs; set logprobs to true")
    logprobs = (top or 0) if _flag(fields, "logprobs") else None
    max_tokens = _whole(fields, "max_completion_tokens", _whole(fields, "max_tokens", None, 1, None), 1, None)
    field = "max_completion_tokens" if "max_completion_tokens" in fields else "max_tokens"
    tools = _mappings(fields, "tools", required=False) if fields.get("tool_choice") != "none" else ()
    template = fields.get("chat_template_kwargs") or {}
    if not isinstance(template, dict):
        raise wrong("chat_template_kwargs", f"{_shown(template)} is no object of names and values")
    chat = {"messages": _messages(fields), "tools": tools, "template": template, "max_tokens_field": field}
    return _wanted(fields, logprobs, max_tokens, **chat)


def _wanted(fields: Mapping[str, Any], logprobs: int | None, max_tokens: int | None, **others: Any) -> Wanted:
    stream = _flag(fields, "stream")
    options = _stream_options(fields, stream=stream)
    return Wanted(
        **{"template": {}} | others,
        model=_text(fields, "model"),
        n=_whole(fields, "n", 1, 1, MOST_CHOICES) or 1,
        max_tokens=max_tokens,
        stop=_stops(fields),
        stream=stream,
        include_usage=_flag(options, "include_usage"),
        ignore_eos=_flag(fields, "ignore_eos"),
        sampling=Sampling(
            temperature=_number(fields, "temperature", 1.0, 0.0, 100.0),
            top_p=_number(fields, "top_p", 1.0, 0.0, 1.0),
            top_k=_whole(fields, "top_k", 0, -1, None, none=0) or 0,
            min_p=_number(fields, "min_p", 0.0, 0.0, 1.0),
            presence_penalty=_number(fields, "presence_penalty", 0.0, -2.0, 2.0),
            frequency_penalty=_number(fields, "frequency_penalty", 0.0, -2.0, 2.0),
            repetition_penalty=_number(fields, "repetition_penalty", 1.0, 0.01, 100.0),
            seed=_seed(fields),
            logprobs=logprobs,
        ),
    )


def _stream_options(fields: Mapping[str, Any], *, stream: bool) -> Mapping[str, Any]:
    options = fields.get("stream_options", {})
    if not isinstance(options, dict) or (options and not stream):
        raise wrong("stream_options", "is an object, and only for stream: true")
    unknown = sorted(options.keys() - {"include_usage", "include_obfuscation"})
    if unknown:
        raise wrong(f"stream_options.{unknown[0]}", "is no field that is known here; leave it out")
    return {name: value for name, value in options.items() if value is not None}


def _fields(body: bytes, known: set[str]) -> Mapping[str, Any]:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"the body is no JSON: {error}; send an object in UTF-8", code="invalid_json") from error
    if not isinstance(fields, dict):
        raise ApiError(400, f"the body is {_shown(fields)}; send a JSON object", code="invalid_json")
    unknown = sorted(fields.keys() - known - _HARMLESS)
    if unknown:
        raise ApiError(
            400, f"{unknown[0]}: is no field that is known here; leave it out", param=unknown[0], code="unknown_field"
        )
    return {name: value for name, value in fields.items() if value is not None}


def _refuse(fields: Mapping[str, Any], only: Mapping[str, Any]) -> None:
    for name, value in only.items():
        if name in fields and fields[name] not in (value, {}):
            raise wrong(name, f"{_shown(fields[name])} is not supported; leave it out")


def _prompts(fields: Mapping[str, Any]) -> tuple[str | tuple[int, ...], ...]:
    given = fields.get("prompt")
    if isinstance(given, str):
        return (given,)
    if not isinstance(given, list) or not given:
        raise wrong("prompt", f"{_shown(given)} is no prompt; send a text, tokens, or a list of either")
    if _is_tokens(given):
        return (tuple(given),)
    for each in given:
        if not isinstance(each, str) and not (isinstance(each, list) and each and _is_tokens(each)):
            raise wrong("prompt", f"{_shown(each)} is neither a text nor a list of tokens")
    return tuple(each if isinstance(each, str) else tuple(each) for each in given)


def _is_tokens(value: Sequence[Any]) -> bool:
    return all(isinstance(each, int) and not isinstance(each, bool) for each in value)


def _messages(fields: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    messages = _mappings(fields, "messages", required=True)
    for place, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            raise wrong(f"messages[{place}].role", f"is {_shown(message.get('role'))}; use system, user or assistant")
    return tuple(_with_calls(place, _flat(place, message)) for place, message in enumerate(messages))


def _flat(place: int, message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Join a message's parts of text, which templates take as one; an assistant that called tools may have said none.

    A template would write what is null as the word None.
    """
    content = message.get("content")
    if isinstance(content, str):
        return message
    where = f"messages[{place}].content"
    if content is None and message["role"] == "assistant":
        return {**message, "content": ""}
    if not isinstance(content, list):
        raise wrong(where, f"is {_shown(content)}; send a text, or a list of parts of text")
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise wrong(where, f"has the part {_shown(part)}; only parts of type text are read")
        texts.append(part["text"])
    return {**message, "content": "".join(texts)}


def _with_calls(place: int, message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Read the arguments of an assistant's calls of tools: clients send them as text in JSON, templates write them."""
    calls = message.get("tool_calls")
    if calls is None:
        return {name: value for name, value in message.items() if name != "tool_calls"}
    where = f"messages[{place}].tool_calls"
    if not isinstance(calls, list) or not all(isinstance(each, dict) for each in calls):
        raise wrong(where, f"is {_shown(calls)}; send a list of calls")
    return {**message, "tool_calls": [_with_arguments(where, each) for each in calls]}


def _with_arguments(where: str, call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = orjson.loads(function["arguments"] or "{}")
    except orjson.JSONDecodeError as error:
        raise wrong(where, f"the arguments {_shown(function['arguments'])} are no JSON: {error}") from error
    return {**call, "function": {**function, "arguments": arguments}}


def _mappings(fields: Mapping[str, Any], name: str, *, required: bool) -> tuple[Mapping[str, Any], ...]:
    given = fields.get(name, [])
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given) or (required and not given):
        raise wrong(name, f"{_shown(given)} is no list of objects" + (", at least one" if required else ""))
    return tuple(given)


def _stops(fields: Mapping[str, Any]) -> tuple[str, ...]:
    given = fields.get("stop", [])
    stops = [given] if isinstance(given, str) else given
    if not isinstance(stops, list) or len(stops) > _MOST_STOPS or not all(isinstance(e, str) and e for e in stops):
        raise wrong("stop", f"{_shown(given)} is no text, nor a list of at most {_MOST_STOPS} texts")
    longest = max(map(len, stops), default=0)
    if longest > _LONGEST_STOP:
        raise wrong("stop", f"one has {longest} characters; use at most {_LONGEST_STOP}")
    return tuple(stops)


def _seed(fields: Mapping[str, Any]) -> int:
    given = fields.get("seed")
    if given is None:
        return secrets.randbits(63)
    if isinstance(given, bool) or not isinstance(given, int):
        raise wrong("seed", f"{_shown(given)} is no whole number")
    return given & (2**64 - 1)


def _number(fields: Mapping[str, Any], name: str, default: float, least: float, most: float) -> float:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise wrong(name, f"{_shown(value)} is no number")
    if not least <= value <= most:
        raise wrong(name, f"{value:g} is not between {least:g} and {most:g}")
    return float(value)


def _whole(
    fields: Mapping[str, Any], name: str, default: int | None, least: int, most: int | None, *, none: int | None = None
) -> int | None:
    """Read a whole number; `none` is what the least one means, if that means nothing."""
    value = fields.get(name, default)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong(name, f"{_shown(value)} is no whole number")
    if value < least or (most is not None and value > most):
        raise wrong(name, f"{value} is not " + (f"{least} or more" if most is None else f"between {least} and {most}"))
    return none if none is not None and value == least else value


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise wrong(name, f"{_shown(value)} is neither true nor false")
    return value


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise wrong(name, f"{_shown(value)} is no text; /v1/models lists what there is")
    return value


def _shown(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()[:80]
    except orjson.JSONEncodeError:  # it takes no more levels than 254, of those that it reads
        return "a value of very many levels"
