"""Real trainer processes whose model is wrong: one of them says so, with exit code 64, and the others follow."""

from collections.abc import Callable
from typing import Any

import pytest

from pipelinejob.contract.plan import Plan
from pipelinejob.contract.progress import ExitCode
from pipelinejob.spec.job import Model, ScheduleName, ScheduleSpec
from support.training.gangs import Gang, plan

pytestmark = pytest.mark.xdist_group("gangs")


@pytest.mark.parametrize(
    ("function", "reason", "sentence"),
    [("raises", "BadEntrypoint", "the weights are on holiday"), ("makes_nan", "LossNotFinite", "lower spec.training")],
)
def test_what_a_user_must_mend_ends_with_64_and_a_sentence(
    make: Callable[[Plan], Gang], function: str, reason: str, sentence: str
) -> None:
    gang = make(plan(3, model=Model(entrypoint=f"layers.user_models:{function}", num_layers=3)))

    assert gang.wait() == {"job-r0-s0": ExitCode.USER_ERROR}
    last_words = gang.termination("job-r0-s0")
    assert last_words.reason == reason
    assert sentence in last_words.message
    assert last_words.exit_code == ExitCode.USER_ERROR


def faulty(function: str, *layers: int, **changes: Any) -> Plan:
    return plan(*layers, model=Model(entrypoint=f"layers.faulty_models:{function}", num_layers=4), **changes)


@pytest.mark.parametrize(
    ("function", "words"), [("raises_value_error", "ValueError: too many moons"), ("leaves", "os._exit do: 0")]
)
def test_what_a_layer_raises_is_told_by_its_own_stage_and_the_others_only_follow(
    make: Callable[[Plan], Gang], function: str, words: str
) -> None:
    gang = make(faulty(function, 2, 2))

    assert gang.wait() == {"job-r0-s0": ExitCode.PEER_LOST, "job-r0-s1": ExitCode.USER_ERROR}
    last_words = gang.termination("job-r0-s1")
    assert last_words.reason == "LayerRaised"
    assert last_words.message.startswith("step 1, stage 1, micro-batch 0, forward pass: layer 2 (Does) raised ")
    assert words in last_words.message
    assert 'faulty_models.py", line ' in gang.logs()  # the whole traceback, for the log


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("all_frozen", "no parameter of any stage can be trained: all 7 have requires_grad false; give"),
        ("trains_what_it_does_not_use", "step 1: the gradient norm over all stages is 0: the loss depends on no"),
    ],
)
def test_a_model_in_which_nothing_is_trained_is_refused_by_every_stage(
    make: Callable[[Plan], Gang], function: str, sentence: str
) -> None:
    gang = make(faulty(function, 2, 2))

    assert set(gang.wait().values()) == {ExitCode.USER_ERROR}
    last_words = gang.termination("job-r0-s1")
    assert last_words.reason == "NothingToTrain"
    assert sentence in last_words.message
    assert not gang.steps()


def test_what_a_layer_raises_in_a_preflight_is_said_to_be_of_one(make: Callable[[Plan], Gang]) -> None:
    gang = make(faulty("raises_value_error", 4, training={"preflight": True}))

    assert gang.wait() == {"job-r0-s0": ExitCode.USER_ERROR}
    start = "preflight, step 1, stage 0, micro-batch 0, forward pass: layer 2 (Does) raised ValueError: too many moons"
    assert gang.termination("job-r0-s0").message.startswith(start)


def test_a_stage_of_which_nothing_can_be_trained_takes_part(make: Callable[[Plan], Gang]) -> None:
    schedule = ScheduleSpec(name=ScheduleName.ZB_H1, micro_batches=4, micro_batch_size=2)
    split = make(faulty("frozen_in_front", 2, 2, replicas=2, schedule=schedule, training={"preflight": True})).finish()
    whole = make(faulty("frozen_in_front", 4, schedule=ScheduleSpec(micro_batches=8, micro_batch_size=2))).finish()

    assert split.losses() == pytest.approx(whole.losses(), rel=1e-5)
    assert "preflight: one step's gradients agree" in split.logs()
