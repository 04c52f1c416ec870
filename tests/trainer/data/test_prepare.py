"""`data prepare`: documents in, shards out; killed, split and fed what it cannot use."""

import gzip
import json
import random
import signal
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from tokenizers import Tokenizer

import pydoc_chats
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.data.prepare import inputs
from pipelinejob_trainer.data.prepare.errors import FolderError
from pipelinejob_trainer.data.prepare.inputs import Kind, Part
from pipelinejob_trainer.data.prepare.prepare import Request, prepare
from pipelinejob_trainer.data.prepare.reading import documents
from pipelinejob_trainer.data.tokens.folder import TokenFolder
from support.examples import examples
from support.local.processes import HANG_S
from support.tokens import preparing
from support.tokens.preparing import (
    CHAT,
    CHATML,
    END,
    MARKED,
    contents,
    in_process,
    prepared,
    texts,
    tokenizer_folder,
    write_data_set,
)


def documents_of(folder: TokenFolder) -> list[list[int]]:
    ends = folder.document_ends().tolist()
    return [folder.tokens(begin, end - begin).tolist() for begin, end in pairwise([0, *ends])]


def counted_of(folder: TokenFolder, tokenizer: Path) -> list[str]:
    """Return what counts in each document, stretch by stretch, as text."""
    codec = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    tokens, counts = folder.tokens(0, folder.index.tokens), folder.counts(0, folder.index.tokens)
    borders = [0, *(np.flatnonzero(np.diff(counts)) + 1).tolist(), len(tokens)]
    stretches = pairwise(borders)
    return [codec.decode(tokens[a:b].tolist(), skip_special_tokens=False) for a, b in stretches if counts[a]]


def test_every_text_comes_back_token_for_token(tmp_path: Path, tokenizer: Path) -> None:
    given_texts = [*texts(5), "", "ein Wörtchen 🦜"]
    folder = prepared(tmp_path / "tokens", tokenizer, given_texts)
    codec = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    end = codec.token_to_id(END)

    assert documents_of(folder) == [[*codec.encode(text).ids, end] for text in given_texts if text]
    assert folder.index.left_out == {"empty": 1}
    assert folder.index.tokenizer.end_of_text == end
    assert not (tmp_path / "tokens/.preparing").exists()


@pytest.mark.parametrize("kind", ["lines", "gzip", "parquet", "saved", "files", "separated"])
def test_each_kind_of_file_gives_the_same_documents(tmp_path: Path, tokenizer: Path, kind: str) -> None:
    given_texts = texts(4)
    reference = prepared(tmp_path / "reference", tokenizer, given_texts)
    source = tmp_path / "source"
    source.mkdir()
    options = {}
    if kind == "lines":
        preparing.write_lines(source / "a.jsonl", given_texts[:3])
        preparing.write_lines(source / "b.jsonl", given_texts[3:])
    elif kind == "gzip":
        content = "".join(json.dumps({"text": text}) + "\n" for text in given_texts)
        (source / "a.jsonl.gz").write_bytes(gzip.compress(content.encode(), mtime=0))
    elif kind == "parquet":
        table = pa.table({"id": [1, 2, 3, 4], "text": given_texts})
        parquet.write_table(table, source / "a.parquet", row_group_size=2)
    elif kind == "saved":
        write_data_set(source, given_texts, rows_of_batch=2)
    elif kind == "files":
        for number, text in enumerate(given_texts):
            (source / f"{number}.txt").write_text(text, encoding="utf-8")
    else:
        (source / "all.txt").write_text("<sep>".join(given_texts), encoding="utf-8")
        options["separator"] = "<sep>"
    prepare(Request(sources=(str(source),), tokenizer=tokenizer, target=tmp_path / kind, workers=1, **options))

    assert documents_of(TokenFolder(tmp_path / kind, field="test")) == documents_of(reference)


@settings(max_examples=examples(60), deadline=None)
@example(pieces=["", ""], separator="a|", borders=[1])
@given(
    pieces=st.lists(st.text(alphabet="ab\n|", max_size=6), min_size=1, max_size=12),
    separator=st.sampled_from(["\n", "|", "a|", "ab"]),
    borders=st.lists(st.integers(0, 80), max_size=5),
)
def test_a_file_is_cut_anywhere_without_losing_or_doubling_a_document(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[str], separator: str, borders: list[int]
) -> None:
    file = tmp_path_factory.mktemp("cut") / "all.txt"
    content = separator.join(pieces).encode()
    file.write_bytes(content)
    size = len(content)
    cuts = sorted({0, size, *(each for each in borders if each < size)})
    found = []
    for begin, end in pairwise(cuts):
        part = Part(path=str(file), kind=Kind.TEXT, is_compressed=False, begin=begin, end=end)
        found += [text for _, text in documents(part, column="", separator=separator)]

    assert [text for text in found if text] == [text for text in content.decode().split(separator) if text]


def test_one_process_and_three_write_the_same_bits(tmp_path: Path, tokenizer: Path) -> None:
    preparing.write_lines(tmp_path / "all.jsonl", texts(20))
    for workers in (1, 3):
        request = Request(
            sources=(f"{tmp_path}/all.jsonl",), tokenizer=tokenizer, target=tmp_path / str(workers), workers=workers
        )
        process = in_process(request)
        process.join(HANG_S)
        assert process.exitcode == 0

    one = contents(tmp_path / "1")
    assert one == contents(tmp_path / "3")
    assert sum(name.endswith(".bin") for name in one) > 3


@pytest.mark.parametrize("seed", range(3))
def test_killed_again_and_again_at_any_file_it_touches_it_ends_with_the_same_bits(
    tmp_path: Path, tokenizer: Path, seed: int
) -> None:
    dice = random.Random(seed)
    preparing.write_lines(tmp_path / "all.jsonl", texts(8))
    sources = (f"{tmp_path}/all.jsonl",)
    undisturbed = Request(sources=sources, tokenizer=tokenizer, target=tmp_path / "undisturbed", workers=1)
    process = in_process(undisturbed)
    process.join(HANG_S)
    assert process.exitcode == 0

    request = Request(sources=sources, tokenizer=tokenizer, target=tmp_path / "killed", workers=1)
    deaths = 0
    while True:
        process = in_process(request, dies_after=dice.randint(1, 40))
        process.join(HANG_S)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        deaths += 1

    assert deaths >= 1
    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")


def test_killed_from_outside_its_processes_end_with_it_and_it_goes_on(tmp_path: Path, tokenizer: Path) -> None:
    preparing.write_lines(tmp_path / "all.jsonl", texts(40))
    target = tmp_path / "tokens"
    request = Request(sources=(f"{tmp_path}/all.jsonl",), tokenizer=tokenizer, target=target, workers=2)
    process = in_process(request)
    deadline = time.monotonic() + HANG_S
    while not list(target.glob(".preparing/piece-*.json")) and process.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.join(HANG_S)
    again = in_process(request)  # which the first one's processes would not let in, or write beside
    again.join(HANG_S)

    assert again.exitcode == 0
    TokenFolder(target, field="test").verify()
    assert TokenFolder(target, field="test").index.documents == 40


def test_a_full_disk_is_said_and_gone_on_from(tmp_path: Path, tokenizer: Path) -> None:
    preparing.write_lines(tmp_path / "all.jsonl", texts(12))
    target = tmp_path / "tokens"
    request = Request(sources=(f"{tmp_path}/all.jsonl",), tokenizer=tokenizer, target=target, workers=1)
    process = in_process(request, largest_file=3000)
    process.join(HANG_S)
    said = (tmp_path / "tokens.error").read_text()

    assert process.exitcode == 1
    assert said.startswith("FolderError: --to: cannot write ")
    assert "File too large; make room there" in said
    with pytest.raises(UserError, match="is not prepared to its end; run the same"):
        TokenFolder(target, field="test")
    again = in_process(request)
    again.join(HANG_S)
    assert again.exitcode == 0
    assert TokenFolder(target, field="test").index.documents == 12


def test_prepared_already_it_changes_nothing_and_other_input_is_refused_until_fresh(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "tokens"
    source = preparing.write_lines(tmp_path / "all.jsonl", texts(3))
    request = Request(sources=(str(source),), tokenizer=tokenizer, target=target, workers=1)
    prepare(request)
    before = {file: file.stat().st_mtime_ns for file in target.rglob("*")}
    prepare(request)

    assert {file: file.stat().st_mtime_ns for file in target.rglob("*")} == before
    assert "prepared already" in capsys.readouterr().out

    preparing.write_lines(source, texts(4))
    with pytest.raises(FolderError, match=r"prepared from other files.*all\.jsonl.*--fresh"):
        prepare(request)
    prepare(Request(sources=(str(source),), tokenizer=tokenizer, target=target, workers=1, is_fresh=True))
    assert TokenFolder(target, field="test").index.documents == 4


def test_fresh_deletes_nothing_that_it_did_not_write(tmp_path: Path, tokenizer: Path) -> None:
    target = tmp_path / "model"
    (target / "tokenizer").mkdir(parents=True)
    (target / "tokenizer/precious").write_text("mine")
    (target / "index.json").write_text("{}")
    source = preparing.write_lines(tmp_path / "all.jsonl", texts(1))

    with pytest.raises(UserError):
        prepare(Request(sources=(str(source),), tokenizer=tokenizer, target=target, workers=1, is_fresh=True))
    assert (target / "tokenizer/precious").read_text() == "mine"


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["by beginnings", "by marks"])
def test_of_a_conversation_just_the_answers_count(tmp_path: Path, template: str) -> None:
    tokenizer = tokenizer_folder(tmp_path / "tokenizer", template=template)
    unanswered = CHAT[:1]
    folder = prepared(tmp_path / "tokens", tokenizer, [CHAT, unanswered], column="messages", messages_column="messages")

    assert counted_of(folder, tokenizer) == ["One.<|end|>", "Two it is.<|end|>"]
    assert folder.index.left_out == {"without an answer that counts": 1}
    assert folder.index.stops == 2


def test_what_follows_a_marked_answer_does_not_count_whatever_it_ends_with(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
        "{% else %}{{ '<|start|>' + m['content'] }}{% endif %}{% endfor %}"
    )
    tokenizer = tokenizer_folder(tmp_path / "tokenizer", template=template)
    messages = [{"role": "assistant", "content": "A"}, {"role": "user", "content": "user message"}]
    folder = prepared(tmp_path / "tokens", tokenizer, [messages], column="messages", messages_column="messages")

    assert counted_of(folder, tokenizer) == ["A"]


def test_a_whole_documentation_as_chat_counts_just_its_answers(tmp_path: Path, tokenizer: Path) -> None:
    conversations = [each["messages"] for each in pydoc_chats.conversations()][:30]
    folder = prepared(tmp_path / "tokens", tokenizer, conversations, column="messages", messages_column="messages")
    answers = [each["content"] + END for messages in conversations for each in messages if each["role"] == "assistant"]

    assert counted_of(folder, tokenizer) == answers


def test_parquet_of_conversations_has_every_key_and_still_reads(tmp_path: Path, tokenizer: Path) -> None:
    messages = [[{"name": None, **message} for message in CHAT]]
    parquet.write_table(pa.table({"messages": messages}), tmp_path / "chat.parquet")
    request = Request(
        sources=(f"{tmp_path}/chat.parquet",),
        tokenizer=tokenizer,
        target=tmp_path / "tokens",
        workers=1,
        messages_column="messages",
    )
    prepare(request)

    assert counted_of(TokenFolder(tmp_path / "tokens", field="test"), tokenizer)[0] == "One.<|end|>"


def test_batches_of_an_arrow_file_are_shared_out(tmp_path: Path) -> None:
    write_data_set(tmp_path, [letter * 400_000 for letter in "abcdef"], rows_of_batch=2)

    (file,) = inputs.found_files([str(tmp_path)])
    made = inputs.pieces(inputs.as_inputs([file]), separator=None)
    read = [
        value[0]
        for piece in made
        for part in piece.parts
        for _, value in documents(part, column="text", separator=None)
    ]

    assert [(each.parts[0].begin, each.parts[0].end) for each in made] == [(0, 1), (1, 2), (2, 3)]
    assert read == list("abcdef")
