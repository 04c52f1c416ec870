"""Asynchronous schedules are delayed SGD, bit for bit, and keep as many weight versions as they say."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import inprocess
from pipelinejob.schedules.actions import B, F, I, O, W, one_route, straight
from pipelinejob.schedules.memory import live_versions
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec import GptModel, Model
from pipelinejob_trainer.errors import UserError
from pipelinejob_trainer.models import build_part, num_layers
from pipelinejob_trainer.randomness import reseeder, seed_of_pass
from pipelinejob_trainer.stage import cross_entropy
from pipelinejob_trainer.versions import Versions
from pipelines import CPU, Job, Rank, make_rank

RATE = 0.5
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
            parameter -= RATE * parameter.grad
            parameter.grad = None


def play(job: Job) -> tuple[list[Rank], list[float]]:
    """Train in threads; give the ranks as they are afterwards, and each step's loss."""
    baton = inprocess.Baton()
    sums = inprocess.Sums(baton)
    ranks: list[Rank] = []
    for number, links in enumerate(inprocess.links(job.built, baton)):
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
    parameters, reseed, losses = part.named_parameters(), reseeder(CPU), []
    stage_of = {layer: stage for stage, (first, end) in enumerate(job.cut()) for layer in range(first, end)}
    newest = {name: each.detach().clone() for name, each in parameters.items()}
    for step in range(1, job.steps + 1):
        history, losses_of_step = [newest], []
        for k in range(job.micro_batches):
            with torch.no_grad():
                for layer in part.layers:
                    for name, each in layer.named_parameters():
                        each.copy_(history[version_of(k, stage_of[layer.index])][name])
            stream, targets = job.dataset().batch(step, 0, k)
            for layer in part.layers:
                reseed(seed_of_pass(job.seed, step, k), layer.index)
                stream = layer.module(stream)
            gathered = min(interval, job.micro_batches - k // interval * interval)
            loss = cross_entropy(stream, targets) * (1 / gathered)
            loss.backward()
            losses_of_step.append(loss.detach() * (gathered / job.micro_batches))
            if (k + 1) % interval == 0 or k + 1 == job.micro_batches:
                newest = {name: each - RATE * parameters[name].grad for name, each in newest.items()}
                history.append(newest)
                for each in parameters.values():
                    each.grad = None
        losses.append(float(torch.stack(losses_of_step).sum()))
    return newest, losses


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
