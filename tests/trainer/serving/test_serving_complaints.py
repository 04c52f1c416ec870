"""What people who serve with vLLM, SGLang and others complain of, tried on this front; tests name the reports."""

import http.client
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipelinejob_trainer.serving.front import app
from pipelinejob_trainer.serving.front.errors import ApiError
from pipelinejob_trainer.serving.front.server import Ending, http_server
from pipelinejob_trainer.serving.front.text import FolderTokenizer
from support.serving.serving_chains import BLOCK, HANG_S
from support.serving.serving_faults import Gate
from support.serving.serving_fronts import front, write_tokenizer
from support.serving.serving_scripts import Scripted, write_word_tokenizer

DOCS = Path(__file__).parents[3] / "docs" / "serving.md"
TEXT = "Hello, naïve 日本語 🙂 world"
ASKED: dict[str, Any] = {"model": "tiny", "temperature": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> FolderTokenizer:
    return FolderTokenizer(folder)


@pytest.fixture(scope="module")
def url(folder: Path, tokenizer: FolderTokenizer) -> Iterator[str]:
    """A model that goes on with TEXT, and then ends."""
    with front([Scripted(tokenizer.encode(TEXT))], folder, groups=1, num_blocks=200) as (url, _):
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=HANG_S)


def open_client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=2, timeout=HANG_S)


def requests_counted(url: str) -> dict[str, int]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=HANG_S)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    found = [line.split() for line in lines if line.startswith("pipelinejob_serving_requests_total{")]
    return {name.partition('status="')[2][:3]: int(float(value)) for name, value in found}


def test_a_length_that_was_not_asked_for_never_refuses_a_prompt_that_leaves_room(client: openai.OpenAI) -> None:
    """vllm: `max_tokens` unset, and the context nearly full."""
    answer = client.completions.create(model="tiny", prompt="x" * 120, extra_body={"ignore_eos": True})
    full = client.completions.create(model="tiny", prompt="x" * 127)

    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (8, "length")
    assert full.usage.total_tokens == 128


def test_no_more_of_a_prompt_is_cached_than_it_has(client: openai.OpenAI) -> None:
    """Bills are made of prompt_tokens - cached_tokens."""
    usage = client.completions.create(**ASKED, prompt="y" * 40, n=8, max_tokens=2).usage
    again = client.completions.create(**ASKED, prompt="y" * 40, n=8, max_tokens=2).usage

    assert (usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens) == (40, 0)
    assert again.prompt_tokens_details.cached_tokens == 36


def test_best_of_as_many_as_are_asked_for_is_all_of_them(client: openai.OpenAI) -> None:
    assert len(client.completions.create(**ASKED, prompt="He", n=2, best_of=2, max_tokens=1).choices) == 2
    with pytest.raises(openai.BadRequestError, match="best_of: 3 is not supported"):
        client.completions.create(**ASKED, prompt="He", n=2, best_of=3, max_tokens=1)


def test_the_space_before_the_first_word_of_a_completion_is_told(tmp_path: Path) -> None:
    """transformers 22710: prompt and completion, put together, lost it."""
    write_word_tokenizer(tmp_path)
    tokenizer = FolderTokenizer(tmp_path)
    script = tokenizer.encode("The sky is blue")
    with front([Scripted(script, size=7)], tmp_path, groups=1, num_blocks=200) as (url, _):
        client = open_client(url)
        whole = client.completions.create(**ASKED, prompt="The sky").choices[0].text
        stream = client.completions.create(**ASKED, prompt="The sky", stream=True)

        assert whole == " is blue"
        assert "".join(each.choices[0].text for each in stream) == " is blue"


def test_a_character_that_the_prompt_only_began_is_told_whole_and_the_prompt_is_not(
    url: str, client: openai.OpenAI, tokenizer: FolderTokenizer
) -> None:
    """vllm 48853: tokens of a prompt that end within a character had the whole prompt told again."""
    begun = tokenizer.encode(TEXT)[: len("Hello, naïve ".encode()) + 2]  # two of the three bytes of a character

    told = client.completions.create(**ASKED, prompt=list(begun), max_tokens=30).choices[0].text

    assert told == "日本語 🙂 world"


def test_a_token_that_ends_the_text_is_not_told_though_its_tokenizer_does_not_hide_it(tmp_path: Path) -> None:
    """`<|im_end|>` at the end of answers, where generation_config.json alone knows it for an end."""
    write_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 1]}')  # 1 is the first of the bytes: !
    tokenizer = FolderTokenizer(tmp_path)
    with front([Scripted(tokenizer.encode("Hello!"))], tmp_path, groups=1, num_blocks=200) as (url, _):
        choice = open_client(url).completions.create(**ASKED, prompt="Hel").choices[0]

    assert (choice.text, choice.finish_reason) == ("lo", "stop")


def test_likeliest_tokens_that_are_parts_of_characters_are_told_apart(client: openai.OpenAI) -> None:
    """sglang 32290: all were the one text U+FFFD, and fewer came than were asked for."""
    told = client.completions.create(**ASKED, prompt="Hello, na", max_tokens=30, logprobs=5).choices[0]
    logprobs = told.logprobs

    assert [len(each) for each in logprobs.top_logprobs] == [5] * len(logprobs.tokens)
    assert "bytes:\\xc3" in logprobs.tokens
    for text, offset in zip(logprobs.tokens[:-1], logprobs.text_offset, strict=False):
        assert text.startswith("bytes:") or told.text[offset:].startswith(text)


def test_a_token_that_cannot_be_is_told_as_hardly_probable_and_not_as_nothing(
    folder: Path, tokenizer: FolderTokenizer
) -> None:
    """vllm: Out of range float values are not JSON compliant: -inf."""
    impossible = Scripted(tokenizer.encode(TEXT), unlikely=float("-inf"))
    with front([impossible], folder, groups=1, num_blocks=200) as (url, _):
        answer = open_client(url).completions.create(**ASKED, prompt="He", max_tokens=2, logprobs=3)

    logprobs = answer.choices[0].logprobs
    assert logprobs.token_logprobs == [0.0, 0.0]
    assert all(sorted(each.values()) == [-9999.0, -9999.0, 0.0] for each in logprobs.top_logprobs)


@pytest.mark.parametrize("stream", [False, True])
def test_logits_that_are_no_numbers_are_an_error_and_no_text(
    folder: Path, tokenizer: FolderTokenizer, stream: bool
) -> None:
    """vllm 22881, 14126: answers of nothing but exclamation marks."""
    script = [*tokenizer.encode("Hello"), -1]
    with front([Scripted(script)], folder, groups=1, num_blocks=200) as (url, served):
        client = open_client(url)
        with pytest.raises(openai.APIError, match="logits are not numbers"):
            list(client.completions.create(**ASKED, prompt="Hel", max_tokens=9, stream=stream))
        assert client.completions.create(**ASKED, prompt="Hel", max_tokens=2).choices[0].text == "lo"
        assert served.engine.load().blocks_owned == 0
        assert requests_counted(url) == ({"200": 2} if stream else {"200": 1, "500": 1})


def test_an_answer_that_took_too_long_is_not_asked_for_again_by_openais_client(
    folder: Path, tokenizer: FolderTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients that retry what timed out treble the load that it timed out for."""
    gate = Gate(Scripted(tokenizer.encode(TEXT)))
    with front([gate], folder, groups=1, num_blocks=200) as (url, served):
        monkeypatch.setattr(served.answering, "_timeout_s", 0.05)
        with pytest.raises(openai.InternalServerError, match=r"took longer than the 0\.05 s"):
            open_client(url).completions.create(**ASKED, prompt="He", max_tokens=2)
        counted = requests_counted(url)
        gate.opened.set()

    assert counted == {"504": 1}


def test_a_stream_that_waits_says_that_it_lives(
    folder: Path, tokenizer: FolderTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vllm 47647, llama.cpp 23994: proxies close what is silent for a minute, in line or in a long prompt."""
    monkeypatch.setattr(app, "_SILENCE_S", 0.02)
    gate = Gate(Scripted(tokenizer.encode(TEXT)))
    with front([gate], folder, groups=1, group_size=1, num_blocks=200) as (url, _):
        stream = open_client(url).completions.create(**ASKED, prompt="Hel", max_tokens=2, stream=True)
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=HANG_S)
        connection.request("POST", "/v1/completions", json.dumps(ASKED | {"prompt": "Hel", "stream": True}))
        answer = connection.getresponse()
        said = [answer.readline() for _ in range(4)]  # to one in line; the stream has had some, too
        gate.opened.set()
        text = "".join(each.choices[0].text for each in stream)
        connection.close()

    assert said == [b": in work\n", b"\n"] * 2
    assert text == "lo"


def test_idle_connections_are_kept_for_longer_than_load_balancers_keep_theirs(url: str) -> None:
    """vllm 18472, kserve 5446: uvicorn closes after 5 s what a gateway is about to use, which tells its client 502."""
    server = http_server(app.Front(None), Ending(leaving_s=1, grace_s=30))  # type: ignore[arg-type] # nobody asks it

    assert server.config.timeout_keep_alive > 600


def test_what_the_documented_endpoint_picker_reads_is_told(url: str) -> None:
    """Pickers of the Gateway API's inference extension pass by a pod whose metrics have other names."""
    asked = re.findall(r"Spec: (\w+)", DOCS.read_text())
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=HANG_S)
    connection.request("GET", "/metrics")
    told = {each.name: each for each in text_string_to_metric_families(connection.getresponse().read().decode())}
    connection.close()

    assert len(asked) == 5
    assert {told[name].type for name in asked} == {"gauge"}
    assert told["pipelinejob_serving_cache_usage"].samples[0].value == 0
    assert told["pipelinejob_serving_block_tokens"].samples[0].value == BLOCK


def test_a_body_that_does_not_arrive_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_BODY_S", 0.05)
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=HANG_S) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
        answer = connection.makefile("rb").readline()

    assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_key_may_have_any_characters(folder: Path, tokenizer: FolderTokenizer) -> None:
    with front([Scripted(tokenizer.encode(TEXT))], folder, keys=("schlüssel",), groups=1, num_blocks=200) as (url, _):
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=HANG_S)
        connection.request("GET", "/v1/models", headers={"Authorization": "Bearer schlüssel".encode()})  # type: ignore[dict-item] # as bytes
        status = connection.getresponse().status
        connection.close()

    assert status == 200


PLAIN = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"


def told_by(folder: Path, template: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
    tokenizer = FolderTokenizer(folder)
    tokenizer._tokenizer.chat_template = template
    tokenizer._knows_developers = "developer" in template
    return tokenizer.decode(tokenizer.encode_chat(messages, tools, {}))


def test_tools_that_a_template_does_not_write_are_refused(folder: Path) -> None:
    """dynamo 13396: the model never saw them, and the answer was 200."""
    asked = [{"role": "user", "content": "hi"}]
    tool = {"type": "function", "function": {"name": "f"}}

    with pytest.raises(ApiError, match="tools: the model's chat template does not write them"):
        told_by(folder, PLAIN, asked, [tool])
    assert told_by(folder, PLAIN + "{{ tools | length }}", asked, [tool]) == "user:hi;1"


def test_a_developers_message_is_a_systems_where_a_template_knows_no_developers(folder: Path) -> None:
    asked = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": "hi"}]

    assert told_by(folder, PLAIN, asked, []) == "system:be brief;user:hi;"
    assert told_by(folder, PLAIN + "{# developer #}", asked, []) == "developer:be brief;user:hi;"
