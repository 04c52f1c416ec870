"""Conversations with tools, as data sets of chats have them."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from support.training.preparing import CHATML, tokenizer_folder
from tokenizers import Tokenizer

from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.data.prepare.prepare import Request, prepare
from pipelinejob_trainer.data.tokens.folder import TokenFolder

TOOLED = (
    "{% if tools %}{{ '<|start|>tools\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{{ '<|end|>\n' }}"
    "{% endif %}{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' + (m['content'] or '') }}"
    "{% for call in m['tool_calls'] or () %}{{ call | tojson }}{% endfor %}{{ '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
ADD = {"type": "function", "function": {"name": "add", "parameters": {"a": {"type": "number"}}}}
NOW = {"type": "function", "function": {"name": "now", "parameters": {"zone": {"type": "string"}}}}
ASKED = {"role": "user", "content": "Say one."}


def called(function: dict[str, Any], **arguments: object) -> dict[str, Any]:
    call = {"name": function["function"]["name"], "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


ROWS = [
    {"messages": [ASKED, called(ADD, a=1)], "tools": [ADD]},
    {"messages": [ASKED, called(NOW, zone="UTC")], "tools": [NOW]},
]
FIRST = (
    '<|start|>tools\n{"type": "function", "function": {"name": "add", "parameters": {"a": {"type": "number"}}}}'
    "<|end|>\n"
    "<|start|>user\nSay one.<|end|>\n"
    '<|start|>assistant\n{"name": "add", "arguments": {"a": 1}}<|end|>\n'
)


def prepared(tmp_path: Path, source: Path, template: str = TOOLED) -> list[str]:
    """Return the texts of documents that were prepared."""
    tokenizer, target = tokenizer_folder(tmp_path / "tokenizer", template=template), tmp_path / "tokens"
    sources, column = (str(source),), "messages"
    prepare(Request(sources=sources, tokenizer=tokenizer, target=target, workers=1, messages_column=column))
    folder = TokenFolder(target, field="test")
    codec = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    ends = folder.document_ends().tolist()
    tokens = [folder.tokens(begin, end - begin).tolist() for begin, end in zip([0, *ends], ends, strict=False)]
    return [codec.decode(each, skip_special_tokens=False) for each in tokens]


def lines(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def table(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    file = tmp_path / "chats.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), file)
    return file


@pytest.mark.parametrize("write", [lines, table])
def test_the_model_is_told_of_the_tools_of_each_conversation_and_of_no_others(tmp_path: Path, write: Any) -> None:
    """A table has all rows' keys in every row, of parameters and of arguments too: they are not the row's own."""
    texts = prepared(tmp_path, write(tmp_path, ROWS))

    assert texts[0] == FIRST
    assert "now" in texts[1]
    assert "add" not in texts[1]
    assert "null" not in texts[1]


def test_tools_that_a_table_holds_as_json_are_the_same(tmp_path: Path) -> None:
    rows = [row | {"tools": json.dumps(row["tools"])} for row in ROWS]

    assert prepared(tmp_path, lines(tmp_path, rows))[0] == FIRST


def test_conversations_without_tools_are_as_they_were(tmp_path: Path) -> None:
    rows = [{"messages": [ASKED, {"role": "assistant", "content": "One."}], "tools": tools} for tools in (None, [], "")]

    assert prepared(tmp_path, lines(tmp_path, rows), CHATML)[0] == (
        "<|start|>user\nSay one.<|end|>\n<|start|>assistant\nOne.<|end|>\n"
    )


@pytest.mark.parametrize(
    ("tools", "template", "words"),
    [
        ([ADD], CHATML, "it has tools, of which the chat template would not tell the model"),
        ("[add", TOOLED, "tools is a text that is no JSON"),
        ({"add": 1}, TOOLED, "tools is no list of JSON schemas"),
    ],
)
def test_tools_that_the_model_would_not_see_are_refused(
    tmp_path: Path, tools: object, template: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        prepared(tmp_path, lines(tmp_path, [ROWS[0] | {"tools": tools}]), template)
