"""Chains of stages that answer: token for token what transformers' generate says, batched or alone, chunked or not."""

import contextlib
import queue
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelinejob.serving.chunks import Late, PassCost, all_costs, explained
from pipelinejob.serving.passes import Row, Sampling
from pipelinejob.serving.scheduler import Limits
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.serving.calibration import measured_cost
from pipelinejob_trainer.serving.chain import Chain
from pipelinejob_trainer.serving.check import check_decoding
from pipelinejob_trainer.serving.sampling import sample
from pipelinejob_trainer.serving.stage_model import load_stage
from pipelinejob_trainer.serving.wire import Frame, Kind, send
from support.serving.greedy import NEAR, generated, parted
from support.serving.serving_chains import BLOCK, COST, HANG_S, TINY, serving, spec_of, stages_of, tiny_folder
from support.serving.serving_faults import Fragile

NEW = 12
PROMPTS = [[5, 9, 33, 7], [11, 4], [70, 3, 3, 8, 21, 40, 41, 42, 43, 9, 10, 12, 50], [1], [5, 9, 33, 7, 60, 61]]


@pytest.fixture(scope="module", params=sorted(TINY))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    return tiny_folder(request.param, tmp_path_factory.mktemp(request.param) / "model")


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_greedy_answers_are_those_of_generate_batched_and_alone_chunked_and_whole(
    family: tuple[Path, Any], stages: int
) -> None:
    folder, model = family
    expected = [generated(model, prompt, NEW) for prompt in PROMPTS]
    near: list[float | None] = []
    for chunk in (5, 64):
        with serving(stages_of(folder, stages), chunk_tokens=chunk, group_size=2) as served:
            near += [parted(served.submit(prompt, NEW), one) for prompt, one in zip(PROMPTS, expected, strict=True)]
            together = [served.submit(prompt, NEW) for prompt in PROMPTS]
            near += [parted(told, one) for told, one in zip(together, expected, strict=True)]

    margins = [each for each in near if each is not None]
    print(f"{len(margins)} of {len(near)} answers part from generate's at near ties, by margins {margins}")
    assert all(margin < NEAR for margin in margins)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    return tiny_folder("llama", tmp_path_factory.mktemp("llama") / "model")


@pytest.mark.parametrize("which", [1, 2])
def test_when_a_stage_dies_answers_in_work_go_on_from_their_tokens(llama: tuple[Path, Any], which: int) -> None:
    folder, model = llama
    expected = [generated(model, prompt, NEW) for prompt in PROMPTS]
    stages = stages_of(folder, 3)
    stages[which] = fragile = Fragile(stages[which])
    fragile.dies_at = 17
    with serving(stages) as served:
        told = [served.submit(prompt, NEW) for prompt in PROMPTS]
        near = [parted(each, one) for each, one in zip(told, expected, strict=True)]
        load = served.engine.load()

    assert near == [None] * len(PROMPTS)
    assert load.chains == 2
    assert load.blocks_owned == 0


def test_a_cache_too_small_for_all_at_once_gives_the_same_answers(llama: tuple[Path, Any]) -> None:
    folder, model = llama
    with serving(stages_of(folder, 2, num_blocks=9), num_blocks=9) as served:
        told = [served.submit(prompt, NEW) for prompt in PROMPTS * 2]
        near = [parted(each, generated(model, prompt, NEW)) for each, prompt in zip(told, PROMPTS * 2, strict=True)]

    assert near == [None] * len(near)


def test_what_is_drawn_depends_on_the_request_alone(llama: tuple[Path, Any]) -> None:
    folder, _ = llama
    with serving(stages_of(folder, 2)) as served:
        alone = served.submit(PROMPTS[0], NEW, temperature=1.0, seed=3)
        assert alone.done.wait(HANG_S)
        others = [served.submit(prompt, NEW, temperature=1.0, seed=seed) for seed, prompt in enumerate(PROMPTS)]
        again = served.submit(PROMPTS[0], NEW, temperature=1.0, seed=3)
        other_seed = served.submit(PROMPTS[0], NEW, temperature=1.0, seed=4)
        assert all(each.done.wait(HANG_S) for each in (*others, again, other_seed))

    assert again.tokens == alone.tokens
    assert other_seed.tokens != alone.tokens


def test_a_cancelled_answer_frees_its_blocks_and_is_told_no_more(llama: tuple[Path, Any]) -> None:
    folder, _ = llama
    with serving(stages_of(folder, 2)) as served:
        left = served.submit(PROMPTS[0], 100)
        served.engine.cancel(1)
        other = served.submit(PROMPTS[1], 30)
        assert other.done.wait(HANG_S)
        load = served.engine.load()

    assert load.blocks_owned == load.active == 0
    assert not left.done.is_set()


ROW = Row(sequence=0, tokens=(1,), start=4, blocks=(0, 1), prompt=(0, 2, 1), generated=(3, 3, 1))
LOGITS = torch.tensor([[1.0, 4.0, 3.0, 2.0, -1.0]])


@pytest.mark.parametrize(
    ("given", "possible"),
    [
        ({"temperature": 0.0}, {1}),
        ({"top_k": 2}, {1, 2}),
        ({"top_p": 0.6}, {1}),
        ({"top_p": 0.9, "temperature": 2.0}, {0, 1, 2, 3}),
        ({"min_p": 0.3}, {1, 2}),
        ({"temperature": 0.0, "presence_penalty": 2.0}, {2}),
        ({"temperature": 0.0, "frequency_penalty": 1.5}, {2}),
        ({"temperature": 0.0, "repetition_penalty": 3.0}, {1}),  # 4/3 is still ahead of 2/3, 1 and 3/3
    ],
)
def test_only_what_the_request_allows_is_drawn(given: dict[str, Any], possible: set[int]) -> None:
    rows = [replace(ROW, sampling=Sampling(seed=seed, **given)) for seed in range(300)]

    found = {each.token for each in sample(rows, LOGITS.expand(300, -1))}

    assert found == possible


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    rows = [replace(ROW, sampling=Sampling(seed=seed)) for seed in range(4000)]

    found = torch.bincount(torch.tensor([each.token for each in sample(rows, LOGITS.expand(4000, -1))]), minlength=5)

    assert torch.allclose(found / 4000, torch.softmax(LOGITS[0], -1), atol=0.03)


def test_logprobs_are_those_of_the_model() -> None:
    (found,) = sample([replace(ROW, sampling=Sampling(temperature=0.0, logprobs=2))], LOGITS)

    expected = torch.log_softmax(LOGITS[0], -1)
    assert found.logprob == pytest.approx(float(expected[1]))
    assert [token for token, _ in found.top] == [1, 2]


@pytest.mark.parametrize(
    ("family", "reason"),
    [("mamba", "conv state"), ("qwen3_next", "conv state"), ("dory", "differs from the whole one")],
)
def test_models_whose_memory_is_no_cache_of_keys_are_refused_by_name(family: str, reason: str) -> None:
    from transformers import CONFIG_MAPPING

    with pytest.raises(UserError, match=f"a {family} cannot be .*{reason}"):
        check_decoding(CONFIG_MAPPING[family]())


def test_texts_stay_within_the_length_beyond_which_one_of_them_would_change_the_others(tmp_path: Path) -> None:
    turned = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    original = {"original_max_position_embeddings": 32}
    folder, model = tiny_folder("phi3", tmp_path / "m", rope_parameters=turned | original, **original)

    found = load_stage(spec_of(folder), (0, 6), num_blocks=64, block=BLOCK)
    with serving(stages_of(folder, 2)) as served:
        near = [parted(served.submit(prompt, NEW), generated(model, prompt, NEW)) for prompt in PROMPTS]

    assert found.positions == 32
    assert "texts are at most 32 tokens long, not 128" in found.remarks[-1]
    assert near == [None] * len(PROMPTS)


def test_a_stage_that_falls_silent_is_named_within_seconds_and_taken_in_again() -> None:
    """The stage is played: it joins, beats once, and says no more."""
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    chain = Chain(1, port=0, events=events, silence_s=0.5)
    try:
        with socket.create_connection(("127.0.0.1", chain.port)) as silent, socket.create_server(("", 0)) as listener:
            port = listener.getsockname()[1]
            send(silent, Frame(Kind.HELLO, {"stage": 1, "port": port, "cost": COST.dump()}))
            joined = events.get(timeout=HANG_S)
            assert chain.joined(joined)
            left = events.get(timeout=HANG_S)
            assert chain.left(left)
    finally:
        chain.close()

    assert (left.stage, left.reason) == (1, "it said nothing for 0.5 s")
    assert chain.missing == (1,)


def test_who_is_no_stage_is_sent_away() -> None:
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    chain = Chain(1, port=0, events=events)
    try:
        for says in (b"GET / HTTP/1.1\r\n\r\n" + b" " * 64, b"\0" * 64):
            with socket.create_connection(("127.0.0.1", chain.port)) as stranger:
                stranger.settimeout(HANG_S)
                stranger.sendall(says)
                with contextlib.suppress(ConnectionResetError):
                    assert stranger.recv(1) == b""
        assert events.empty()
    finally:
        chain.close()


@pytest.mark.parametrize(("held_s", "late"), [(0.0, False), (0.0, True), (0.01, True)])
def test_costs_are_solved_from_passes(held_s: float, late: bool) -> None:
    cost = PassCost(fixed_s=0.5, row_s=0.02, held_s=held_s, token_s=0.03, attention_s=0.0004)

    found = explained(
        cost.seconds(rows=1, past=0, new=1),
        cost.seconds(rows=8, past=0, new=1),
        cost.seconds(rows=1, past=0, new=64),
        cost.seconds(rows=1, past=64, new=64),
        rows=8,
        chunk=64,
        late=Late(past=500, seconds=cost.seconds(rows=1, past=500, new=1)) if late else None,
    )

    assert found.model_dump(exclude={"few_s"}) == pytest.approx(cost.model_dump(exclude={"few_s"}))


def test_passes_of_few_tokens_cost_what_was_measured() -> None:
    measured = {1: 6.0, 2: 10.0, 4: 18.0, 8: 21.0, 16: 27.0}
    few = {rows: measured[rows] for rows in (2, 4, 8)}

    found = explained(measured[1], measured[16], 40.0, 41.0, rows=16, chunk=64, few=few)

    assert {rows: found.seconds(rows=rows, past=0, new=1) for rows in measured} == pytest.approx(measured)
    assert found.seconds(rows=3, past=0, new=1) == pytest.approx(14.0)  # half-way
    assert found.seconds(rows=1, past=0, new=64) == pytest.approx(40.0)  # many tokens of one
    assert all_costs([found, found]).seconds(rows=4, past=0, new=1) == pytest.approx(2 * measured[4])


def test_a_stage_measures_its_passes_on_its_own_cache(llama: tuple[Path, Any]) -> None:
    folder, _ = llama
    first, second = stages_of(folder, 2)
    limits = Limits(groups=3, group_size=4, chunk_tokens=16, block=BLOCK, num_blocks=64, max_waiting=0)

    for stage, width in ((first, None), (second, 16)):
        cost = measured_cost(stage, limits, width=width, longest=128)
        assert cost.seconds(rows=4, past=0, new=16) > 0
