"""`data prepare` that is fed what it cannot use: which file, which place in it, and what to do."""

import gzip
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.data.prepare import inputs
from pipelinejob_trainer.data.prepare.prepare import Request, prepare
from pipelinejob_trainer.data.tokens.folder import TokenFolder
from support.tokens import preparing
from support.tokens.preparing import (
    CHAT,
    CHATML,
    END,
    FORGETFUL,
    tokenizer_folder,
    write_data_set,
)

BAD = [
    ([CHAT, "no list"], CHATML, "is no list of messages"),
    ([[{"from": "human", "value": "x"}]], CHATML, "message 0 has no role, but 'from', 'value'"),
    ([CHAT], FORGETFUL, "message 1: the chat template writes it otherwise where more follows"),
    (
        [[*CHAT[:1], {"role": "assistant", "content": "  x"}]],
        CHATML.replace("<|start|>assistant\n", "A: "),
        "otherwise",
    ),
    ([[*CHAT[:1], {"role": "assistant", "content": "   x"}]], CHATML, "answer 0: the tokenizer joins where the answer"),
    ([CHAT], "{{ raise_exception('Roles must alternate') }}", "the chat template refuses it: Roles must alternate"),
]


@pytest.mark.parametrize(("conversations", "template", "said"), BAD)
def test_what_is_no_conversation_is_named_with_its_place(
    tmp_path: Path, conversations: list[object], template: str, said: str
) -> None:
    tokenizer = tokenizer_folder(tmp_path / "tokenizer", template=template)

    source = preparing.write_lines(tmp_path / "all.jsonl", conversations, column="messages")
    request = Request(
        sources=(str(source),),
        tokenizer=tokenizer,
        target=tmp_path / "tokens",
        workers=1,
        messages_column="messages",
    )

    with pytest.raises(UserError, match=r"all\.jsonl, at byte \d+: ") as caught:
        prepare(request)
    assert said in str(caught.value)
    assert str(caught.value).endswith("--skip-bad")


def test_bad_documents_are_left_out_and_counted_when_asked(tmp_path: Path, tokenizer: Path) -> None:
    source = tmp_path / "all.jsonl"
    source.write_bytes(b'{"text": "one"}\n{"txet": "two"}\nthree\n{"text": 4}\n\n{"text": "five"}\n')
    prepare(Request(sources=(str(source),), tokenizer=tokenizer, target=tmp_path / "tokens", workers=1, skips_bad=True))

    index = TokenFolder(tmp_path / "tokens", field="test").index
    assert index.documents == 2
    assert index.left_out == {"no 'text'": 1, "no JSON": 1, "no text": 1}


def _files(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


UNREADABLE = [
    ("a.jsonl", b'{"txet": "x"}\n', r"has no 'text', but 'txet'; name one of them with --text-column"),
    ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"at byte 14: the line is no JSON"),
    ("a.jsonl", b'["x"]\n', "no JSON object"),
    ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 999, mtime=0)[:-9], "cannot be read to its end: .*; is it whole"),
    ("a.jsonl.gz", b"no gzip", "cannot be read to its end: Not a gzipped file"),
    ("a.txt", b"caf\xe9", "no UTF-8 .* at its byte 3"),
    ("a.parquet", b"PAR1 no parquet", "is no parquet file"),
    ("a.arrow", b"no arrow", "is no whole Arrow file"),
    ("a.csv", b"a,b", "is CSV; write it as parquet or jsonl"),
    ("a.json", b"[]", "is JSON, not one document a line"),
    ("a.jsonl", b'{"text": ""}\n', "no document is left to train on .1 empty."),
]


@pytest.mark.parametrize(("name", "content", "said"), UNREADABLE)
def test_a_file_that_cannot_be_used_is_named(
    tmp_path: Path, tokenizer: Path, name: str, content: bytes, said: str
) -> None:
    source = _files(tmp_path, name, content)

    with pytest.raises(UserError, match=said) as caught:
        prepare(Request(sources=(source,), tokenizer=tokenizer, target=tmp_path / "tokens", workers=1))
    assert "--from" in str(caught.value)


def test_a_parquet_file_without_the_column_names_those_it_has(tmp_path: Path, tokenizer: Path) -> None:
    parquet.write_table(pa.table({"content": ["x"], "id": [1]}), tmp_path / "a.parquet")

    with pytest.raises(UserError, match=r"has no column 'text', but 'content', 'id'; name one") as caught:
        prepare(Request(sources=(f"{tmp_path}/a.parquet",), tokenizer=tokenizer, target=tmp_path / "tokens", workers=1))
    assert caught.value.reason == "NoColumn"


def test_a_saved_data_set_says_which_splits_it_has_and_what_is_missing(tmp_path: Path, tokenizer: Path) -> None:
    for split in ("test", "train"):
        (tmp_path / split).mkdir()
        write_data_set(tmp_path / split, ["x", "y"], rows_of_batch=1)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    (tmp_path / "test/data-00000-of-00001.arrow").unlink()
    request = Request(sources=(str(tmp_path),), tokenizer=tokenizer, target=tmp_path / "tokens", workers=1)

    with pytest.raises(UserError, match=r"the splits test, train; name one of them, as in --from .*/test"):
        prepare(request)
    with pytest.raises(UserError, match=r"state.json names data-00000-of-00001.arrow, which is not there"):
        prepare(replace(request, sources=(f"{tmp_path}/test",)))
    with pytest.raises(UserError, match=r"has no column 'body', but 'id', 'text'; name one of them"):
        prepare(replace(request, sources=(f"{tmp_path}/train",), text_column="body"))


def test_tokenizers_that_cannot_do_it_are_named(tmp_path: Path, tokenizer: Path) -> None:
    source = str(preparing.write_lines(tmp_path / "all.jsonl", ["x"]))

    def refusal(folder: Path, **options: str) -> str:
        with pytest.raises(UserError) as caught:
            prepare(Request(sources=(source,), tokenizer=folder, target=tmp_path / "tokens", workers=1, **options))
        return str(caught.value)

    assert "is no folder here" in refusal(tmp_path / "nothing")
    assert "holds no tokenizer.json" in refusal(tmp_path)
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(tokenizer / "tokenizer.json", bare)
    assert "names no token that ends a text" in refusal(bare)
    assert "has no such token" in refusal(bare, end_of_text="<eos>")
    assert "has no chat template" in refusal(bare, end_of_text=END, messages_column="messages")
    (bare / "tokenizer.json").write_text("{}")
    assert "transformers cannot read it" in refusal(bare)


def test_files_named_twice_or_not_there_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")

    with pytest.raises(UserError, match=r"is named by --from .* too"):
        inputs.found_files([f"{tmp_path}/*.txt", f"{tmp_path}/a.txt"])
    with pytest.raises(UserError, match="no such file or folder"):
        inputs.found_files([f"{tmp_path}/b.txt"])
