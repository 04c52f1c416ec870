"""Targets that do not count: loss and gradients are the mean over those that do, of the whole global batch."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.job import DecoderModel, Experts, Model
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.data.micro_batch import IGNORED
from pipelinejob_trainer.models.losses.auxiliary_loss import Gathering
from pipelinejob_trainer.models.losses.counted_loss import CountedLoss, loss_of
from pipelinejob_trainer.models.losses.loss import cross_entropy, token_cross_entropy
from pipelinejob_trainer.models.part import Part, build_part, num_layers
from support.training.masks import OneMasked
from support.training.pipelines import Job, Outcome, Threads, keep_gradients, merged

EXPERTS = DecoderModel(
    num_layers=3, hidden_size=16, num_heads=2, feed_forward_size=16, experts=Experts(num=4, auxiliary_loss=0.5)
)
MASKED = 1  # the micro-batch that counts nothing


def job(text: Path, **changes: object) -> Job:
    base = Job(text=text, stages=2, micro_batches=4, micro_batch_size=2, unequal_rows=(2, 2, 1, 2), steps=1)
    return replace(base, **changes)


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("schedule", [ScheduleName.ONE_F_ONE_B, ScheduleName.ZB_H1, ScheduleName.DUALPIPE])
def test_a_split_batch_has_the_mean_and_the_gradients_of_one_over_all_that_counts(
    text: Path, schedule: ScheduleName, recompute: bool, replicas: int
) -> None:
    trained = job(text, schedule=schedule, recompute=recompute, replicas=replicas)
    loss, gradients = at_once(trained)

    outcome, factor = played(trained)

    assert 1.5 < factor < 3  # much is masked, so a mean of means would show
    assert outcome.losses[0] * factor == pytest.approx(loss, rel=1e-6)
    for name, expected in gradients.items():
        error = (outcome.gradients[name] * factor - expected).abs().max() / expected.abs().max()
        assert float(error) < 1e-5, name


def test_a_mean_of_means_would_be_another(text: Path) -> None:
    loss, _ = at_once(job(text))
    found = passes(job(text), whole(job(text)))
    means = [
        float(functional.cross_entropy(logits, targets).detach())
        for logits, targets, _ in found
        if (targets != IGNORED).any()
    ]

    assert sum(means) / len(means) != pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("schedule", [ScheduleName.ONE_F_ONE_B, ScheduleName.ZB_H1])
def test_experts_balancing_loss_has_its_coefficient_however_much_is_masked(text: Path, schedule: ScheduleName) -> None:
    """The terms are a mean over micro-batches, by what counts in each, whatever share of all targets counts."""
    trained = job(text, schedule=schedule, model=Model(decoder=EXPERTS))
    part = whole(trained)
    total, counted = torch.zeros(()), 0
    for logits, targets, term in passes(trained, part):
        count = int((targets != IGNORED).sum())
        total = total + functional.cross_entropy(logits, targets, reduction="sum") + count * term
        counted += count
    loss = total / counted
    loss.backward()

    outcome, factor = played(trained)

    assert factor > 1.5
    assert outcome.losses[0] * factor == pytest.approx(float(loss.detach()), rel=1e-6)
    for name, expected in part.named_parameters().items():
        error = (outcome.gradients[name] * factor - expected.grad).abs().max() / expected.grad.abs().max()
        assert float(error) < 1e-5, name


def test_evaluation_counts_what_counts(text: Path) -> None:
    trained = job(text)
    threads = Threads(trained)
    batches = OneMasked(trained.dataset(), MASKED)

    results = threads.run(lambda rank: rank.runtime.evaluate(1, batches))

    counted, num_targets = (sum(each) for each in zip(*((r.counted, r.num_targets) for r in results), strict=True))
    loss = float(sum(float(each.loss_sum) for each in results)) * num_targets / float(counted)
    assert loss == pytest.approx(at_once(trained)[0], rel=1e-6)  # the model has no dropout


def test_where_all_counts_the_loss_is_torchs_mean_to_the_last_bit_gradients_too() -> None:
    torch.manual_seed(0)
    for rows in range(1, 60):
        logits, targets = torch.randn(rows, 3, 17), torch.randint(17, (rows, 3))
        ours, theirs, last = (logits.clone().requires_grad_() for _ in range(3))
        loss, counted = loss_of(token_cross_entropy(ours, targets), targets, is_alone=False)
        mean = functional.cross_entropy(theirs.flatten(0, -2), targets.flatten())
        for each in (loss, mean):
            (each * 0.3).backward()

        on_a_device = functional.cross_entropy(last.flatten(0, -2), targets.flatten(), reduction="sum")
        on_a_device = loss_of((on_a_device, targets.numel()), targets, is_alone=False).value
        (on_a_device * 0.3).backward()

        assert torch.equal(loss, mean)
        assert torch.equal(ours.grad, theirs.grad)
        assert torch.equal(on_a_device, mean)
        assert torch.equal(last.grad, theirs.grad)
        assert counted == targets.numel()


def test_nothing_that_counts_is_zeros_and_no_nan() -> None:
    logits, targets = torch.randn(2, 3, 5, requires_grad=True), torch.full((2, 3), IGNORED)

    for is_alone in (False, True):
        logits.grad = None
        loss = loss_of(token_cross_entropy(logits, targets), targets, is_alone=is_alone)
        loss.value.backward()

        assert float(loss.value.detach()) == 0
        assert torch.equal(logits.grad, torch.zeros(2, 3, 5))


def test_a_micro_batch_by_itself_has_the_mean_over_its_own_and_all_counts() -> None:
    logits, targets = torch.randn(2, 3, 5), torch.tensor([[1, IGNORED, 2], [IGNORED, IGNORED, 0]])

    loss = loss_of(token_cross_entropy(logits, targets), targets, is_alone=True)

    assert float(loss.value) == pytest.approx(float(functional.cross_entropy(logits.flatten(0, 1), targets.flatten())))
    assert int(loss.counted) == 6


def test_a_scalar_loss_counts_all_and_a_pair_what_it_says() -> None:
    targets = torch.zeros(2, 3, dtype=torch.int64)

    assert as_numbers(loss_of(torch.tensor(0.5), targets, is_alone=False)) == (0.5, 6)
    assert as_numbers(loss_of((torch.tensor(3.0), 4), targets, is_alone=False)) == (0.5, 4)
    assert as_numbers(loss_of((torch.tensor(3.0), 4), targets, is_alone=True)) == (0.75, 6)
    assert as_numbers(loss_of((torch.tensor(3.0), torch.tensor(0.5)), targets, is_alone=True)) == (6.0, 6)


def test_another_negative_target_is_refused_by_its_number() -> None:
    with pytest.raises(UserError, match=r"a target is -1; targets are tokens from 0 on, or -100"):
        cross_entropy(torch.randn(1, 2, 5), torch.tensor([[-1, IGNORED]]))


def as_numbers(loss: CountedLoss) -> tuple[float, float]:
    return float(loss.value), float(loss.counted)


def played(job: Job) -> tuple[Outcome, float]:
    """Play one step; give what came of it, and targets / counted over all ranks."""
    threads = Threads(job)

    def work(rank: object) -> tuple[Outcome, float, int]:
        outcome = Outcome()
        result = rank.runtime.run_step(1, OneMasked(job.dataset(), MASKED))  # type: ignore[attr-defined]
        outcome.losses.append(float(result.loss_sum))
        keep_gradients(rank.part, outcome)  # type: ignore[attr-defined]
        return outcome, float(result.counted), result.num_targets

    outcomes, counted, targets = zip(*threads.run(work), strict=True)
    assert sum(targets) == job.replicas * sum(job.rows) * job.sequence_length
    return merged(list(outcomes)), sum(targets) / sum(counted)


def whole(job: Job) -> Part:
    return build_part(job.model, job.data, stretches=[(0, num_layers(job.model))], seed=job.seed, lora=job.lora)


def passes(job: Job, part: Part) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Return logits, targets and the sum of balancing losses of each micro-batch, by the whole model."""
    batches = OneMasked(job.dataset(), MASKED)
    found = []
    for replica in range(job.replicas):
        for k in range(job.micro_batches):
            stream, targets, _ = batches.batch(1, replica, k)
            with Gathering() as terms:
                for layer in part.layers:
                    stream = layer.module(stream)
            found.append((stream.flatten(0, 1), targets.flatten(), sum(terms, start=torch.zeros(()))))
    return found


def at_once(job: Job) -> tuple[float, dict[str, torch.Tensor]]:
    """Return loss and gradients of one process over the whole global batch."""
    part = whole(job)
    batches = OneMasked(job.dataset(), MASKED)
    read = [batches.batch(1, replica, k) for replica in range(job.replicas) for k in range(job.micro_batches)]
    stream, targets = torch.cat([each.tokens for each in read]), torch.cat([each.targets for each in read])
    for layer in part.layers:
        stream = layer.module(stream)
    loss = functional.cross_entropy(stream.flatten(0, 1), targets.flatten())
    loss.backward()
    return float(loss.detach()), {
        name: each.grad for name, each in part.named_parameters().items() if each.grad is not None
    }
