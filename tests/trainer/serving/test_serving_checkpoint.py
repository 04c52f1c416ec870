"""What a job trained is served from its checkpoint, cut otherwise than saved: answers are the unsplit model's."""

import threading
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from pipelinejob.contract.trained import Trained
from pipelinejob.spec.job import Data, DecoderModel, GptModel, Lora, Model, Training
from pipelinejob_trainer.base.errors import PeerLostError, StoppedError, UserError
from pipelinejob_trainer.export.source import open_checkpoint
from pipelinejob_trainer.models.part import Part, num_layers
from pipelinejob_trainer.process.config import Address
from pipelinejob_trainer.sample import Request, generate
from pipelinejob_trainer.serving.front.text import Bytes
from pipelinejob_trainer.serving.later_stage import LaterStage, OtherWeightsError, asked_step, tell_gone
from pipelinejob_trainer.serving.meter import Meter
from pipelinejob_trainer.serving.stage_model import load_stage
from pipelinejob_trainer.serving.trained_weights import TrainedWeights, of_step
from support.serving.serving_chains import BLOCK, COST, HANG_S, cuts, serving, spec_of, tiny_folder
from support.training.saved_models import moved, saved, whole

LENGTH = 48
SIZES = {"num_layers": 3, "hidden_size": 32, "num_heads": 4}
GPT = Model(gpt=GptModel(**SIZES))
TIED = Model(gpt=GptModel(**SIZES, tie_embeddings=True))
DECODER = Model(decoder=DecoderModel(**SIZES, num_key_value_heads=2, feed_forward_size=48))
EXPERTS = Model.model_validate(
    {
        "decoder": {
            "numLayers": 3,
            "hiddenSize": 32,
            "numHeads": 4,
            "feedForwardSize": 24,
            "experts": {"num": 4, "perToken": 2},
        }
    }
)


def trained(model: Model, lora: Lora | None = None) -> Trained:
    data = Data(paths=("unused",), sequence_length=LENGTH)
    return Trained(model=model, data=data, training=Training(steps=1, seed=3, lora=lora))


def served(job: Trained) -> Trained:
    """Return what a job that serves knows: neither how long sequences were, nor how it was trained."""
    return Trained(model=job.model, data=Data(paths=("unused",), sequence_length=1), training=Training(steps=1, seed=0))


def unsplit(part: Part, prompt: str, new: int) -> str:
    request = Request(prompt=prompt, tokens=new, seed=0, temperature=0)
    return generate(part, request, context=LENGTH, alphabet=_Wide())


class _Wide(Bytes):
    """Bytes of which none is left out, as the server chooses among all."""

    size = 256
    end = None

    def encode(self, text: str) -> list[int]:  # type: ignore[override] # as `generate` wants it
        return list(super().encode(text))


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("model", [GPT, TIED, DECODER, EXPERTS], ids=["gpt", "tied", "decoder", "experts"])
def test_a_trained_model_answers_as_the_unsplit_one(model: Model, stages: int, tmp_path: Path) -> None:
    job = trained(model)
    part = moved(whole(job))
    saved(tmp_path, part, 2)
    weights = TrainedWeights(served(job), open_checkpoint(tmp_path), positions=64)
    computes = [
        load_stage(model, stretch, num_blocks=64, block=BLOCK, trained=weights).forward
        for stretch in cuts(num_layers(model), stages)
    ]
    text = Bytes()

    with serving(computes) as chain:
        told = {prompt: chain.submit(text.encode(prompt), 20) for prompt in ("def ", "import os\nimp", "x")}
        for prompt, answer in told.items():
            assert answer.done.wait(HANG_S)
            assert text.decode(answer.tokens) == unsplit(part, prompt, 20), prompt


@pytest.mark.parametrize("borders", [(0, 1, 5), (0, 4, 5), (0, 1, 4, 5)], ids=str)
def test_embedding_and_head_may_stand_alone(borders: tuple[int, ...], tmp_path: Path) -> None:
    part = moved(whole(trained(GPT)))
    saved(tmp_path, part, 2)
    weights = TrainedWeights(served(trained(GPT)), open_checkpoint(tmp_path), positions=64)
    computes = [
        load_stage(GPT, stretch, num_blocks=64, block=BLOCK, trained=weights).forward for stretch in pairwise(borders)
    ]

    with serving(computes) as chain:
        answer = chain.submit(Bytes().encode("def "), 20)
        assert answer.done.wait(HANG_S)
        assert Bytes().decode(answer.tokens) == unsplit(part, "def ", 20)


def test_a_folders_model_that_was_trained_answers_with_what_it_learnt(tmp_path: Path) -> None:
    folder, _ = tiny_folder("llama", tmp_path / "model", vocab_size=256)
    job = trained(spec_of(folder))
    part = moved(whole(job))
    saved(tmp_path / "saved", part, 1, 4)
    weights = TrainedWeights(served(job), open_checkpoint(tmp_path / "saved"), positions=64)
    computes = [
        load_stage(job.model, stretch, num_blocks=64, block=BLOCK, trained=weights).forward for stretch in cuts(6, 2)
    ]

    with serving(computes) as chain:
        answer = chain.submit(Bytes().encode("def "), 20)
        assert answer.done.wait(HANG_S)
        assert Bytes().decode(answer.tokens) == unsplit(part, "def ", 20)


def test_learned_positions_are_as_many_as_the_checkpoint_has(tmp_path: Path) -> None:
    saved(tmp_path, whole(trained(GPT)))

    assert TrainedWeights(served(trained(GPT)), open_checkpoint(tmp_path), positions=999).config.n_positions == LENGTH


def test_the_newest_that_is_whole_is_taken_and_one_that_is_gone_is_none(tmp_path: Path) -> None:
    part = whole(trained(GPT))
    saved(tmp_path, part, step=4)
    folder = saved(tmp_path, part, step=8)
    assert open_checkpoint(tmp_path).step == 8
    assert open_checkpoint(folder.path(4)).step == 4

    next(folder.path(8).glob("*.safetensors")).write_bytes(b"torn")

    assert open_checkpoint(tmp_path).step == 4
    found = of_step(tmp_path, 4)
    assert found is not None
    assert found.step == 4
    assert of_step(tmp_path, 5) is None
    assert of_step(tmp_path / "nowhere", 4) is None


def test_another_models_checkpoint_and_adapters_are_refused_by_name(tmp_path: Path) -> None:
    saved(tmp_path / "gpt", whole(trained(GPT)))
    with pytest.raises(UserError, match="it is of another model"):
        load_stage(
            DECODER,
            (0, 5),
            num_blocks=4,
            block=BLOCK,
            trained=TrainedWeights(served(trained(DECODER)), open_checkpoint(tmp_path / "gpt"), positions=64),
        )
    adapted = trained(DECODER, Lora(rank=2, alpha=4.0, targets=("*",)))
    saved(tmp_path / "adapters", whole(adapted))
    with pytest.raises(UserError, match=r"holds adapters .* `pipelinejob export`"):
        TrainedWeights(served(adapted), open_checkpoint(tmp_path / "adapters"), positions=64)


class _Nothing:
    def run(self, rows: object, received: object) -> torch.Tensor:
        raise AssertionError("no pass is sent")


def test_a_stage_with_weights_of_another_step_does_not_join_and_is_told_which() -> None:
    with serving([_Nothing(), _Nothing()], weights="step 8", begins=False) as chain:
        front = Address(host="127.0.0.1", port=chain.engine.port)
        assert asked_step(front, lambda: False) == 8
        with pytest.raises(StoppedError):
            asked_step(front, lambda: True)
        other = LaterStage(stage=1, front=front, compute=_Nothing(), meter=Meter(), cost=COST, weights="step 4")
        with pytest.raises(OtherWeightsError, match="this stage has weights of step 4, the first one of step 8"):
            other.serve(threading.Event())
        assert chain.engine.load().missing == (1,)


def test_where_weights_are_gone_the_first_stage_ends_to_take_the_open_checkpoint() -> None:
    with serving([_Nothing(), _Nothing()], weights="step 8", begins=False) as chain:
        front = Address(host="127.0.0.1", port=chain.engine.port)
        tell_gone(front, 4)  # one that it does not have
        tell_gone(front, 8)
        chain.engine._thread.join(HANG_S)
        assert isinstance(chain.engine.error, PeerLostError)
        assert "step 8" in str(chain.engine.error)
