"""What the actions of a step do with a rank's chunks: in training, and in evaluation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property, partial

import torch

from pipelinejob.schedules.actions import GIVES_GRADIENT, Action, ActionKind, Held, Schedule
from pipelinejob.schedules.causes import WaitCause
from pipelinejob.timeline import SpanKind
from pipelinejob_trainer.program import Operation, Switch
from pipelinejob_trainer.randomness import seed_of_pass
from pipelinejob_trainer.recorder import State
from pipelinejob_trainer.reduction import Bucket, Reducer, bucket_starts
from pipelinejob_trainer.stage import Stage, Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class LossWeights:
    """How much a micro-batch's mean loss counts: by its share of the tokens.

    `gradient` is the weight in what gradients are of: the mean over what one update gathers, which is the global batch,
    or a part of it where an asynchronous schedule updates within the step. `step` is the weight in the step's mean.
    """

    gradient: Fraction
    step: Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A rank's seat in a schedule: its chunks, each under the name that the whole pipeline has for it.

    `weights` are those of each micro-batch; `first_sample` is the number of micro-batch 0 in the global batch.
    """

    schedule: Schedule
    rank: int
    chunks: Mapping[Held, Stage]
    weights: Sequence[LossWeights]
    first_sample: int

    @property
    def actions(self) -> tuple[Action, ...]:
        return self.schedule.ranks[self.rank]

    def stage_of(self, action: Action) -> Stage:
        return self.chunks[self.held(action)]

    def held(self, action: Action) -> Held:
        return Held(self.schedule.route_of[action.micro_batch], self.schedule.stage_of(self.rank, action))


@dataclass(slots=True)
class Moment:
    """The running step: its number, and the losses that it has given so far."""

    step: int = 0
    losses: list[torch.Tensor] = field(default_factory=list)

    def begin(self, step: int) -> None:
        self.step = step
        self.losses = []

    def add(self, loss: torch.Tensor) -> None:
        self.losses.append(loss)


def loss_weights(schedule: Schedule, rows: Sequence[int], *, replicas: int) -> tuple[LossWeights, ...]:
    """Give the weights of each micro-batch; `rows` are the sequences of each, all of the same number of tokens."""
    gathered = _gathered(schedule)
    return tuple(
        LossWeights(
            gradient=Fraction(rows[k], replicas * sum(rows[other] for other in gathered[k])),
            step=Fraction(rows[k], replicas * sum(rows)),
        )
        for k in range(schedule.num_micro_batches)
    )


def _gathered(schedule: Schedule) -> dict[int, tuple[int, ...]]:
    """Give, for each micro-batch, all those whose gradients go into the same update."""
    groups: list[list[int]] = [[]]
    if not schedule.is_asynchronous:
        groups = [list(range(schedule.num_micro_batches))]
    else:
        for action in schedule.ranks[schedule.routes[0][-1]]:
            if action.kind is ActionKind.UPDATE:
                groups.append([])
            elif action.kind in GIVES_GRADIENT:
                groups[-1].append(action.micro_batch)
    return {k: tuple(group) for group in groups for k in group}


@dataclass(frozen=True, kw_only=True)
class Training:
    """A synchronous step: forwards, gradients, and their reduction as soon as a stage is done."""

    seat: Seat
    moment: Moment
    seed: int
    reducer: Reducer | None
    switch: Switch

    def forward(self, action: Action) -> Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]:
        k, run = action.micro_batch, self.seat.stage_of(action).forward
        weight, sample = float(self.seat.weights[k].gradient), self.seat.first_sample + k
        moment, seed, leaves = self.moment, self.seed, self.leaves(action)

        def forward(received: torch.Tensor, targets: torch.Tensor | None) -> torch.Tensor:
            seed_here = seed_of_pass(seed, moment.step, sample)
            return run(k, received, targets, loss_weight=weight, seed=seed_here, weights=leaves())

        return forward

    def leaves(self, _: Action) -> Callable[[], Weights | None]:
        """Give what says with which weights a forward runs; None stands for the layers' own."""
        return lambda: None

    def loss(self, _: Action) -> Callable[[torch.Tensor], None]:
        return self.moment.add

    def ahead(self, action: Action) -> Operation | None:
        stage = self.seat.stage_of(action)
        if action.kind is not ActionKind.BACKWARD:
            return partial(stage.prepare_backward_input, action.micro_batch)
        return partial(stage.prepare_backward, action.micro_batch) if stage.recomputes else None

    def gradient(self, action: Action) -> Callable[[torch.Tensor | None], torch.Tensor | None]:
        stage = self.seat.stage_of(action)
        run = stage.backward if action.kind is ActionKind.BACKWARD else stage.backward_input
        return partial(run, action.micro_batch)

    def weight(self, action: Action) -> Operation:
        return partial(self.seat.stage_of(action).backward_weight, action.micro_batch)

    def after(self, position: int) -> Sequence[Operation]:
        return [partial(self._start, bucket) for bucket in self._starts.get(position, ())]

    @cached_property
    def _starts(self) -> dict[int, list[Bucket]]:
        return {} if self.reducer is None else bucket_starts(self.seat.schedule, self.seat.rank, self.reducer.buckets)

    def _start(self, bucket: Bucket) -> None:
        assert self.reducer is not None, "it has the bucket"
        self.switch(_REDUCING)
        self.reducer.start(bucket)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Forwards alone, of which nothing is kept."""

    seat: Seat
    moment: Moment

    def forward(self, action: Action) -> Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]:
        run, weight = self.seat.stage_of(action).evaluate, float(self.seat.weights[action.micro_batch].step)
        return lambda received, targets: run(received, targets, loss_weight=weight)

    def loss(self, _: Action) -> Callable[[torch.Tensor], None]:
        return self.moment.add

    def ahead(self, action: Action) -> Operation | None:
        raise AssertionError(f"{action} in an evaluation")

    def gradient(self, action: Action) -> Callable[[torch.Tensor | None], torch.Tensor | None]:
        raise AssertionError(f"{action} in an evaluation")

    def weight(self, action: Action) -> Operation:
        raise AssertionError(f"{action} in an evaluation")

    def after(self, _: int) -> Sequence[Operation]:
        return ()


_REDUCING = State(SpanKind.SEND, cause=WaitCause.SEND)
