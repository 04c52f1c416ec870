"""Asynchronous schedules are delayed SGD, bit for bit, and keep as many weight versions as they say."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from pipelinejob.schedules.memory import live_versions
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.text import parse
from pipelinejob.spec.job import GptModel, Model
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.models.losses.loss import cross_entropy
from pipelinejob_trainer.models.part import Part, build_part, num_layers
from pipelinejob_trainer.runtime.weight_versions import Versions
from pipelinejob_trainer.stage.randomness import reseeder, seed_of_pass
from support.training import inprocess
from support.training.pipelines import CPU, Job, Rank, make_rank

RATE = 0.5
RESEED = reseeder(CPU)
MODEL = Model(gpt=GptModel(num_layers=6, hidden_size=8, num_heads=2, dropout=0.1))
MICRO_BATCHES = 16

# Which update's weights a stage uses for a micro-batch, counted from the step's beginning.
VersionOf = Callable[[int, int], int]


def job(text: Path, **changes: object) -> Job:
    base = Job(text=text, model=MODEL, micro_batches=MICRO_BATCHES, sequence_length=8, steps=2)
    return replace(base, **changes)


def descend(parameters: dict[str, nn.Parameter]) -> None:
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.sub_(RATE * parameter.grad)
            parameter.grad = None


def play(job: Job) -> tuple[list[Rank], list[float]]:
    """Train in threads; give the ranks as they are afterwards, and each step's loss."""
    baton = inprocess.Baton()
    sums = inprocess.Sums(baton)
    ranks: list[Rank] = []
    every = [links for _ in range(job.replicas) for links in inprocess.links(job.built, baton)]
    for number, links in enumerate(every):
        rank = make_rank(
            job,
            rank=number,
            links=links,
            sum_over=sums.of(number),
            update=lambda _, number=number: descend(ranks[number].part.named_parameters()),
        )
        ranks.append(rank)

    def work(rank: int) -> list[float]:
        return [float(ranks[rank].runtime.run_step(step).loss_sum) for step in range(1, job.steps + 1)]

    losses = inprocess.run_ranks(work, len(ranks), baton, on_error=lambda _: None)
    return ranks, [sum(each) for each in zip(*losses, strict=True)]


def delayed_descent(job: Job, version_of: VersionOf, interval: int) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Do what the papers define, on the unsplit model: each stage's weights as they were when `version_of` says."""
    part = build_part(job.model, job.data, stretches=[(0, num_layers(job.model))], seed=job.seed)
    parameters, losses = part.named_parameters(), []
    stage_of = {layer: stage for stage, (first, end) in enumerate(job.cut()) for layer in range(first, end)}
    newest = {name: each.detach().clone() for name, each in parameters.items()}
    for step in range(1, job.steps + 1):
        history, losses_of_step = [newest], []
        for k in range(job.micro_batches):
            with torch.no_grad():
                for layer in part.layers:
                    for name, each in layer.named_parameters():
                        each.copy_(history[version_of(k, stage_of[layer.index])][name])
            gathered = job.replicas * min(interval, job.micro_batches - k // interval * interval)
            for replica in range(job.replicas):
                loss = loss_of(job, part, step, replica, k) * (1 / gathered)
                loss.backward()
                losses_of_step.append(loss.detach() * (gathered / (job.replicas * job.micro_batches)))
            if (k + 1) % interval == 0 or k + 1 == job.micro_batches:
                newest = {name: each - RATE * parameters[name].grad for name, each in newest.items()}
                history.append(newest)
                for each in parameters.values():
                    each.grad = None
        losses.append(float(torch.stack(losses_of_step).sum()))
    return newest, losses


def loss_of(job: Job, part: Part, step: int, replica: int, micro_batch: int) -> torch.Tensor:
    tokens, targets, _ = job.dataset().batch(step, replica, micro_batch)
    stream = tokens.clone()  # a layer's to change; targets lie beside
    for layer in part.layers:
        RESEED(seed_of_pass(job.seed, step, replica * job.micro_batches + micro_batch), layer.index)
        stream = layer.module(stream)
    return cross_entropy(stream, targets)


def assert_equal(played: tuple[list[Rank], list[float]], expected: tuple[dict[str, torch.Tensor], list[float]]) -> None:
    ranks, losses = played
    weights = {name: each for rank in ranks for name, each in rank.part.named_parameters().items()}
    assert losses == expected[1]
    assert weights.keys() == expected[0].keys()
    assert [name for name in weights if not torch.equal(weights[name], expected[0][name])] == []


@pytest.mark.parametrize("depth", range(1, 9))
def test_pipedream_is_descent_by_gradients_as_late_as_the_stage_is_early(text: Path, depth: int) -> None:
    trained = job(text, schedule=ScheduleName.PIPEDREAM, stages=depth)

    played = play(trained)

    assert_equal(played, delayed_descent(trained, lambda k, stage: max(0, k - (depth - 1 - stage)), 1))
    assert [rank.runtime.peak_versions for rank in played[0]] == [depth - stage for stage in range(depth)]


@pytest.mark.parametrize("depth", range(1, 9))
def test_vertical_sync_makes_all_stages_use_the_first_ones_weights(text: Path, depth: int) -> None:
    trained = job(text, schedule=ScheduleName.PIPEDREAM, stages=depth, vertical_sync=True)

    played = play(trained)

    assert_equal(played, delayed_descent(trained, lambda k, _: max(0, k - (depth - 1)), 1))
    assert [rank.runtime.peak_versions for rank in played[0]] == list(map(live_versions, trained.built.ranks))


@pytest.mark.parametrize("depth", range(1, 9))
def test_2bw_is_descent_by_gradients_one_batch_late_with_two_versions(text: Path, depth: int) -> None:
    trained = job(text, schedule=ScheduleName.PIPEDREAM_2BW, stages=depth, micro_batches=20)

    played = play(trained)

    assert_equal(played, delayed_descent(trained, lambda k, _: max(0, k // depth - 1), depth))
    assert [rank.runtime.peak_versions for rank in played[0]] == list(map(live_versions, trained.built.ranks))


LATE_WEIGHTS = """
F0@0 F1@0 I0@0 I1@0 W0@0 O1 W1@0 O2
F0@0 I0@0 W0@0 O1 F1@1 I1@1 W1@1 O2
"""


def test_versions_are_kept_for_weight_gradients_that_come_late_too(text: Path) -> None:
    trained = job(text, schedule=parse(LATE_WEIGHTS), stages=2, micro_batches=2, recompute=True)

    played = play(trained)

    assert_equal(played, delayed_descent(trained, lambda k, stage: k if stage == 1 else 0, 1))
    assert [rank.runtime.peak_versions for rank in played[0]] == [2, 1]


def test_replicas_update_by_the_mean_over_all_of_them(text: Path) -> None:
    trained = job(text, schedule=ScheduleName.PIPEDREAM, stages=2, replicas=2, micro_batches=6, steps=1)

    played = play(trained)
    weights = [rank.part.named_parameters() for rank in played[0]]

    expected, losses = delayed_descent(trained, lambda k, stage: max(0, k - (1 - stage)), 1)
    for rank in (0, 1):
        for name, each in weights[rank].items():
            assert torch.equal(each, weights[rank + 2][name])
            assert torch.allclose(each, expected[name], atol=1e-6)
    assert played[1] == pytest.approx(losses, rel=1e-6)


@pytest.mark.parametrize("kind", ["Hooked", "FusedLinear", "ByFunction", "Normed", "InPlace", "WeightNormed"])
@pytest.mark.parametrize("recompute", [False, True])
def test_hooks_and_functions_of_a_users_own_do_what_they_do_in_a_plain_loop(
    text: Path, kind: str, recompute: bool
) -> None:
    model = Model(entrypoint="layers.odd_layers:layers", num_layers=7, arguments={"kind": kind, "first": "shift"})
    trained = job(text, model=model, schedule=ScheduleName.PIPEDREAM, stages=3, micro_batches=6, recompute=recompute)

    assert_equal(play(trained), delayed_descent(trained, lambda k, stage: max(0, k - (2 - stage)), 1))


def test_a_parameter_of_two_stages_is_refused(text: Path) -> None:
    tied = Model(gpt=GptModel(num_layers=2, hidden_size=8, num_heads=2, tie_embeddings=True))

    with pytest.raises(UserError, match="stages 0 and 1 share a parameter, but an asynchronous schedule"):
        play(job(text, model=tied, schedule=ScheduleName.PIPEDREAM, stages=2))


def test_a_version_in_use_does_not_change_and_one_out_of_use_takes_no_memory() -> None:
    weight = nn.Linear(2, 1, bias=False).weight
    versions = Versions([weight])
    versions.begin()
    before, count = weight.tolist(), weight._version

    with versions.making_next(), torch.no_grad():
        weight.fill_(3.0)
    assert weight.tolist() == [[3.0, 3.0]]
    versions.use(0)
    assert weight.tolist() == before
    versions.use(1)
    assert weight.tolist() == [[3.0, 3.0]]
    assert weight._version == count

    versions.use(0)
    versions.drop(0)
    assert weight.tolist() == [[3.0, 3.0]]
    versions.drop(1)
    memory = weight.data_ptr()
    with versions.making_next():
        pass
    assert weight.data_ptr() == memory
    assert (versions.num_live, versions.peak) == (1, 2)
