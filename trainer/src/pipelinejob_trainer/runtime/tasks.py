"""What the actions of a step do with a rank's chunks, in training and in evaluation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property, partial

import torch

from pipelinejob.base.timeline import SpanKind
from pipelinejob.schedules.actions import GIVES_GRADIENT, Action, ActionKind, Held, Schedule
from pipelinejob.schedules.causes import WaitCause
from pipelinejob_trainer.base.nesting import Gradients, Passed
from pipelinejob_trainer.data.micro_batch import Inputs
from pipelinejob_trainer.runtime.program import Operation, Switch
from pipelinejob_trainer.runtime.recorder import State
from pipelinejob_trainer.runtime.reduction import Bucket, Reducer, bucket_starts
from pipelinejob_trainer.runtime.sharding import ShardedReducer
from pipelinejob_trainer.stage.chunk import Chunk
from pipelinejob_trainer.stage.randomness import seed_of_pass


@dataclass(frozen=True, slots=True, kw_only=True)
class LossWeights:
    """The weight of a micro-batch's mean loss, by its fraction of the tokens.

    `gradient` is the weight in the loss whose gradient is taken: the mean over all micro-batches
    of one update, which is the global batch, or a part of it where an asynchronous schedule
    updates within the step. `step` is the weight in the step's mean.
    """

    gradient: Fraction
    step: Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """A rank's role in a schedule: its actions, and its chunks by route and stage.

    `weights` are those of each micro-batch; `first_sample` is the index of micro-batch 0 in the
    global batch.
    """

    schedule: Schedule
    rank: int
    chunks: Mapping[Held, Chunk]
    weights: Sequence[LossWeights]
    first_sample: int

    @property
    def actions(self) -> tuple[Action, ...]:
        return self.schedule.ranks[self.rank]

    def stage_of(self, action: Action) -> Chunk:
        return self.chunks[self.held(action)]

    def held(self, action: Action) -> Held:
        return Held(self.schedule.route_of[action.micro_batch], self.schedule.stage_of(self.rank, action))


@dataclass(slots=True)
class RunningStep:
    """The running step: its number, and its losses so far."""

    step: int = 0
    losses: list[torch.Tensor] = field(default_factory=list)

    def begin(self, step: int) -> None:
        self.step = step
        self.losses = []

    def add(self, loss: torch.Tensor) -> None:
        self.losses.append(loss)


def loss_weights(schedule: Schedule, rows: Sequence[int], *, replicas: int) -> tuple[LossWeights, ...]:
    """Return the weights of each micro-batch; `rows` are the sequences of each, of equal length."""
    groups = update_groups(schedule)
    return tuple(
        LossWeights(
            gradient=Fraction(rows[k], replicas * sum(rows[other] for other in groups[k])),
            step=Fraction(rows[k], replicas * sum(rows)),
        )
        for k in range(schedule.num_micro_batches)
    )


def update_groups(schedule: Schedule) -> dict[int, tuple[int, ...]]:
    """Map each micro-batch to all those whose gradients go into the same update."""
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
class TrainingTasks:
    """The tasks of a synchronous step: forwards, gradients, early reduction."""

    role: Role
    running: RunningStep
    seed: int
    reducer: Reducer | ShardedReducer | None
    switch: Switch

    def forward(self, action: Action) -> Callable[[Passed | Inputs, torch.Tensor | None], Passed]:
        k, run = action.micro_batch, self.role.stage_of(action).forward
        weight, sample = float(self.role.weights[k].gradient), self.role.first_sample + k
        running, seed = self.running, self.seed

        def forward(received: Passed | Inputs, targets: torch.Tensor | None) -> Passed:
            return run(k, received, targets, loss_weight=weight, seed=seed_of_pass(seed, running.step, sample))

        return forward

    def maker(self, action: Action) -> str:
        return self.role.stage_of(action).last_layer

    def loss(self, _: Action) -> Callable[[torch.Tensor], None]:
        return self.running.add

    def ahead(self, action: Action) -> Operation | None:
        stage = self.role.stage_of(action)
        if action.kind is not ActionKind.BACKWARD:
            return partial(stage.prepare_backward_input, action.micro_batch)
        return partial(stage.prepare_backward, action.micro_batch) if stage.recomputes else None

    def gradient(self, action: Action) -> Callable[[Gradients | None], Gradients | None]:
        stage = self.role.stage_of(action)
        run = stage.backward if action.kind is ActionKind.BACKWARD else stage.backward_input
        return partial(run, action.micro_batch)

    def weight(self, action: Action) -> Operation:
        return partial(self.role.stage_of(action).backward_weight, action.micro_batch)

    def after(self, position: int) -> Sequence[Operation]:
        return [partial(self._start, bucket) for bucket in self._starts.get(position, ())]

    @cached_property
    def _starts(self) -> dict[int, list[Bucket]]:
        return {} if self.reducer is None else bucket_starts(self.role.schedule, self.role.rank, self.reducer.buckets)

    def _start(self, bucket: Bucket) -> None:
        assert self.reducer is not None, "it has the bucket"
        self.switch(_REDUCING)
        self.reducer.start(bucket)


@dataclass(frozen=True, kw_only=True)
class EvaluationTasks:
    """The tasks of an evaluation: forwards alone, of which nothing is kept."""

    role: Role
    running: RunningStep

    def forward(self, action: Action) -> Callable[[Passed | Inputs, torch.Tensor | None], Passed]:
        run, weight = self.role.stage_of(action).evaluate, float(self.role.weights[action.micro_batch].step)
        return lambda received, targets: run(received, targets, loss_weight=weight)

    def maker(self, action: Action) -> str:
        return self.role.stage_of(action).last_layer

    def loss(self, _: Action) -> Callable[[torch.Tensor], None]:
        return self.running.add

    def ahead(self, action: Action) -> Operation | None:
        raise AssertionError(f"{action} in an evaluation")

    def gradient(self, action: Action) -> Callable[[Gradients | None], Gradients | None]:
        raise AssertionError(f"{action} in an evaluation")

    def weight(self, action: Action) -> Operation:
        raise AssertionError(f"{action} in an evaluation")

    def after(self, _: int) -> Sequence[Operation]:
        return ()


_REDUCING = State(SpanKind.SEND, cause=WaitCause.SEND)
