"""A tokenizer's folder, as transformers saves it: texts to tokens, and what identifies the tokens."""

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.data.prepare.errors import BadDocumentError
from pipelinejob_trainer.data.tokens.index import TokenizerIdentity

MAIN_FILE = "tokenizer.json"
_FILES = (
    MAIN_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",  # by which transformers finds the tokenizer's class, where tokenizer_config.json does not say it
)


class Tokenizer:
    """A tokenizer of transformers, and the token that ends texts."""

    def __init__(self, folder: Path, *, end_of_text: str | None = None) -> None:
        """Read a folder; `end_of_text` takes the place of the tokenizer's own, "" is none.

        Raises UserError for a folder that holds no tokenizer, or one without that token.
        """
        self.folder = folder
        self.transformers = load_tokenizer(folder)
        vocabulary: dict[str, int] = self.transformers.get_vocab()
        self._end = _end_of_text(vocabulary, self.transformers.eos_token, end_of_text, folder)
        content = (folder / MAIN_FILE).read_bytes()
        self.identity = TokenizerIdentity(
            sha256=hashlib.sha256(content).hexdigest(),
            vocabulary_size=max(vocabulary.values()) + 1,
            end_of_text=self._end,
        )

    @property
    def end_of_text(self) -> int | None:
        """The token that ends texts."""
        return self._end

    def encode(self, texts: Sequence[str], *, adds_special: bool = True) -> list[list[int]]:
        """Return texts' tokens; `adds_special`: with those that the tokenizer puts around a text.

        Raises BadDocumentError for text that is none, such as half a surrogate pair.
        """
        try:
            encoded = self.transformers(
                list(texts),
                add_special_tokens=adds_special,
                truncation=False,
                padding=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )
        except (TypeError, ValueError) as error:
            raise BadDocumentError("no text", f"the tokenizer refuses it: {error}") from error
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Return texts' tokens as documents, each closed by the token that ends texts."""
        return [self._closed(ids) for ids in self.encode(texts)]

    def copy_to(self, folder: Path) -> None:
        """Copy the tokenizer's files."""
        folder.mkdir(exist_ok=True)
        for name in _FILES:
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, folder / name)

    def _closed(self, ids: list[int]) -> list[int]:
        if self._end is None or (ids and ids[-1] == self._end):
            return ids
        return [*ids, self._end]


def load_tokenizer(folder: Path, *, field: str = "--tokenizer") -> Any:
    """Return the tokenizer of a folder, as transformers reads it; nothing is asked of a network.

    `field` is what named the folder.

    Raises UserError for a folder that holds none.
    """
    if not (folder / MAIN_FILE).is_file():
        what = f"holds no {MAIN_FILE}" if folder.is_dir() else "is no folder here"
        raise UserError(
            "TokenizerNotFound",
            f"{field} {folder}: {what}; name a folder that transformers or tokenizers saved a tokenizer to"
            " (AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER))",
        )
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # documents are shared among processes, not threads
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: PLC0415  # takes seconds to import

    try:
        if (folder / "tokenizer_config.json").is_file() or (folder / "config.json").is_file():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return PreTrainedTokenizerFast(tokenizer_file=str(folder / MAIN_FILE))
    except Exception as error:
        raise UserError(
            "TokenizerUnreadable",
            f"{field} {folder}: transformers cannot read it: {' '.join(str(error).split())[:300]}; save it anew with"
            " save_pretrained",
        ) from error


def _end_of_text(vocabulary: dict[str, int], own: str | None, asked: str | None, folder: Path) -> int | None:
    if asked == "":
        return None
    token = own if asked is None else asked
    if token is None:
        raise UserError(
            "NoEndOfText",
            f"--tokenizer {folder}: names no token that ends a text (eos_token); name one with --end-of-text TOKEN, or"
            " do without: --end-of-text ''",
        )
    if token not in vocabulary:
        raise UserError(
            "NoEndOfText", f"--end-of-text {token!r}: the tokenizer of {folder} has no such token; name one"
        )
    return vocabulary[token]
