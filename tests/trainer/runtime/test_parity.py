"""A split model is the unsplit model: same losses, same gradients, whatever the schedule.

Where each parameter's gradients add up on one rank in the order of the micro-batches, that holds
for every bit. Where a schedule adds them up in another order (a stage on two ranks, a tied
weight's two uses, a W before an earlier micro-batch's) floating-point sums differ in the last
places, and the largest error is bounded.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipelinejob.scheduler import catalogue
from pipelinejob.schedules.families import ASYNCHRONOUS
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.text import parse
from pipelinejob.spec.job import GptModel, Model, Precision
from support.plans.schedule_oracles import adds_up_in_order
from support.training.pipelines import (
    Job,
    Outcome,
    evaluate_threads,
    evaluate_unsplit,
    run_gloo,
    run_threads,
    run_unsplit,
)

# Layers enough for 16 stages, and not a multiple of any number of stages: stages are uneven.
MODEL = Model(gpt=GptModel(num_layers=17, hidden_size=8, num_heads=2, dropout=0.1))
TIED = Model(gpt=GptModel(num_layers=17, hidden_size=8, num_heads=2, dropout=0.1, tie_embeddings=True))
TWO_WAYS = [ScheduleName.DUALPIPE, ScheduleName.CHIMERA]  # from both ends at once: an even number of ranks
SYNCHRONOUS = [
    ScheduleName.GPIPE,
    ScheduleName.ONE_F_ONE_B,
    ScheduleName.INTERLEAVED,
    ScheduleName.LOOPED_BFS,
    ScheduleName.ZB_H1,
    ScheduleName.ZB_H2,
    ScheduleName.ZB_1P,
    ScheduleName.ZB_2P,
    ScheduleName.ZB_V,
    ScheduleName.V_HALF,
    ScheduleName.V_MIN,
    ScheduleName.DUALPIPE_V,
    ScheduleName.HANAYO,
    ScheduleName.AUTO,
    *TWO_WAYS,
]
BOUND = 2e-6  # of a gradient's error, relative to the largest entry of its tensor


def job(text: Path, **changes: object) -> Job:
    base = Job(text=text, model=MODEL, micro_batches=8, micro_batch_size=1, sequence_length=8)
    return replace(base, **changes)


def test_every_synchronous_schedule_is_among_those_compared() -> None:
    assert set(SYNCHRONOUS) == set(catalogue.FAMILIES) - ASYNCHRONOUS - {ScheduleName.FORWARD_ONLY}


@pytest.mark.parametrize(
    ("name", "ranks"),
    [(name, ranks) for name in SYNCHRONOUS for ranks in ((2, 4, 6, 8) if name in TWO_WAYS else range(2, 9))],
)
def test_a_split_model_gives_the_unsplit_models_gradients(text: Path, name: ScheduleName, ranks: int) -> None:
    assert_equal(job(text, schedule=name, stages=ranks))


@pytest.mark.parametrize("name", SYNCHRONOUS)
@pytest.mark.parametrize("micro_batches", [1, 2, 3])
def test_fewer_micro_batches_than_ranks_do_too(text: Path, name: ScheduleName, micro_batches: int) -> None:
    assert_equal(job(text, schedule=name, micro_batches=micro_batches))


@pytest.mark.parametrize("name", SYNCHRONOUS)
@pytest.mark.parametrize("recompute", [1, True], ids=["selective", "full"])
def test_recomputation_does_too(text: Path, name: ScheduleName, recompute: int) -> None:
    assert_equal(job(text, schedule=name, recompute=recompute))


@pytest.mark.parametrize("name", SYNCHRONOUS)
@pytest.mark.parametrize("recompute", [False, True])
def test_bf16_does_too(text: Path, name: ScheduleName, recompute: bool) -> None:
    assert_equal(job(text, schedule=name, precision=Precision.BF16, recompute=recompute))


@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_tied_embeddings_do_too(text: Path, name: ScheduleName) -> None:
    assert_equal(job(text, schedule=name, model=TIED))


@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_unequal_micro_batches_do_too(text: Path, name: ScheduleName) -> None:
    assert_equal(job(text, schedule=name, unequal_rows=(2, 2, 1, 2, 2, 3, 2, 1)))


@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_replicas_do_too(text: Path, name: ScheduleName) -> None:
    assert_equal(job(text, schedule=name, replicas=2, micro_batches=4))


@pytest.mark.parametrize("name", [*SYNCHRONOUS, *sorted(ASYNCHRONOUS), ScheduleName.FORWARD_ONLY])
def test_evaluation_gives_the_unsplit_models_loss_and_changes_nothing(text: Path, name: ScheduleName) -> None:
    trained = job(text, schedule=name, unequal_rows=(2, 2, 1, 2, 2, 3, 2, 1))
    bound = 1e-6 if len(trained.built.routes) > 1 else 0

    losses, state = evaluate_threads(trained)

    assert losses == pytest.approx(evaluate_unsplit(trained), rel=bound, abs=0)
    assert state == {"in flight": 0, "gradients": 0, "training": True}


@pytest.mark.parametrize("name", [ScheduleName.ONE_F_ONE_B, ScheduleName.ZB_V, ScheduleName.CHIMERA])
def test_training_after_an_evaluation_is_training_without_one(text: Path, name: ScheduleName) -> None:
    trained = job(text, schedule=name)

    between, never = run_threads(trained, evaluate_between=True), run_threads(trained)

    assert between.losses == never.losses
    assert differing(between, never) == []


def test_micro_batches_add_up_to_the_gradient_of_one_large_batch(text: Path) -> None:
    model = Model(gpt=GptModel(num_layers=4, hidden_size=16, num_heads=2))
    many = run_threads(job(text, model=model, stages=2, micro_batches=8, micro_batch_size=1))
    one = run_unsplit(job(text, model=model, micro_batches=1, micro_batch_size=8))

    assert_close(many, one, bound=1e-5)


def test_bf16_is_within_two_percent_of_fp32_and_not_equal_to_it(text: Path) -> None:
    model = Model(gpt=GptModel(num_layers=4, hidden_size=16, num_heads=2))
    fp32 = run_unsplit(job(text, model=model))
    bf16 = run_threads(job(text, model=model, precision=Precision.BF16))

    assert_close(bf16, fp32, bound=2e-2)
    assert bf16.losses != fp32.losses


@pytest.mark.parametrize("name", [ScheduleName.ONE_F_ONE_B, ScheduleName.ZB_H1])
@pytest.mark.parametrize("function", ["mlp", "without_parameters_in_front", "dropout_in_each_layer"])
def test_a_users_own_layers_do_too(text: Path, name: ScheduleName, function: str) -> None:
    layers = {"mlp": 5, "without_parameters_in_front": 3, "dropout_in_each_layer": 4}[function]
    arguments = {"width": "12"} if function == "mlp" else {}
    model = Model(entrypoint=f"layers.user_models:{function}", num_layers=layers, arguments=arguments)

    assert_equal(job(text, model=model, schedule=name, stages=3))


MIXED = """
route 0 1 1 0
F0 F1 F0.1 B0.1 F1.1 I1.1 F2 I0 W1.1 B1 W0 F2.1 B2.1 B2
F0 F0.1 F1 F1.1 I0.1 B0 B1.1 F2 F2.1 W0.1 I1 W1 B2.1 B2
"""


def test_a_list_written_by_hand_with_whole_and_split_backward_passes_does_too(text: Path) -> None:
    assert_equal(job(text, schedule=parse(MIXED), stages=2, micro_batches=3))


@pytest.mark.parametrize(
    ("name", "stages", "replicas"),
    [
        (ScheduleName.ONE_F_ONE_B, 4, 1),
        (ScheduleName.INTERLEAVED, 2, 1),
        (ScheduleName.ZB_V, 2, 2),
        (ScheduleName.DUALPIPE, 2, 2),
    ],
)
def test_processes_over_gloo_do_too(text: Path, name: ScheduleName, stages: int, replicas: int) -> None:
    trained = job(text, schedule=name, stages=stages, replicas=replicas, unequal_rows=(2, 2, 2, 2, 1, 1, 1, 1))

    assert_as_expected(run_gloo(trained), trained)


def test_the_gradients_compared_are_not_trivially_equal(text: Path) -> None:
    here, other = run_threads(job(text, stages=2)), run_threads(job(text, stages=2, seed=8))

    assert all(float(gradient.abs().max()) > 0 for gradient in here.gradients.values())
    assert here.losses != other.losses


def test_both_kinds_of_schedules_are_among_those_compared(text: Path) -> None:
    in_order = {name for name in SYNCHRONOUS if adds_up_in_order(job(text, schedule=name).built)}

    assert {ScheduleName.GPIPE, ScheduleName.ONE_F_ONE_B, ScheduleName.ZB_H1, ScheduleName.ZB_V} <= in_order
    assert not {ScheduleName.DUALPIPE, ScheduleName.CHIMERA} & in_order


def assert_equal(job: Job) -> None:
    assert_as_expected(run_threads(job), job)


def assert_as_expected(split: Outcome, job: Job) -> None:
    whole = reference(job)
    is_tied = job.model.gpt is not None and job.model.gpt.tie_embeddings
    if adds_up_in_order(job.built) and job.replicas == 1 and not is_tied:
        assert split.losses == whole.losses
        assert differing(split, whole) == []
    else:
        assert_close(split, whole, bound=BOUND)


_REFERENCES: dict[str, Outcome] = {}


def reference(job: Job) -> Outcome:
    """Return the unsplit model's outcome: one for all schedules that do the same."""
    plain = replace(job, schedule=ScheduleName.GPIPE, stages=1, recompute=False)
    key = repr(replace(plain, text=Path())) + job.text.read_bytes().hex()
    if key not in _REFERENCES:
        _REFERENCES[key] = run_unsplit(plain)
    return _REFERENCES[key]


def differing(here: Outcome, there: Outcome) -> list[str]:
    assert here.gradients.keys() == there.gradients.keys()
    return [name for name in there.gradients if not torch.equal(here.gradients[name], there.gradients[name])]


def assert_close(here: Outcome, there: Outcome, *, bound: float) -> None:
    """Bound the error of each gradient relative to the largest entry of its tensor, and that of each loss."""
    assert here.losses == pytest.approx(there.losses, rel=bound)
    assert here.gradients.keys() == there.gradients.keys()
    for name, expected in there.gradients.items():
        error = float((here.gradients[name] - expected).abs().max() / expected.abs().max())
        assert error <= bound, name
