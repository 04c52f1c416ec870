"""Messages between ranks: their order, what proves their arrival, and links that take them in that order only."""

import threading
from pathlib import Path

import pytest
import torch

from pipelinejob.scheduler import catalogue
from pipelinejob.schedules.actions import B, F, Schedule, one_route, straight
from pipelinejob.schedules.families import ASYNCHRONOUS
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.setting import Setting
from pipelinejob.spec.job import GptModel, Model
from pipelinejob_trainer.communication import links
from pipelinejob_trainer.communication.agreement import Shapes
from pipelinejob_trainer.communication.messages import (
    Border,
    awaited,
    header_tag,
    neighbours,
    order,
    produced,
    received_before,
)
from pipelinejob_trainer.communication.packing import TensorSpec
from support.training.pipelines import Job, make_rank, merged, run_steps, run_unsplit
from support.training.tagless_links import TIMEOUT_S, links_without_tags

NAMES = [name for name in catalogue.FAMILIES if name not in ASYNCHRONOUS]


def built(name: ScheduleName, ranks: int = 4, micro_batches: int = 8) -> Schedule:
    return catalogue.build(name, Setting(num_ranks=ranks, num_micro_batches=micro_batches))


def test_an_activation_goes_down_the_route_and_its_gradient_back() -> None:
    schedule = one_route(straight(2), [[F(0), F(1), B(0), B(1)], [F(0), B(0), F(1), B(1)]], 2)

    assert [str(message) for message in order(schedule, 0, 1)] == [
        "the activation of micro-batch 0 between stages 0 and 1",
        "the activation of micro-batch 1 between stages 0 and 1",
    ]
    assert [(m.is_gradient, m.micro_batch) for m in order(schedule, 1, 0)] == [(True, 0), (True, 1)]


def test_a_message_proves_the_arrival_of_what_its_sender_had_taken() -> None:
    schedule = one_route(straight(2), [[F(0), F(1), B(0), B(1)], [F(0), F(1), B(0), B(1)]], 2)

    assert received_before(schedule, 1, 0) == (2, 2)  # both activations came before either gradient was made
    assert received_before(schedule, 0, 1) == (0, 0)  # and no gradient before an activation


@pytest.mark.parametrize("name", NAMES)
def test_what_one_rank_sends_is_what_the_other_awaits_each_under_a_tag_of_its_own(name: ScheduleName) -> None:
    schedule = built(name)
    for source in range(schedule.num_ranks):
        for target in neighbours(schedule, source):
            sent = order(schedule, source, target)
            exchanges = [awaited(schedule, target, action) for action in schedule.ranks[target]]
            taken = [each.message for each in exchanges if each is not None and each.place.rank == source]

            assert sorted(sent) == sorted(taken)
            tags = [message.tag for message in sent] + [header_tag(border) for border in {m.border for m in sent}]
            assert len(set(tags)) == len(tags)


@pytest.mark.parametrize("name", NAMES)
def test_ranks_exchange_messages_with_neighbours_only(name: ScheduleName) -> None:
    schedule = built(name)
    for rank, actions in enumerate(schedule.ranks):
        exchanges = [find(schedule, rank, action) for find in (awaited, produced) for action in actions]

        assert {each.place.rank for each in exchanges if each is not None} - {rank} == set(neighbours(schedule, rank))


@pytest.mark.parametrize("window_bytes", [0, 1 << 20])
@pytest.mark.parametrize("name", [name for name in NAMES if name is not ScheduleName.FORWARD_ONLY])
def test_receives_are_posted_in_the_senders_order_and_none_blocks_another(
    text: Path, name: ScheduleName, window_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "WINDOW_BYTES", window_bytes)
    model = Model(gpt=GptModel(num_layers=14, hidden_size=8, num_heads=2))
    job = Job(text=text, model=model, schedule=name, sequence_length=8, unequal_rows=(2, 1, 2, 2, 1, 2), steps=2)
    ranks = [make_rank(job, rank=rank, links=links) for rank, links in enumerate(links_without_tags(job))]
    barrier, outcomes, errors = threading.Barrier(job.stages), {}, []

    def work(rank: int) -> None:
        try:
            outcomes[rank] = run_steps(job, ranks[rank], barrier=lambda: barrier.wait(TIMEOUT_S), evaluate_between=True)
        except Exception as error:  # noqa: BLE001 # handed to the test, whatever it is
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(job.stages)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * TIMEOUT_S)

    assert errors == []
    # Copies of a bidirectional pipeline are not added up here: what their ranks hold differs.
    if len(job.built.routes) == 1:
        whole = run_unsplit(job)
        split = merged([outcomes[rank] for rank in range(job.stages)])
        assert split.losses == whole.losses
        assert all(torch.equal(split.gradients[name], each) for name, each in whole.gradients.items())


def test_shapes_are_agreed_for_each_number_of_sequences_over_each_border_by_itself() -> None:
    shapes = Shapes((4, 4, 2))
    schedule = one_route(straight(3), [[F(0), F(1), F(2)]] * 3, 3)
    first, second, third = order(schedule, 0, 1)
    spec = TensorSpec(torch.Size((4, 7, 8)), torch.bfloat16)

    shapes.agree(first, spec)

    assert shapes.of(second) == spec
    assert shapes.of(third) is None
    assert shapes.of(order(schedule, 1, 2)[0]) is None
    assert first.border == Border(route=0, stage=0, is_forward_only=True)
