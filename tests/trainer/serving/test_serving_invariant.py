"""With serving.batchInvariant an answer is the same to the last bit, whoever else is there, and whatever was lost."""

from pathlib import Path
from typing import Any

import pytest

from pipelinejob_trainer.serving.stage_model import load_stage
from support.serving.greedy import bits
from support.serving.serving_chains import BLOCK, cuts, serving, spec_of, tiny_folder
from support.serving.serving_faults import Fragile

NEW = 12
LONG = [70, 3, 3, 8, 21, 40, 41, 42, 43, 9, 10, 12, 50]
PROMPTS = [[5, 9, 33, 7], [11, 4], LONG, [1], [*LONG, 60, 61]]


def stages_apart(folder: Path, stages: int) -> list[Any]:
    return [
        load_stage(spec_of(folder), stretch, num_blocks=64, block=BLOCK, apart=True).forward
        for stretch in cuts(6, stages)
    ]


@pytest.fixture(scope="module", params=["llama", "gemma2", "mixtral", "bloom"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(request.param, tmp_path_factory.mktemp(request.param) / "model")[0]


def test_whoever_else_is_answered_each_bit_of_an_answer_stays(folder: Path) -> None:
    with serving(stages_apart(folder, 3), batch_invariant=True) as served:
        alone = [bits(served.submit(prompt, NEW, logprobs=0)) for prompt in PROMPTS]
        together = [served.submit(prompt, NEW, logprobs=0) for prompt in PROMPTS * 3]

        assert [bits(told) for told in together] == alone * 3


def test_what_was_computed_again_after_a_loss_has_the_same_bits(folder: Path) -> None:
    with serving(stages_apart(folder, 3), batch_invariant=True) as served:
        undisturbed = [bits(served.submit(prompt, NEW, logprobs=0)) for prompt in PROMPTS]
    stages = stages_apart(folder, 3)
    stages[1] = fragile = Fragile(stages[1])
    fragile.dies_at = 25
    with serving(stages, batch_invariant=True) as served:
        told = [served.submit(prompt, NEW, logprobs=0) for prompt in PROMPTS]

        assert [bits(each) for each in told] == undisturbed
        assert served.engine.load().chains == 2


def test_a_cache_too_small_for_all_changes_no_bit(folder: Path) -> None:
    with serving(stages_apart(folder, 2), batch_invariant=True) as served:
        undisturbed = [bits(served.submit(prompt, NEW, logprobs=0)) for prompt in PROMPTS]
    with serving(stages_apart(folder, 2), batch_invariant=True, num_blocks=9) as served:
        told = [served.submit(prompt, NEW, logprobs=0) for prompt in PROMPTS]

        assert [bits(each) for each in told] == undisturbed
