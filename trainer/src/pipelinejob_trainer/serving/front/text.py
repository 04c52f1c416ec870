"""Tokens to text and back: the folder's tokenizer, its chat template, and text that comes token by token."""

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.models.huggingface.files.folder import located
from pipelinejob_trainer.serving.front.errors import ApiError, wrong

_BROKEN = "\ufffd"  # what stands for bytes that are no text yet
_BYTE = re.compile("<0x([0-9A-F]{2})>")
_SPACE = "\u2581"
_CONTEXT = 6  # tokens of a prompt that say how its continuation is written
_MOST_HELD = 16  # tokens without a whole character at their end; more than one has, so that they are no text at all


class Tokenizer(Protocol):
    """What a model's tokens mean; `ends` are those that end a text."""

    ends: frozenset[int]

    @property
    def size(self) -> int:
        """Count the tokens."""

    def encode(self, text: str) -> tuple[int, ...]:
        """Return a text's tokens, with those that the model expects around it."""

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], given: Mapping[str, Any]
    ) -> tuple[int, ...]:
        """Return the tokens of a chat, up to where the assistant begins. Raises ApiError."""

    def decode(self, tokens: Sequence[int], *, skip_special: bool = True) -> str:
        """Return tokens' text."""

    def bytes_of(self, token: int) -> bytes:
        """Return what a token adds to a text, which may be a part of a character."""


class Bytes:
    """Text whose tokens are its bytes in UTF-8; what is none becomes U+FFFD."""

    ends: frozenset[int] = frozenset()
    size = 256

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(text.encode())

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], given: Mapping[str, Any]
    ) -> tuple[int, ...]:
        del messages, tools, given
        raise _no_template()

    def decode(self, tokens: Sequence[int], *, skip_special: bool = True) -> str:
        del skip_special  # no byte is special
        nothing = b"\xff"  # no byte of UTF-8
        return b"".join(bytes((each,)) if each < self.size else nothing for each in tokens).decode(errors="replace")

    def bytes_of(self, token: int) -> bytes:
        return bytes((token,)) if token < self.size else b""


class FolderTokenizer:
    """The tokenizer of a folder, which `field` of the manifest names; or that of its GGUF file, if it has no other.

    Raises UserError where there is none.
    """

    def __init__(
        self, folder: Path, *, field: str = "spec.model.huggingFace.path", trust_remote_code: bool = False
    ) -> None:
        from transformers import AutoTokenizer  # noqa: PLC0415  # slow

        try:
            folder, gguf = located(folder)
            within = {} if gguf is None or (folder / "tokenizer.json").exists() else {"gguf_file": gguf.name}
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                str(folder), trust_remote_code=trust_remote_code, local_files_only=True, **within
            )
        except (OSError, ValueError, ImportError, TypeError) as error:
            raise UserError(
                "NoTokenizer",
                f"{field}: {folder} has no tokenizer that can be read, so that no text can be"
                f" answered: {' '.join(str(error).split())[:200]}; save the model's tokenizer there (save_pretrained)",
            ) from error
        self.ends = frozenset(_ends(folder, self._tokenizer))
        # What belongs to the call; and a client's own template would be a program of a stranger.
        self._not_to_give = {*inspect.signature(self._tokenizer.apply_chat_template).parameters, "messages"} - {
            "kwargs"
        }
        self._knows_developers = "developer" in str(self._tokenizer.chat_template)

    @property
    def size(self) -> int:
        """Count the tokens."""
        return len(self._tokenizer)

    def encode(self, text: str) -> tuple[int, ...]:
        """Return a text's tokens, with those that the model expects around it."""
        return tuple(self._tokenizer(text)["input_ids"])

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], given: Mapping[str, Any]
    ) -> tuple[int, ...]:
        """Return the tokens of a chat, up to where the assistant begins. Raises ApiError."""
        if not self._tokenizer.chat_template:
            raise _no_template()
        for name in sorted(self._not_to_give & given.keys()):
            raise wrong(
                f"chat_template_kwargs.{name}", "cannot be given; it takes what the model's template itself asks for"
            )
        text = self._written(messages, tools, given)
        if tools and self._is_written_without_tools(text, messages, given):
            raise wrong(
                "tools",
                "the model's chat template does not write them, so that the model would not see them; leave them out,"
                " or describe them in a message",
            )
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _is_written_without_tools(
        self, text: str, messages: Sequence[Mapping[str, Any]], given: Mapping[str, Any]
    ) -> bool:
        try:
            return text == self._written(messages, (), given)
        except ApiError:  # this template needs some
            return False

    def _written(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], given: Mapping[str, Any]
    ) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                [_known_role(each, knows_developers=self._knows_developers) for each in messages],
                tools=list(tools) or None,
                add_generation_prompt=True,
                tokenize=False,
                **given,
            )
        except Exception as error:  # a template raises what it likes
            raise wrong("messages", f"the model's chat template refuses them: {str(error)[:200]}") from error
        return text

    def decode(self, tokens: Sequence[int], *, skip_special: bool = True) -> str:
        """Return tokens' text."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=skip_special)
        return text

    def bytes_of(self, token: int) -> bytes:
        """Return what a token adds to a text, which may be a part of a character."""
        raw = self._tokenizer.convert_ids_to_tokens(token)
        if not isinstance(raw, str) or token in self._tokenizer.all_special_ids:
            return self.decode([token], skip_special=False).encode()
        if (byte := _BYTE.fullmatch(raw)) is not None:  # as sentencepiece has bytes that are no text
            return bytes((int(byte[1], 16),))
        if raw.startswith(_SPACE):  # the decoder leaves out the first one
            return raw.replace(_SPACE, " ").encode()
        text = self.decode([token], skip_special=False)
        if _BROKEN in text and all(each in _ALPHABET for each in raw):
            return bytes(_ALPHABET[each] for each in raw)
        return text.encode()


def _alphabet() -> dict[str, int]:
    """Return the byte that each character stands for in tokens of bytes, as GPT-2's tokenizer introduced them."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [each for each in range(256) if each not in shown]
    return {chr(each): each for each in shown} | {chr(256 + place): each for place, each in enumerate(hidden)}


_ALPHABET = _alphabet()


def _known_role(message: Mapping[str, Any], *, knows_developers: bool) -> Mapping[str, Any]:
    """Name a message of the newer role `developer` as the older one that all templates know."""
    is_renamed = message["role"] == "developer" and not knows_developers
    return {**message, "role": "system"} if is_renamed else message


def _no_template() -> ApiError:
    return ApiError(400, "the model's tokenizer has no chat template; use /v1/completions", code="no_chat_template")


def _ends(folder: Path, tokenizer: Any) -> set[int]:
    """Return the tokens that end a text, by the folder's generation_config.json, config.json and tokenizer."""
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        try:
            said = json.loads((folder / name).read_text(encoding="utf-8")).get("eos_token_id")
        except (OSError, ValueError):
            continue
        found |= {each for each in (said if isinstance(said, list) else [said]) if isinstance(each, int)}
    return found | ({tokenizer.eos_token_id} if isinstance(tokenizer.eos_token_id, int) else set())


class Unfolding:
    """The text of an answer as it grows; what may be the beginning of a stop is held back.

    `after` are tokens that it goes on from: the space between them and the first word is the
    answer's, though decoders leave it out where a text begins, and so is a character that they
    only began.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], *, after: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._tokens = list(after[-_CONTEXT:])
        self._begin, self._read = 0, len(self._tokens)  # of the tokens whose text is compared, and of those not told
        self._held = ""
        self.is_stopped = False

    def add(self, token: int) -> str:
        """Return the text that can be told now."""
        self._tokens.append(token)
        text = self._new()
        if text.endswith(_BROKEN) and len(self._tokens) - self._read < _MOST_HELD:
            return ""
        self._begin, self._read = self._read, len(self._tokens)
        return self._tell(text)

    def end(self) -> str:
        """Return what was held back; the answer is at its end."""
        if self.is_stopped:
            return ""
        text = self._tell(self._new() if len(self._tokens) > self._read else "")
        held, self._held = ("" if self.is_stopped else self._held), ""
        return text + held

    def _new(self) -> str:
        before = self._tokenizer.decode(self._tokens[self._begin : self._read])
        text = self._tokenizer.decode(self._tokens[self._begin :])
        if not text.startswith(before):  # a character was completed that the tokens before only began
            before = before.rstrip(_BROKEN)
        return text[len(before) :]

    def _tell(self, new: str) -> str:
        text = self._held + new
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.is_stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Count the characters at the end of a text that begin a stop."""
    return next((count for count in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:count])), 0)
