"""How tokens are chosen, asked by OpenAI's own client: seeds, penalties and probabilities, whole and streamed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from support.serving.serving_chains import HANG_S, stages_of, tiny_folder
from support.serving.serving_fronts import front, write_tokenizer

TEXT, NEW = "Hello, world", 20
ASKED: dict[str, Any] = {"model": "tiny", "prompt": TEXT, "max_tokens": NEW, "extra_body": {"ignore_eos": True}}
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": NEW}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder, model = tiny_folder("llama", tmp_path_factory.mktemp("llama") / "model", vocab_size=257, eos_token_id=0)
    write_tokenizer(folder)
    return folder, model


@pytest.fixture(scope="module")
def client(saved: tuple[Path, Any]) -> Iterator[openai.OpenAI]:
    folder, _ = saved
    with front(stages_of(folder, 2, num_blocks=200), folder, num_blocks=200) as (url, _):
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=HANG_S)


def test_a_seed_draws_the_same_whole_streamed_and_beside_others_and_another_draws_otherwise(
    client: openai.OpenAI,
) -> None:
    given = CHAT | {"seed": 7, "temperature": 1.5, "presence_penalty": 1.0, "frequency_penalty": 0.5}
    whole = client.chat.completions.create(**given, n=3)
    streamed: dict[int, str] = {0: "", 1: "", 2: ""}
    for chunk in client.chat.completions.create(**given, n=3, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    alone = client.chat.completions.create(**given)
    other = client.chat.completions.create(**given | {"seed": 70})

    texts = [each.message.content for each in whole.choices]
    assert list(streamed.values()) == texts
    assert alone.choices[0].message.content == texts[0] != other.choices[0].message.content


def test_a_stream_tells_probabilities_token_by_token(client: openai.OpenAI) -> None:
    given = CHAT | {"temperature": 0, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**given).choices[0].logprobs.content
    streamed = [
        entry
        for chunk in client.chat.completions.create(**given, stream=True)
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]

    assert [each.bytes for each in streamed] == [each.bytes for each in whole]
    assert [each.logprob for each in streamed] == pytest.approx([each.logprob for each in whole], abs=1e-4)
