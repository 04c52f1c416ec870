"""Whether tokens were made by the tokenizer that lies beside a model: another one's mean something else to it."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.data.tokens.folder import TokenFolder
from pipelinejob_trainer.data.tokens.index import TOKENIZER

_FILE = "tokenizer.json"


def check_model_tokenizer(folder: TokenFolder, model: Path, *, field: str) -> None:
    """Compare the vocabulary that a folder was prepared with to that of a model's folder, if it has one.

    Files may differ, as versions of transformers write them differently; tokens may not. Raises
    UserError naming one that does.
    """
    own, its = model / _FILE, folder.path / TOKENIZER / _FILE
    if not (own.is_file() and its.is_file()):
        return
    content = own.read_bytes()
    if hashlib.sha256(content).hexdigest() == folder.index.tokenizer.sha256:
        return
    wanted, found = _vocabulary(json.loads(content)), _vocabulary(json.loads(its.read_bytes()))
    different = next((token for token in {**wanted, **found} if wanted.get(token) != found.get(token)), None)
    if different is not None:
        raise UserError(
            "TokenizersDiffer",
            f"{field}: {folder.path} was made by another tokenizer than that of {model}: {different!r} is token"
            f" {found.get(different, 'none')}, to the model {wanted.get(different, 'none')}; prepare the data with"
            f" --tokenizer {model}",
        )


def _vocabulary(tokenizer: dict[str, Any]) -> dict[str, int]:
    """Return each token's number, as a tokenizer.json has it: by name, or with scores in order (Unigram)."""
    vocabulary = tokenizer["model"].get("vocab", {})
    named = dict(vocabulary) if isinstance(vocabulary, dict) else {each[0]: at for at, each in enumerate(vocabulary)}
    return named | {each["content"]: each["id"] for each in tokenizer.get("added_tokens", ())}
