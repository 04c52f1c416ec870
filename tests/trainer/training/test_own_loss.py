"""A loss of one's own: trained on as in one process, in halves, recomputing, evaluated; its errors are the user's."""

from pathlib import Path

import pytest
import torch

from layers import own_losses
from pipelinejob.contract.plan import Plan
from pipelinejob.spec.job import Data, Model, ScheduleName, ScheduleSpec
from pipelinejob_trainer.base.errors import LayerError, UserError
from pipelinejob_trainer.base.seeds import mix
from pipelinejob_trainer.communication.links import Links
from pipelinejob_trainer.data.dataset import open_dataset
from pipelinejob_trainer.models.losses.loss import load_loss
from pipelinejob_trainer.runtime.rank import Rank, build_rank
from pipelinejob_trainer.runtime.recorder import Recorder
from pipelinejob_trainer.runtime.runtime import Runtime
from pipelinejob_trainer.stage.randomness import seed_of_pass
from support.training.gangs import plan

CPU = torch.device("cpu")
SCHEDULES = {
    "1F1B": ScheduleSpec(name=ScheduleName.ONE_F_ONE_B, micro_batches=3, micro_batch_size=2),
    "recompute": ScheduleSpec(name=ScheduleName.ONE_F_ONE_B, micro_batches=3, micro_batch_size=2, recompute=True),
    "ZB-H1": ScheduleSpec(name=ScheduleName.ZB_H1, micro_batches=3, micro_batch_size=2),
}


def wanted(loss: str, text: Path, schedule: str = "1F1B", *, layers: str = "layers") -> Plan:
    model = Model(entrypoint=f"layers.own_losses:{layers}", num_layers=4)
    data = Data(paths=(str(text),), sequence_length=16)
    training = {"clip_norm": 0, "loss": f"layers.own_losses:{loss}"}
    return plan(4, model=model, data=data, schedule=SCHEDULES[schedule], training=training)


def ready(of: Plan) -> tuple[Rank, Runtime]:
    rank = build_rank(of, index=0, replica=0, device=CPU)
    data = open_dataset(of.data, schedule=of.schedule, replicas=1, seed=7)
    recorder = Recorder(replica=0, stage=0, device=CPU)
    return rank, rank.runtime(links=Links(), sum_over=lambda *_: None, recorder=recorder, batches=data)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("loss", ["mean", "total", "drawing"])
@pytest.mark.parametrize("layers", ["layers", "layers_with_an_object"])
def test_a_model_is_trained_by_a_loss_of_ones_own(text: Path, layers: str, loss: str, schedule: str) -> None:
    of = wanted(loss, text, schedule, layers=layers)
    rank, runtime = ready(of)
    plain, _ = ready(of)
    data = open_dataset(of.data, schedule=of.schedule, replicas=1, seed=7)

    found = float(runtime.run_step(1).loss_sum)

    losses = []
    for k in range(3):
        stream, targets, _ = data.batch(1, 0, k)
        for layer in plain.part.layers:
            stream = layer.module(stream)
        torch.manual_seed(mix(seed_of_pass(of.training.seed, 1, k), 4))
        value = getattr(own_losses, loss)(stream, targets.clone())
        value = value[0] / value[1] if isinstance(value, tuple) else value
        (value * (1 / 3)).backward()
        losses.append(value.detach() * (1 / 3))
    assert found == float(torch.stack(losses).sum())
    for name, parameter in plain.part.named_parameters().items():
        mine = rank.part.named_parameters()[name].grad
        assert (mine is None) == (parameter.grad is None), name
        assert mine is None or torch.equal(mine, parameter.grad), name


def test_it_is_the_loss_of_an_evaluation_too(text: Path) -> None:
    _, runtime = ready(wanted("mean", text))

    assert float(runtime.evaluate(1).loss_sum) == pytest.approx(float(runtime.run_step(1).loss_sum))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("loss", "reason", "sentence"),
    [
        (
            "raises",
            "LossRaised",
            r"layers.own_losses:raises raised ValueError: no loss today; the last layer gave it dict.*; at",
        ),
        (
            "returns_all",
            "BadLoss",
            r"layers.own_losses:returns_all returned torch.float32 of shape \(2, 16, 256\); a loss",
        ),
        ("returns_nothing", "BadLoss", r"layers.own_losses:returns_nothing returned nothing; a loss returns a scalar"),
        ("returns_a_bad_count", "BadLoss", r"returned a pair whose count is str; a loss returns"),
        ("detached", "BadModel", r"the loss depends on no parameter"),
        (
            "raises_on_the_way_back",
            "LossRaised",
            r"backward pass: spec\.training\.loss layers.own_losses:raises_on_",
        ),
    ],
)
def test_what_a_loss_does_wrong_is_the_users(text: Path, loss: str, reason: str, sentence: str, schedule: str) -> None:
    _, runtime = ready(wanted(loss, text, schedule))

    if (loss, schedule) == ("raises_on_the_way_back", "ZB-H1"):  # the loss is not known in the first half any more
        sentence = r"backward pass: one of layers 0 to 3 raised ArithmeticError: no way back from here; at"
        reason = "LayerRaised"
    with pytest.raises(LayerError, match=sentence) as caught:
        runtime.run_step(1)
    assert caught.value.reason == reason
    assert str(caught.value).startswith("step 1, stage 0, micro-batch 0, ")


def test_a_loss_that_uses_a_parameter_of_its_own_is_refused(text: Path) -> None:
    _, runtime = ready(wanted("uses_a_parameter", text))

    with pytest.raises(UserError, match=r"uses_a_parameter: it has parameters of its own \(Parameter of") as e:
        runtime.run_step(1)
    assert e.value.reason == "LossWithParameters"


@pytest.mark.parametrize(
    ("loss", "reason", "sentence"),
    [
        ("layers.own_losses:with_parameters", "LossWithParameters", r"it has parameters of its own \(weight, bias\)"),
        (
            "layers.own_losses:missing",
            "BadEntrypoint",
            r"^spec.training.loss layers.own_losses:missing: module layers.own_losses has no",
        ),
        ("layers.own_losses:NOT_A_FUNCTION", "BadEntrypoint", r"NOT_A_FUNCTION is 3 of type int; name a function"),
        ("no_such_module:mean", "BadEntrypoint", r"there is no module 'no_such_module' in this image"),
    ],
)
def test_a_loss_that_cannot_be_used_is_refused_before_the_first_step(
    text: Path, loss: str, reason: str, sentence: str
) -> None:
    of = wanted("mean", text)

    with pytest.raises(UserError, match=sentence) as caught:
        load_loss(of.training.model_copy(update={"loss": loss}), CPU)
    assert caught.value.reason == reason
