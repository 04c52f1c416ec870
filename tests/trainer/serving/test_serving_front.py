"""The HTTP front, with OpenAI's own client where that can say it, and with plain HTTP where it would not."""

import concurrent.futures
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from pipelinejob_trainer.serving.front.text import FolderTokenizer
from pipelinejob_trainer.serving.front.wanted import read_chat
from support.serving.serving_chains import HANG_S, Served, stages_of, tiny_folder
from support.serving.serving_faults import Gate
from support.serving.serving_fronts import front, write_tokenizer

KEY = "a-key"
OWN = 'namespace="default",pipelinejob="tiny"'
TEXT = "Hello, world"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, _ = tiny_folder("llama", tmp_path_factory.mktemp("llama") / "model", vocab_size=257, eos_token_id=0)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def stages(folder: Path) -> list[Any]:
    return stages_of(folder, 2, num_blocks=200)


@pytest.fixture(scope="module")
def at(stages: list[Any], folder: Path) -> Iterator[tuple[str, Served]]:
    with front(stages, folder, keys=("another", KEY), num_blocks=200) as served:
        yield served


@pytest.fixture(scope="module")
def client(at: tuple[str, Served]) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{at[0]}/v1", api_key=KEY, max_retries=0, timeout=HANG_S)


def post(
    url: str, path: str, body: Any, *, key: str = KEY, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, Any], Any]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=HANG_S)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, data, {"Authorization": f"Bearer {key}"} | (headers or {}))
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, dict(response.headers), answer


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def idle(served: Served) -> bool:
    load = served.engine.load()
    return (load.active, load.waiting, load.blocks_owned, served.answering.num_open) == (0, 0, 0, 0)


def test_a_completion_is_the_same_whole_streamed_and_again(client: openai.OpenAI) -> None:
    given: dict[str, Any] = {"model": "tiny", "prompt": TEXT, "max_tokens": 20, "temperature": 0}
    whole = client.completions.create(**given)
    chunks = list(client.completions.create(**given, stream=True, stream_options={"include_usage": True}))

    assert whole.usage.prompt_tokens == len(TEXT)
    assert whole.usage.completion_tokens == 20
    assert whole.choices[0].finish_reason == "length"
    assert "".join(each.choices[0].text for each in chunks if each.choices) == whole.choices[0].text
    assert chunks[-1].usage.completion_tokens == 20
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 0


def test_a_chat_is_streamed_as_deltas_and_seeds_repeat_it(client: openai.OpenAI) -> None:
    given: dict[str, Any] = {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        ],
        "max_completion_tokens": 16,
        "seed": 5,
        "n": 2,
    }
    whole = client.chat.completions.create(**given)
    texts = ["", ""]
    for chunk in client.chat.completions.create(**given, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""

    assert texts == [each.message.content for each in whole.choices]
    assert whole.usage.prompt_tokens == len("system:be brief;user:hi;assistant:")
    assert whole.choices[0].message.content != whole.choices[1].message.content


def test_tools_reach_the_template(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {}}}
    given: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}

    without = client.chat.completions.create(**given).usage.prompt_tokens
    with_ = client.chat.completions.create(**given, tools=[tool]).usage.prompt_tokens

    assert with_ - without == len("tools:1;")


def test_an_assistant_that_called_a_tool_and_said_nothing_is_read(folder: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    asked = [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    messages = read_chat(json.dumps(CHAT | {"messages": asked}).encode()).messages

    assert messages[1]["content"] == ""
    assert messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert (
        FolderTokenizer(folder)
        .decode(FolderTokenizer(folder).encode_chat(messages, (), {}))
        .endswith("assistant:;assistant:")
    )


def test_logprobs_are_told_in_both_forms(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "a"}],
        max_tokens=3,
        logprobs=True,
        top_logprobs=4,
        temperature=0,
    )
    text = client.completions.create(model="tiny", prompt="a", max_tokens=3, logprobs=2, temperature=0)

    entries = chat.choices[0].logprobs.content
    told = bytes(byte for each in entries for byte in each.bytes)  # which may be parts of characters
    assert told.decode(errors="replace") == chat.choices[0].message.content
    assert [len(each.top_logprobs) for each in entries] == [4, 4, 4]
    assert all(each.logprob == each.top_logprobs[0].logprob <= 0 for each in entries)
    assert [len(each) for each in text.choices[0].logprobs.top_logprobs] == [2, 2, 2]


def test_a_stop_ends_the_text_before_it_and_frees_the_slot(client: openai.OpenAI, at: tuple[str, Served]) -> None:
    given: dict[str, Any] = {"model": "tiny", "prompt": TEXT, "max_tokens": 60, "temperature": 0}
    text = client.completions.create(**given).choices[0].text
    stop = text[20:23]
    stopped = client.completions.create(**given, stop=[stop, "never there"])
    streamed = list(client.completions.create(**given, stop=stop, stream=True))

    assert stopped.choices[0].text == text[: text.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"
    assert "".join(each.choices[0].text for each in streamed) == stopped.choices[0].text
    until(lambda: idle(at[1]))


CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
DONE = {"model": "tiny", "prompt": "hi"}


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("completions", b"{", 400, "the body is no JSON"),
        ("completions", b'{"model": "\xff"}', 400, "the body is no JSON"),
        ("completions", b"[]", 400, "send a JSON object"),
        ("completions", DONE | {"model": "other"}, 404, "use 'tiny'"),
        ("completions", {"model": "tiny"}, 400, "prompt: null is no prompt"),
        ("completions", DONE | {"prompt": ""}, 400, "prompt: has no tokens"),
        ("completions", DONE | {"prompt": [1, 999]}, 400, "999 is no token of this model, whose tokens are 0 to 256"),
        ("completions", DONE | {"prompt": "x" * 128}, 400, "128 tokens leave no room for an answer in the 128"),
        ("completions", DONE | {"max_tokens": 127}, 400, "use at most 126"),
        ("completions", DONE | {"max_tokens": 0}, 400, "max_tokens: 0 is not 1 or more"),
        ("completions", DONE | {"temperature": -1}, 400, "temperature: -1 is not between 0 and 100"),
        ("completions", DONE | {"temperature": "hot"}, 400, 'temperature: "hot" is no number'),
        ("completions", DONE | {"top_p": 1.5}, 400, "top_p: 1.5 is not between 0 and 1"),
        ("completions", DONE | {"n": 65}, 400, "n: 65 is not between 1 and 64"),
        ("completions", DONE | {"prompt": ["a"] * 9, "n": 8}, 400, "more answers than the 64"),
        ("completions", DONE | {"stop": [""]}, 400, "stop"),
        ("completions", DONE | {"seed": 1.5}, 400, "seed: 1.5 is no whole number"),
        ("completions", DONE | {"echo": True}, 400, "echo: true is not supported"),
        ("completions", DONE | {"logprobs": 6}, 400, "logprobs: 6 is not between 0 and 5"),
        ("completions", DONE | {"temprature": 1}, 400, "temprature: is no field that is known here"),
        ("chat/completions", CHAT | {"messages": []}, 400, "messages"),
        ("chat/completions", CHAT | {"messages": [{"content": "x"}]}, 400, "messages[0].role: is null"),
        ("chat/completions", CHAT | {"messages": [{"role": "odd", "content": "x"}]}, 400, "no odd roles"),
        ("chat/completions", CHAT | {"messages": [{"role": "user", "content": [{"type": "x"}]}]}, 400, "only parts"),
        ("chat/completions", CHAT | {"top_logprobs": 3}, 400, "set logprobs to true"),
        ("chat/completions", CHAT | {"response_format": {"type": "json_object"}}, 400, "response_format"),
        ("chat/completions", CHAT | {"tool_choice": "required"}, 400, "use auto or none"),
        ("chat/completions", CHAT | {"messages": [{"role": "user"}]}, 400, "messages[0].content: is null"),
        ("chat/completions", CHAT | {"messages": [{"role": "assistant", "tool_calls": 3}]}, 400, "send a list of"),
        ("chat/completions", CHAT | {"chat_template_kwargs": {"chat_template": "x"}}, 400, "chat_template: cannot be"),
        ("chat/completions", CHAT | {"max_completion_tokens": 900}, 400, "max_completion_tokens: 900 tokens after"),
        ("completions", DONE | {"stop": "x" * 1001}, 400, "stop: one has 1001 characters; use at most 1000"),
        ("completions", DONE | {"stream": True, "stream_options": {"every": 1}}, 400, "stream_options.every"),
        ("completions", b'{"model": "tiny", "prompt": ["x", %s]}' % (b"[" * 300 + b"]" * 300), 400, "many levels"),
        ("completions/", DONE, 404, "there is nothing at this path"),
        ("nothing", {}, 404, "there is nothing at this path"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_in_openais_form(
    at: tuple[str, Served], path: str, body: Any, status: int, says: str
) -> None:
    found, _, answer = post(at[0], f"/v1/{path}", body)

    assert found == status
    assert says in answer["error"]["message"]
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert idle(at[1])


def test_what_other_methods_there_are_is_told(at: tuple[str, Served]) -> None:
    connection = http.client.HTTPConnection(at[0].removeprefix("http://"), timeout=HANG_S)
    connection.request("OPTIONS", "/v1/chat/completions")
    response = connection.getresponse()
    response.read()
    connection.close()

    assert (response.status, response.headers["allow"]) == (405, "POST")


def test_a_fault_of_the_servers_own_is_told_in_openais_form(
    at: tuple[str, Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(at[1].answering, "prepare", fail)
    status, _, answer = post(at[0], "/v1/completions", DONE)

    assert (status, answer["error"]["code"], answer["error"]["type"]) == (500, "internal_error", "server_error")


def test_a_body_that_is_too_long_is_refused(at: tuple[str, Served]) -> None:
    status, _, answer = post(at[0], "/v1/completions", DONE | {"user": "x" * (5 << 20)})

    assert (status, answer["error"]["code"]) == (413, "too_large")


def test_without_a_right_key_nothing_is_answered(at: tuple[str, Served]) -> None:
    for key in ("", "wrong", "anothe"):
        status, headers, answer = post(at[0], "/v1/completions", DONE, key=key)
        assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        assert headers["www-authenticate"] == "Bearer"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{at[0]}/v1", api_key="wrong", max_retries=0).models.list()


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert [each.id for each in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_clients_that_leave_free_their_slots(at: tuple[str, Served]) -> None:
    url, served = at
    for stream in (True, False):
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=HANG_S)
        body = json.dumps(DONE | {"max_tokens": 120, "stream": stream, "ignore_eos": True, "n": 8})
        connection.request("POST", "/v1/completions", body, {"Authorization": f"Bearer {KEY}"})
        if stream:
            connection.getresponse().read(100)
        else:
            until(lambda: served.engine.load().active > 0)
        connection.close()
        until(lambda: idle(served))


def test_a_full_line_is_refused_with_when_to_come_again_and_nothing_is_lost(stages: list[Any], folder: Path) -> None:
    gate = Gate(stages[0])
    limits = {"groups": 3, "group_size": 1, "max_waiting": 2, "num_blocks": 200}
    with front([gate, stages[1]], folder, **limits) as (url, served):
        body = DONE | {"max_tokens": 20, "temperature": 0, "ignore_eos": True}
        with concurrent.futures.ThreadPoolExecutor(24) as pool:
            asked = [pool.submit(post, url, "/v1/completions", body) for _ in range(24)]
            until(lambda: sum(each.done() for each in asked) == 24 - 5)
            gate.opened.set()
        found = [each.result() for each in asked]
        until(lambda: idle(served))

    texts = [answer["choices"][0]["text"] for status, _, answer in found if status == 200]
    refused = [(headers["retry-after"], answer["error"]["code"]) for status, headers, answer in found if status == 429]
    assert len(texts) == 5
    assert len(set(texts)) == 1
    assert refused == [("2", "line_full")] * 19


def test_without_its_stages_the_front_says_so_and_when_to_come_again(stages: list[Any], folder: Path) -> None:
    with front(stages, folder, num_blocks=200) as (url, served):
        served.end(1)
        until(lambda: not served.engine.is_ready)
        status, headers, answer = post(url, "/v1/completions", DONE)
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=HANG_S)
        connection.request("GET", "/readyz")
        readiness = connection.getresponse()
        says = readiness.read().decode()
        connection.close()

    assert (status, headers["retry-after"]) == (503, "5")
    assert "stages 1 are not there" in answer["error"]["message"]
    assert (readiness.status, says) == (503, "stages 1 are not there\n")


def test_a_front_that_is_to_stop_answers_who_still_comes_and_sends_him_elsewhere(
    stages: list[Any], folder: Path
) -> None:
    with front(stages, folder, num_blocks=200) as (url, served):
        served.front.is_leaving = True
        status, headers, _ = post(url, "/v1/completions", DONE | {"prompt": TEXT, "max_tokens": 3})
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=HANG_S)
        connection.request("GET", "/readyz")
        readiness = connection.getresponse().status
        connection.close()

    assert (status, headers["connection"]) == (200, "close")
    assert readiness == 503


def test_metrics_tell_of_tokens_times_batches_and_stages(client: openai.OpenAI, at: tuple[str, Served]) -> None:
    client.completions.create(model="tiny", prompt=TEXT, max_tokens=5)
    connection = http.client.HTTPConnection(at[0].removeprefix("http://"), timeout=HANG_S)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()

    for name in ("generated_tokens_total", "time_to_first_token_seconds_count", "time_per_token_seconds_count"):
        (value,) = [line.split()[1] for line in text.splitlines() if line.startswith(f"pipelinejob_serving_{name}{{")]
        assert float(value) >= 4
    for stage in ("0", "1"):
        assert f'pipelinejob_serving_stage_busy_seconds_total{{{OWN},stage="{stage}"}}' in text


def test_answers_of_many_clients_at_once_are_each_their_own(at: tuple[str, Served]) -> None:
    """A hundred connections, of which every fourth leaves early."""
    url, served = at
    prompts = [f"request {number}" for number in range(12)]

    def ask(number: int) -> str | None:
        body = DONE | {"prompt": prompts[number % 12], "max_tokens": 10, "temperature": 0, "ignore_eos": True}
        if number % 4 == 3:
            connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=HANG_S)
            connection.request("POST", "/v1/completions", json.dumps(body), {"Authorization": f"Bearer {KEY}"})
            threading.Event().wait(0.01 * (number % 7))
            connection.close()
            return None
        status, _, answer = post(url, "/v1/completions", body)
        assert status == 200
        text: str = answer["choices"][0]["text"]
        return text

    expected = [ask(number) if number % 4 != 3 else None for number in range(12)]
    with concurrent.futures.ThreadPoolExecutor(100) as pool:
        found = list(pool.map(ask, range(100)))
    for number, text in enumerate(found):
        if text is not None and expected[number % 12] is not None:
            assert text == expected[number % 12]
    until(lambda: idle(served))
