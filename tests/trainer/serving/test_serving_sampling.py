"""How tokens are chosen, asked by OpenAI's own client: what leaves the likeliest alone, penalties, seeds, streams."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from pipelinejob_trainer.serving.front.text import FolderTokenizer
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


def text_of(client: openai.OpenAI, **given: Any) -> str:
    body = ASKED["extra_body"] | given.pop("extra_body", {})
    answer: str = client.completions.create(**ASKED | given, extra_body=body).choices[0].text
    return answer


def generated(saved: tuple[Path, Any], **given: Any) -> str:
    """Return what transformers' generate says."""
    folder, model = saved
    tokenizer = FolderTokenizer(folder)
    prompt = torch.tensor([tokenizer.encode(TEXT)])
    with torch.no_grad():
        said = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=NEW,
            eos_token_id=None,
            pad_token_id=0,
            do_sample=False,
            **given,
        )
    return tokenizer.decode(said[0, prompt.shape[1] :].tolist())


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 0},
        {"temperature": 1e-9},
        {"temperature": 2, "top_p": 0.0},
        {"temperature": 2, "extra_body": {"top_k": 1}},
        {"temperature": 2, "extra_body": {"min_p": 1.0}},
    ],
)
def test_what_leaves_the_likeliest_token_alone_answers_as_generate(
    client: openai.OpenAI, saved: tuple[Path, Any], given: dict[str, Any]
) -> None:
    assert text_of(client, **given) == generated(saved)


@pytest.mark.parametrize("factor", [1.2, 50.0])
def test_a_repetition_penalty_is_the_one_of_generate(
    client: openai.OpenAI, saved: tuple[Path, Any], factor: float
) -> None:
    found = text_of(client, temperature=0, extra_body={"repetition_penalty": factor})

    assert found == generated(saved, repetition_penalty=factor)
    assert factor < 2 or found != generated(saved)


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
