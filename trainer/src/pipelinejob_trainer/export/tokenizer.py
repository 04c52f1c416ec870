"""What an exported model is asked with: the tokenizer and chat template of the data that it was trained on.

A folder's own files are kept where they say the same. They need not: a base model is given a chat
template by the tokenizer that its data were prepared with, and learns to end answers with a token
that its own config does not stop at.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelinejob.spec.job import Data
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.data.prepare.tokenizer import MAIN_FILE, load_tokenizer
from pipelinejob_trainer.data.tokens.index import TOKENIZER, Index, read_index
from pipelinejob_trainer.export.writing import write_json

_CONFIG, _TEMPLATE, _GENERATION = "tokenizer_config.json", "chat_template.jinja", "generation_config.json"
_STOPS = "eos_token_id"
_SPECIAL = ("bos_token_id", _STOPS, "pad_token_id")


def add_tokenizer(folder: Path, data: Data, config: Mapping[str, Any] | None) -> Iterator[str]:
    """Let a folder that holds a model be asked as its data were prepared; return what was changed, for the user.

    `config` is what config.json says, None for adapters alone, which say nothing of where
    generation stops. Data that are no prepared tokens change nothing; folders of them that are not
    here are said.
    """
    for source in data.tokens or ():
        path = Path(source.path)
        try:
            index = read_index(path, field="spec.data.tokens")
        except UserError:
            yield (
                f"{path}, which it was trained on, is not here: tokenizer, chat template and {_GENERATION} are those of"
                " the model's folder"
            )
            return
        yield from _with_tokenizer(folder, path / TOKENIZER)
        if index.settings.is_chat:
            yield from _with_template(folder, path / TOKENIZER)
        if config is not None:
            yield from _with_stop(folder, index, config)
        if index.settings.is_chat:
            return  # of several, the first one's template


def _with_tokenizer(folder: Path, of_data: Path) -> Iterator[str]:
    if not (folder / MAIN_FILE).exists():
        for file in sorted(of_data.iterdir()):
            if file.name != "config.json":
                shutil.copyfile(file, folder / file.name)
        yield "the tokenizer is that of the data"


def _with_template(folder: Path, of_data: Path) -> Iterator[str]:
    template = _template_of(of_data)
    if template is None or template == _template_of(folder):
        return
    (folder / _TEMPLATE).write_text(template, encoding="utf-8")
    settings = _read(folder / _CONFIG)
    if settings.pop("chat_template", None) is not None:
        write_json(folder / _CONFIG, settings)
    yield "the chat template is that of the data"


def _template_of(folder: Path) -> str | None:
    try:
        template: str = load_tokenizer(folder).get_chat_template()
    except (UserError, ValueError):  # no tokenizer of which that could be asked, or one without a template
        return None
    return template


def _with_stop(folder: Path, index: Index, config: Mapping[str, Any]) -> Iterator[str]:
    """Let generation stop at the token that ends what it was trained on."""
    end = index.tokenizer.end_of_text
    if end is None or not index.stops:
        return
    said = _read(folder / _GENERATION) or {name: config[name] for name in _SPECIAL if config.get(name) is not None}
    given = said.get(_STOPS)
    stops = [] if given is None else given if isinstance(given, list) else [given]
    if end not in stops:
        write_json(folder / _GENERATION, {**said, _STOPS: [*stops, end] if stops else end})
        yield f"generation stops at token {end} too, which ends what it was trained on"


def _read(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}
