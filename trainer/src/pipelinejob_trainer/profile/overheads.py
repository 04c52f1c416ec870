"""What links, actions and steps cost besides compute, measured in a pipeline of empty layers.

Its layers wait instead of computing (`models.virtual`), so that a rank sleeps when its message
comes, as in a pipeline: a hop to a sleeping process takes several times as long as one to a
process that spins. All figures are read from the timelines that both ranks recorded.
"""

import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean, median

from torch import distributed

from pipelinejob.base.timeline import Span, SpanKind, StageTimeline
from pipelinejob.contract.plan import Plan
from pipelinejob.costs.layers import analytic_profile
from pipelinejob.planning.planner import make_plan
from pipelinejob.planning.playing import schedule_of
from pipelinejob.schedules.causes import WaitCause
from pipelinejob.spec.job import (
    Checkpoint,
    Device,
    Model,
    Parallelism,
    PipelineJobSpec,
    ScheduleName,
    ScheduleSpec,
    Training,
)
from pipelinejob_trainer.communication.gang import Gang
from pipelinejob_trainer.communication.process_groups import Groups, connect
from pipelinejob_trainer.models.virtual import VOCABULARY_SIZE
from pipelinejob_trainer.process.config import Address, Config
from pipelinejob_trainer.process.signals import StopRequest
from pipelinejob_trainer.process.stage_status import StageStatus
from pipelinejob_trainer.runtime.reduction import sums_over_groups
from pipelinejob_trainer.training.loop import TrainingLoop
from pipelinejob_trainer.training.membership import Membership
from pipelinejob_trainer.training.preparation import Preparation

_RANKS = 2
_MICRO_BATCHES = 8
_WAIT_MS = 3  # of each pass
_SETTLING_STEPS, _STEPS = 2, 8
_TOKEN_BYTES = 4 * VOCABULARY_SIZE  # what a virtual layer gives for each token
_SHORT = 16  # tokens: a message that takes no time but its latency
_LONG_BYTES = 1 << 20
_LEAST_S = 1e-6
_NOWHERE = Address(host="127.0.0.1", port=1)  # the two have met already


@dataclass(frozen=True, slots=True, kw_only=True)
class Overheads:
    """Seconds besides compute: of one hop, of an action's messages, of a step."""

    link_s: float = 0.0
    link_bytes_per_s: float | None = None
    action_s: float = 0.0
    step_s: float = 0.0


def nominal_overheads(plan: Plan) -> Overheads:
    """Return the link costs of data sheets, where there is no second process to measure with."""
    nominal = analytic_profile(plan.model, plan.data, plan.schedule, plan.training, device=plan.device)
    return Overheads(link_s=nominal.link_s, link_bytes_per_s=nominal.link_bytes_per_s)


def played_overheads(plan: Plan, groups: Groups, *, num_bytes: int) -> Overheads:
    """Measure with one other process.

    `num_bytes` is the size of the plan's messages. Both return the figures. Short and long
    messages are measured; the plan's are interpolated linearly.
    """
    short_length, length = min(_SHORT, plan.data.sequence_length), plan.data.sequence_length
    rows = math.ceil(max(num_bytes, _LONG_BYTES) / _TOKEN_BYTES / length)
    short = _played(_empty_plan(plan, rows=1, length=short_length), groups)
    long = _played(_empty_plan(plan, rows=rows, length=length), groups)
    apart_bytes = (rows * length - short_length) * _TOKEN_BYTES
    share = (num_bytes - short_length * _TOKEN_BYTES) / apart_bytes

    def between(a: float, b: float) -> float:
        return max(a + share * (b - a), 0.0)

    arriving_s = between(short.arriving_s, long.arriving_s)
    messages = _messages_an_action(plan)
    busy_s = messages * between(short.exchange_s, long.exchange_s)
    seconds_a_byte = max(long.arriving_s - short.arriving_s, _LEAST_S) / apart_bytes
    ranks = plan.parallelism.pipeline * plan.parallelism.data
    return Overheads(
        # A message leaves before its sender's book-keeping is done, which the plan lets it wait
        # for.
        link_s=max(arriving_s - busy_s - num_bytes * seconds_a_byte, 0.0),
        link_bytes_per_s=1 / seconds_a_byte,
        action_s=busy_s + messages * between(short.gloo_s, long.gloo_s),
        step_s=short.report_s + short.update_s + short.barrier_s * math.ceil(math.log2(max(ranks, 2))),
    )


def _messages_an_action(plan: Plan) -> float:
    """Return how many messages a rank sends for each action in the mean; it receives as many."""
    schedule = schedule_of(plan)
    stages, kinds = schedule.num_stages, 3 if schedule.is_split else 2
    return 2 * (stages - 1) / stages / kinds


def _empty_plan(plan: Plan, *, rows: int, length: int) -> Plan:
    spec = PipelineJobSpec(
        model=Model(
            entrypoint="pipelinejob_trainer.models.virtual:layers",
            num_layers=_RANKS + 1,
            arguments={"layers": str(_RANKS)}
            | {name: str(_WAIT_MS) for name in ("forward_ms", "input_ms", "weight_ms")},
        ),
        data=plan.data.model_copy(update={"sequence_length": length}),
        parallelism=Parallelism(pipeline=_RANKS),
        schedule=ScheduleSpec(name=ScheduleName.ONE_F_ONE_B, micro_batches=_MICRO_BATCHES, micro_batch_size=rows),
        training=Training(steps=_SETTLING_STEPS + _STEPS + 1),
        checkpoint=Checkpoint(interval_steps=0),
        device=Device.CPU,
    )
    return make_plan(namespace=plan.namespace, name="empty-pipeline", spec=spec)


class _Kept(StageStatus):
    """A status that keeps all timelines."""

    def __init__(self, plan: Plan, *, stage: int) -> None:
        super().__init__(plan, stage=stage, replica=0, attempt=1)
        self.timelines: list[StageTimeline] = []

    def add_timeline(self, timeline: StageTimeline) -> None:
        super().add_timeline(timeline)
        self.timelines.append(timeline)


def _played(plan: Plan, groups: Groups) -> "_Played":
    """Train the plan; return what both ranks recorded, without the first and last steps."""
    began_s = _other_threads_s()
    timelines = _trained(plan, groups).timelines
    gloo_s = (_other_threads_s() - began_s) / (len(timelines) * _MICRO_BATCHES)
    found: list[tuple[list[StageTimeline], float]] = [([], 0.0)] * _RANKS
    distributed.all_gather_object(found, (timelines[_SETTLING_STEPS:-1], gloo_s), group=groups.world)
    return _Played([steps for steps, _ in found], gloo_s=mean(seconds for _, seconds in found))


def _other_threads_s() -> float:
    """Return the processor time of this process's other threads."""
    return time.process_time() - time.thread_time()


def _trained(plan: Plan, groups: Groups) -> _Kept:
    rank = distributed.get_rank(groups.world)
    status = _Kept(plan, stage=rank)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        prepared = Preparation(_config(plan, rank, Path(folder)), plan)
        layout = prepared.rank.layout
        link = partial(connect, groups, routes=layout.schedule.routes, data=1, device=prepared.rank.device)
        membership = Membership(
            gang=Gang(groups, num_stages=_RANKS),
            link=lambda rows: link(rows=rows),
            sum_over=sums_over_groups(layout.all_shares(prepared.rank.part)),
            rendezvous=_NOWHERE,
            prefix="",
        )
        TrainingLoop(prepared, membership, status, StopRequest(grace_s=60, on_overdue=lambda: None)).run()
        membership.gang.barrier()
    return status


def _config(plan: Plan, rank: int, folder: Path) -> Config:
    return Config(
        plan=folder / "plan.json",
        namespace=plan.namespace,
        job=plan.name,
        stage=rank,
        replica=0,
        attempt=1,
        rendezvous=_NOWHERE,
        metrics_port=0,
        checkpoints=folder,
        output=None,
        termination_log=None,
        grace_s=60.0,
    )


class _Played:
    """What two ranks' timelines say; both have the machine's clock.

    `gloo_s` is the processor time of gloo's own thread for each message sent and received: where
    a rank has one core, that is lost to its compute.
    """

    def __init__(self, ranks: Sequence[Sequence[StageTimeline]], *, gloo_s: float) -> None:
        self._ranks = ranks
        self.gloo_s = gloo_s
        self._messages = [message for step in zip(*ranks, strict=True) for message in _messages(step)]

    @property
    def arriving_s(self) -> float:
        """The time from sending a message until the rank that waited for it goes on."""
        return median(message.arriving_s for message in self._messages if message.is_awaited)

    @property
    def exchange_s(self) -> float:
        """The time to send one message and receive another that has arrived."""
        there = [message.receiving_s for message in self._messages if not message.is_awaited]
        sending_s = median(message.sending_s for message in self._messages)
        return sending_s + (median(there) if there else 0.0)

    @property
    def report_s(self) -> float:
        """The time between two steps."""
        return median(map(max, self._by_step(SpanKind.IDLE, None)))

    @property
    def barrier_s(self) -> float:
        """The time of the all-reduce on the rank that comes last."""
        return median(map(min, self._by_step(SpanKind.IDLE, WaitCause.BARRIER)))

    @property
    def update_s(self) -> float:
        """The time of an update of almost nothing."""
        return median(map(max, self._by_step(SpanKind.OPTIMIZER, None)))

    def _by_step(self, kind: SpanKind, cause: WaitCause | None) -> Iterator[list[float]]:
        """Return, for each step, the seconds that each rank spent on something."""
        for step in zip(*self._ranks, strict=True):
            yield [
                sum(span.end_s - span.start_s for span in each.spans if (span.kind, span.cause) == (kind, cause))
                for each in step
            ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Message:
    """One message: seconds of sending, of receiving or waiting, and from sending to arrival."""

    sending_s: float
    receiving_s: float
    arriving_s: float
    is_awaited: bool  # its receiver waited when it left


def _messages(step: Sequence[StageTimeline]) -> Iterator[_Message]:
    """Return the first rank's activations and the second rank's gradients of a step."""
    for sender, receiver, kind in ((step[0], step[1], SpanKind.FORWARD), (step[1], step[0], SpanKind.BACKWARD_INPUT)):
        assert sender.started is not None, "the trainer says when a step started"
        assert receiver.started is not None, "as above"
        ahead_s = receiver.started - sender.started
        sent, received = _after(sender.spans, kind, SpanKind.SEND), _before(receiver.spans, SpanKind.RECV, kind)
        for k in sent.keys() & received.keys():
            given, taken = sent[k], received[k]
            yield _Message(
                sending_s=given.end_s - given.start_s,
                receiving_s=taken.end_s - taken.start_s,
                arriving_s=taken.end_s + ahead_s - given.start_s,
                is_awaited=taken.start_s + ahead_s < given.start_s,
            )


def _after(spans: Sequence[Span], kind: SpanKind, follower: SpanKind) -> dict[int | None, Span]:
    """Return the spans that directly follow one of a kind, by micro-batch."""
    return {one.micro_batch: other for one, other in pairwise(spans) if (one.kind, other.kind) == (kind, follower)}


def _before(spans: Sequence[Span], leader: SpanKind, kind: SpanKind) -> dict[int | None, Span]:
    return {other.micro_batch: one for one, other in pairwise(spans) if (one.kind, other.kind) == (leader, kind)}
