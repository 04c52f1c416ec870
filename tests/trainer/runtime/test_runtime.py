"""A rank at work: its spans, its links, and what happens when a neighbour is lost."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipelinejob.base.timeline import Span, SpanKind, StageTimeline, bubble_ratio
from pipelinejob.scheduler import catalogue
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.setting import Setting
from pipelinejob.spec.job import GptModel, Model, Precision
from pipelinejob_trainer.base.errors import PeerLostError
from pipelinejob_trainer.communication.links import Links
from pipelinejob_trainer.runtime.tasks import loss_weights
from support.training.pipelines import Job, make_rank, run_processes, run_threads, run_unsplit
from support.training.queue_link import QueueLink
from support.training.ranks import activation, changing_rank, dying_rank, exchanging_rank, group_rank, summing_rank

FLUSHED = [ScheduleName.GPIPE, ScheduleName.ONE_F_ONE_B]


def spans_of(timelines: list[StageTimeline], *, stage: int, step: int) -> tuple[Span, ...]:
    return next(timeline.spans for timeline in timelines if (timeline.stage, timeline.step) == (stage, step))


def test_every_second_of_a_step_is_in_exactly_one_span(text: Path) -> None:
    for timeline in run_threads(Job(text=text)).timelines:
        ends = [0.0, *(span.end_s for span in timeline.spans)]
        assert [span.start_s for span in timeline.spans] == ends[:-1]


@pytest.mark.parametrize("schedule", FLUSHED)
def test_every_action_has_its_span(text: Path, schedule: ScheduleName) -> None:
    spans = spans_of(run_threads(Job(text=text, schedule=schedule, micro_batches=3)).timelines, stage=2, step=2)

    for kind in (SpanKind.FORWARD, SpanKind.BACKWARD_INPUT):
        assert [span.micro_batch for span in spans if span.kind is kind] == [0, 1, 2]


def test_halves_of_a_backward_and_chunks_have_spans_of_their_own(text: Path) -> None:
    model = Model(gpt=GptModel(num_layers=2, hidden_size=16, num_heads=2))
    job = Job(text=text, model=model, stages=2, schedule=ScheduleName.ZB_V, micro_batches=2)
    spans = spans_of(run_threads(job).timelines, stage=1, step=1)

    for kind in (SpanKind.FORWARD, SpanKind.BACKWARD_INPUT, SpanKind.BACKWARD_WEIGHT):
        seen = [(span.micro_batch, span.chunk) for span in spans if span.kind is kind]
        if kind is SpanKind.BACKWARD_INPUT:  # begun ahead, it goes on once the gradient is there
            seen = list(dict.fromkeys(seen))
        assert sorted(seen) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_waits_are_named_by_what_they_wait_for(text: Path) -> None:
    timelines = run_threads(Job(text=text, micro_batches=6)).timelines

    def causes(stage: int) -> list[str | None]:
        return [span.cause for span in spans_of(timelines, stage=stage, step=1) if span.kind is SpanKind.RECV]

    assert causes(0) == ["warm-up", "gradient"] + ["cool-down"] * 4
    assert causes(3) == ["warm-up"] + ["activation"] * 5


@pytest.mark.parametrize("schedule", [ScheduleName.ONE_F_ONE_B, ScheduleName.ZB_H1])
@pytest.mark.parametrize("recompute", [False, True])
def test_layers_are_run_again_before_a_rank_waits_for_the_gradient(
    text: Path,
    schedule: ScheduleName,
    recompute: bool,
) -> None:
    job = Job(text=text, schedule=schedule, micro_batches=3, recompute=recompute)
    spans = spans_of(run_threads(job).timelines, stage=1, step=2)

    back, wait = SpanKind.BACKWARD_INPUT, SpanKind.RECV
    for k in range(3):
        first = next(place for place, span in enumerate(spans) if (span.kind, span.micro_batch) == (back, k))
        kinds = [span.kind for span in spans[first : first + 3] if span.micro_batch == k]
        is_prepared = recompute or schedule is ScheduleName.ZB_H1  # whose halves have a way to find
        assert kinds[:3] == ([back, wait, back] if is_prepared else [back, SpanKind.SEND])


def test_ranks_that_embed_or_judge_read_data_and_those_between_read_none(text: Path) -> None:
    timelines = run_threads(Job(text=text)).timelines
    reading = {timeline.stage for timeline in timelines for span in timeline.spans if span.kind is SpanKind.DATA}

    assert reading == {0, 3}


@pytest.mark.parametrize("schedule", [ScheduleName.ONE_F_ONE_B, ScheduleName.INTERLEAVED, ScheduleName.ZB_V])
def test_evaluation_gives_the_training_loss_and_leaves_no_trace(text: Path, schedule: ScheduleName) -> None:
    # One rank, on which every route turns round; gangs are in test_gang_runs. Without dropout both
    # passes are alike.
    rank = make_rank(Job(text=text, stages=1, schedule=schedule), rank=0, links=Links())
    loss = float(rank.runtime.evaluate(1).loss_sum)

    assert loss == pytest.approx(run_unsplit(Job(text=text)).losses[0])
    assert all(parameter.grad is None for parameter in rank.part.named_parameters().values())
    assert float(rank.runtime.run_step(1).loss_sum) == pytest.approx(loss)


@pytest.mark.parametrize("schedule", FLUSHED)
def test_virtual_compute_shows_the_bubble_of_theory(text: Path, schedule: ScheduleName) -> None:
    arguments = {"forward_ms": "10", "input_ms": "10", "weight_ms": "10", "layers": "4"}
    model = Model(entrypoint="pipelinejob_trainer.models.virtual:layers", num_layers=5, arguments=arguments)
    cuts = ((0, 2), (2, 3), (3, 4), (4, 5))
    job = Job(text=text, model=model, schedule=schedule, micro_batches=8, micro_batch_size=1, steps=8, cuts=cuts)

    timelines = run_threads(job, at_once=True).timelines
    by_step = [[bubble_ratio(t.spans) for t in timelines if t.step == step] for step in range(2, 9)]

    # The least, as all that else runs on this machine only adds to it; tests/bench measures
    # closely.
    assert min(sum(ratios) / 4 for ratios in by_step) == pytest.approx(3 / 11, abs=0.05)


def test_a_stage_holds_no_micro_batch_after_its_step(text: Path) -> None:
    rank = make_rank(Job(text=text, stages=1, schedule=ScheduleName.ZB_H1), rank=0, links=Links())
    rank.runtime.run_step(1)

    assert [chunk.num_in_flight for chunk in rank.chunks] == [0]


def test_a_neighbour_that_is_gone_is_a_lost_peer_in_one_process() -> None:
    link = QueueLink()
    link.expect([activation(2)])
    link.close()

    with pytest.raises(PeerLostError, match=r"activation of micro-batch 2 .* went away"):
        link.receive(0)


def test_a_neighbour_that_dies_in_a_step_is_a_lost_peer_on_every_other_rank(text: Path) -> None:
    results = run_processes(dying_rank, Job(text=text, stages=3, steps=1000), world=3, expected=2)

    assert [type(result) for result in results] == [PeerLostError, PeerLostError]


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_shapes_are_agreed_by_the_first_message_and_follow_a_micro_batchs_sequences(dtype: torch.dtype) -> None:
    sent, received = run_processes(exchanging_rank, dtype, world=2)

    assert sent == received
    assert [tensor[1] for tensor in received] == [str(dtype)] * 3


def test_a_layer_that_changes_its_shape_is_a_users_error() -> None:
    (message,) = run_processes(changing_rank, world=1)

    assert message.startswith(
        "a stage's last layer returned another nesting than for an earlier micro-batch of as many sequences:"
        " output is torch.float32 (3,) where it was torch.float32 (2,); "
    )


def test_gradients_of_replicas_are_summed_even_where_one_has_none() -> None:
    results = run_processes(summing_rank, world=2)

    assert results == [[[3.0, 3.0], [1.0]], [[3.0, 3.0], [1.0]]]


def test_ranks_are_laid_out_replica_by_replica() -> None:
    results = run_processes(group_rank, world=4)

    assert results == [([0, 1], [0, 2]), ([0, 1], [1, 3]), ([2, 3], [0, 2]), ([2, 3], [1, 3])]


class CastsToBf16(TorchDispatchMode):
    """Counts casts of some tensors to bf16."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        super().__init__()
        self._memory = {tensor.data_ptr() for tensor in tensors}
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_cast = "_to_copy" in str(function) and (kwargs or {}).get("dtype") is torch.bfloat16
        self.count += is_cast and args[0].data_ptr() in self._memory
        return function(*args, **(kwargs or {}))


def test_weights_are_cast_to_bf16_once_a_step_not_for_each_micro_batch(text: Path) -> None:
    job = Job(text=text, stages=1, schedule=ScheduleName.GPIPE, micro_batches=5, precision=Precision.BF16)
    rank = make_rank(job, rank=0, links=Links())

    with CastsToBf16(list(rank.part.named_parameters().values())) as casts:
        rank.runtime.run_step(1)

    # Four blocks of four matrices and their biases, and the head's matrix; the embedding is looked
    # up in fp32.
    assert casts.count == 4 * (4 + 4) + 1


def test_a_first_rank_sends_its_first_micro_batch_on_before_it_reads_the_others(text: Path) -> None:
    spans = spans_of(run_threads(Job(text=text, stages=2, micro_batches=3)).timelines, stage=0, step=1)
    kinds = {SpanKind.DATA, SpanKind.SEND, SpanKind.RECV}

    assert [(span.kind.value, span.micro_batch) for span in spans if span.kind in kinds][:7] == [
        ("data", 0),
        ("send", 0),
        ("data", 1),
        ("data", 2),
        ("send", 1),
        ("recv", 0),
        ("send", 2),
    ]


def test_a_last_rank_reads_everything_before_it_waits(text: Path) -> None:
    spans = spans_of(run_threads(Job(text=text, stages=2, micro_batches=3)).timelines, stage=1, step=1)

    assert [(span.kind.value, span.micro_batch) for span in spans if span.kind in {SpanKind.DATA, SpanKind.RECV}] == [
        ("data", 0),
        ("data", 1),
        ("data", 2),
        ("recv", 0),
        ("recv", 1),
        ("recv", 2),
    ]


def test_a_micro_batch_counts_by_its_share_of_the_tokens() -> None:
    schedule = catalogue.build(ScheduleName.GPIPE, Setting(num_ranks=2, num_micro_batches=3))
    weights = loss_weights(schedule, (2, 2, 1), replicas=2)

    assert [str(weight.gradient) for weight in weights] == ["1/5", "1/5", "1/10"]
    assert [weight.step for weight in weights] == [weight.gradient for weight in weights]


def test_where_weights_change_within_the_step_it_counts_by_its_share_of_what_the_update_gathers() -> None:
    setting = Setting(num_ranks=2, num_micro_batches=3, update_interval=2)
    weights = loss_weights(catalogue.build(ScheduleName.PIPEDREAM, setting), (2, 1, 1), replicas=1)

    assert [str(weight.gradient) for weight in weights] == ["2/3", "1/3", "1"]
    assert [str(weight.step) for weight in weights] == ["1/2", "1/4", "1/4"]
