"""Hundreds of clients at once, of whom some leave and some do not read: the others are served, and nothing leaks."""

import asyncio
import time
from collections.abc import Iterator

import pytest

from support.serving.serving_chains import HANG_S, Served, stages_of, tiny_folder
from support.serving.serving_clients import Heard, ask
from support.serving.serving_fronts import front, write_tokenizer

CLIENTS = 300
PROMPTS = ("Hello, world", "def f(", "x")


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Served]]:
    folder, _ = tiny_folder("llama", tmp_path_factory.mktemp("llama") / "model", vocab_size=257, eos_token_id=0)
    write_tokenizer(folder)
    with front(stages_of(folder, 2, num_blocks=200), folder, num_blocks=200, group_size=16) as served:
        yield served


def body(number: int) -> dict[str, object]:
    return {
        "model": "tiny",
        "prompt": PROMPTS[number % len(PROMPTS)],
        "max_tokens": 24,
        "temperature": 0,
        "ignore_eos": True,
    }


def test_a_crowd_is_served_whoever_leaves_or_does_not_read(at: tuple[str, Served]) -> None:
    address, served = at

    async def crowd() -> tuple[list[Heard], list[Heard], list[Heard]]:
        alone = [await ask(address, body(number)) for number in range(len(PROMPTS))]
        others_are_done = asyncio.Event()
        numbers = range(CLIENTS)
        slow = [asyncio.create_task(ask(address, body(n), reads_after=others_are_done)) for n in numbers[::3]]
        leaving = [asyncio.create_task(ask(address, body(n), leaves_after=1 + n % 5)) for n in numbers[1::3]]
        reading = [asyncio.create_task(ask(address, body(n))) for n in numbers[2::3]]
        await asyncio.gather(*leaving, *reading)
        others_are_done.set()
        heard = await asyncio.gather(*slow)
        assert [each.text for each in heard] == [alone[n % len(PROMPTS)].text for n in numbers[::3]]
        texts = [each.result().text for each in reading]
        assert texts == [alone[n % len(PROMPTS)].text for n in numbers[2::3]]
        return alone, [each.result() for each in reading], heard

    alone, reading, slow = asyncio.run(asyncio.wait_for(crowd(), HANG_S))

    assert all(each.is_whole and each.status == 200 for each in (*alone, *reading, *slow))
    deadline = time.monotonic() + HANG_S
    while served.engine.load().active or served.answering.num_open:
        assert time.monotonic() < deadline, "answers of those who left are still in work"
        time.sleep(0.01)
    load = served.engine.load()
    assert (load.waiting, load.active, load.blocks_owned) == (0, 0, 0)
    assert not served.engine._listeners
    assert not served.engine._submitted_s
