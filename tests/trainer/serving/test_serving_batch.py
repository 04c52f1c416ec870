"""A batch loses no answer and writes none twice, wherever it is interrupted; what is wrong is said before it begins."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.serving.batches.batch import Batch
from pipelinejob_trainer.serving.batches.batch_files import Answers, read_ids, requests_of
from support.serving.serving_chains import Served, stages_of, tiny_folder
from support.serving.serving_fronts import front, write_tokenizer


def line(custom_id: Any, **given: Any) -> dict[str, Any]:
    body = {"model": "tiny", "prompt": f"about {custom_id}", "max_tokens": 6, "temperature": 0}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body} | given


def written(path: Path, lines: Sequence[Any]) -> Path:
    path.write_text("\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines) + "\n")
    return path


def answered(path: Path) -> dict[str, Any]:
    """Return answers by id; none may be there twice, and every line be whole."""
    text = path.read_text()
    assert text.endswith("\n")
    found = [json.loads(each) for each in text.splitlines()]
    assert len({each["custom_id"] for each in found}) == len(found)
    return {each["custom_id"]: each["response"] for each in found}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("{", "line 3 is no JSON"),
        ("[]", "line 3 is no object with a body"),
        (line("c", body="x"), "line 3 is no object with a body"),
        (line(""), "line 3 has no custom_id"),
        (line(7), "line 3 has no custom_id"),
        (line("a"), "line 3 custom_id 'a' stands in line 1 too"),
        (line("c", url="/v1/embeddings"), "line 3 has the url '/v1/embeddings'; use /v1/chat/completions"),
        (line("c", method="GET"), "line 3 has the method 'GET'"),
        (line("c", priority=1), "line 3 has a field 'priority'"),
    ],
)
def test_a_line_that_is_no_request_is_named_by_its_number(wrong: Any, says: str, tmp_path: Path) -> None:
    requests = written(tmp_path / "in", [line("a"), "", wrong, line("d")])

    with pytest.raises(UserError, match=r"spec\.serving\.batch\.input") as raised:
        Batch(requests, tmp_path / "out")

    assert says in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_request_without_a_url_is_a_chat_where_it_has_messages(tmp_path: Path) -> None:
    chat = {"custom_id": "c", "body": {"messages": []}}
    requests = written(tmp_path / "in", [{"custom_id": "t", "body": {"prompt": "x"}}, chat])

    assert [(each.custom_id, each.is_chat) for each in requests_of(requests)] == [("t", False), ("c", True)]
    assert read_ids(requests) == ["t", "c"]


def test_a_file_of_nothing_and_one_that_is_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no request"):
        read_ids(written(tmp_path / "in", [""]))
    with pytest.raises(UserError, match="mount or write it there"):
        read_ids(tmp_path / "nowhere")


def test_wherever_writing_was_cut_off_what_is_whole_stays_and_the_rest_comes_once(tmp_path: Path) -> None:
    ids = ["a", "b", "ü"]
    whole = tmp_path / "whole"
    with Answers(whole, ids) as answers:
        for each in ids:
            answers.append({"custom_id": each, "response": {"text": "x\ny"}})
    content = whole.read_bytes()

    for length in range(len(content) + 1):
        path = tmp_path / "cut"
        path.write_bytes(content[:length])
        with Answers(path, ids) as answers:
            assert answers.done == set(ids[: content[:length].count(b"\n")])
            for each in ids:
                if each not in answers.done:
                    answers.append({"custom_id": each, "response": {"text": "x\ny"}})
        assert path.read_bytes() == content


def test_answers_of_another_batch_doubled_ones_and_another_writer_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "out"
    for lines in ([{"custom_id": "z"}], [{"custom_id": "a"}, {"custom_id": "a"}], ["no json"]):
        written(path, lines)
        with pytest.raises(UserError, match=f"line {len(lines)} is no answer to a request of this batch, or a second"):
            Answers(path, ["a"])
    path.unlink()
    with Answers(path, ["a"]), pytest.raises(UserError, match="another process writes there"):
        Answers(path, ["a"])
    with pytest.raises(UserError, match="name a file that can be written"):
        Answers(tmp_path, ["a"])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder, _ = tiny_folder("llama", tmp_path_factory.mktemp("llama") / "model", vocab_size=257, eos_token_id=0)
    write_tokenizer(folder)
    with front(stages_of(folder, 2, num_blocks=200), folder, num_blocks=200, max_waiting=0) as (_, served):
        yield served


def test_a_batch_is_answered_and_its_wrong_requests_with_their_errors(served: Served, tmp_path: Path) -> None:
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "n": 2}
    requests = written(
        tmp_path / "in",
        [
            *[line(f"r{number}") for number in range(30)],
            line("chat", url="/v1/chat/completions", body=chat),
            line("model", body={"model": "other", "prompt": "x"}),
            line("stream", body={"model": "tiny", "prompt": "x", "stream": True}),
            line("long", body={"model": "tiny", "prompt": "x" * 500}),
        ],
    )
    batch = Batch(requests, tmp_path / "out")
    assert batch.num_left == 34

    asyncio.run(batch.answer(served.answering, at_once=40))  # more than groups hold, and none may wait: 429 comes again

    answers = answered(tmp_path / "out")
    assert {name: each["status_code"] for name, each in answers.items() if each["status_code"] != 200} == {
        "model": 404,
        "stream": 400,
        "long": 400,
    }
    assert "stream: an answer of a batch is written whole" in answers["stream"]["body"]["error"]["message"]
    assert len(answers["chat"]["body"]["choices"]) == 2
    assert [answers[f"r{number}"]["body"]["usage"]["completion_tokens"] for number in range(30)] == [6] * 30
    load = served.engine.load()
    assert (load.active, load.blocks_owned, served.answering.num_open) == (0, 0, 0)


def test_one_that_was_interrupted_goes_on_with_what_is_left_and_says_the_same(served: Served, tmp_path: Path) -> None:
    requests = written(tmp_path / "in", [line(f"r{number}") for number in range(40)])
    asyncio.run(Batch(requests, tmp_path / "undisturbed").answer(served.answering, at_once=8))

    async def interrupted() -> None:
        batch = Batch(requests, tmp_path / "out")
        work = asyncio.create_task(batch.answer(served.answering, at_once=8))
        while batch.num_left > 30:
            await asyncio.sleep(0.001)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)

    asyncio.run(interrupted())
    with (tmp_path / "out").open("ab") as file:
        file.write(b'{"custom_id": "r3')  # as a kill leaves it
    again = Batch(requests, tmp_path / "out")
    assert 0 < again.num_left <= 30
    asyncio.run(again.answer(served.answering, at_once=8))

    def texts(path: Path) -> dict[str, str]:
        return {name: each["body"]["choices"][0]["text"] for name, each in answered(path).items()}

    assert texts(tmp_path / "out") == texts(tmp_path / "undisturbed")
    assert Batch(requests, tmp_path / "out").num_left == 0


def test_a_stage_that_is_lost_meanwhile_costs_no_answer(served: Served, tmp_path: Path) -> None:
    requests = written(tmp_path / "in", [line(f"r{number}") for number in range(30)])

    async def disturbed() -> None:
        batch = Batch(requests, tmp_path / "out")
        work = asyncio.create_task(batch.answer(served.answering, at_once=8))
        while batch.num_left > 20:
            await asyncio.sleep(0.001)
        await asyncio.to_thread(served.end, 1)
        served.begin(1)
        await work

    asyncio.run(disturbed())

    assert {each["status_code"] for each in answered(tmp_path / "out").values()} == {200}
    assert len(answered(tmp_path / "out")) == 30
