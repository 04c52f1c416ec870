"""Plays a rank's list of actions.

It knows no schedule by name: what to do, and when, is all in the list.
"""

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass

import torch

from pipelinejob.base.timeline import SpanKind
from pipelinejob.schedules.actions import ActionKind, Schedule
from pipelinejob.schedules.causes import WaitCause
from pipelinejob_trainer.base.errors import LayerError
from pipelinejob_trainer.communication.links import Links
from pipelinejob_trainer.runtime.asynchronous import AsynchronousTasks, Update, check_shares
from pipelinejob_trainer.runtime.feed import Batches, Feed
from pipelinejob_trainer.runtime.program import Program, bind
from pipelinejob_trainer.runtime.recorder import IDLE, Recorder, State
from pipelinejob_trainer.runtime.reduction import Reducer
from pipelinejob_trainer.runtime.sharding import ShardedReducer
from pipelinejob_trainer.runtime.tasks import EvaluationTasks, Role, RunningStep, TrainingTasks, loss_weights
from pipelinejob_trainer.runtime.weight_versions import Versions
from pipelinejob_trainer.stage.chunk import Chunk
from pipelinejob_trainer.stage.randomness import preserving_random_state
from pipelinejob_trainer.stage.weights import Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """The result of a step besides gradients.

    `loss_sum` is this rank's part of the global batch's loss, of which `counted` of `num_targets`
    count. Summed over all ranks, and multiplied by targets / counted, it is the mean loss in nats
    per token (`models.losses.counted_loss`). All are zero on ranks without a last stage; tensors
    stay on the device.
    """

    loss_sum: torch.Tensor
    counted: torch.Tensor
    num_targets: int


class Runtime:
    """Plays a rank's list of actions, step by step."""

    def __init__(
        self,
        *,
        schedule: Schedule,
        rank: int,
        chunks: Sequence[Chunk],
        links: Links,
        recorder: Recorder,
        batches: Batches | None,
        rows: Sequence[int],
        seed: int,
        replica: int = 0,
        num_replicas: int = 1,
        reducer: Reducer | ShardedReducer | None = None,
        update: Update | None = None,
        counts_loss: bool = True,
        weights: Weights | None = None,
    ) -> None:
        """Bind the rank's list of actions to its stages and links.

        `rank` counts within the pipeline; `chunks` are as `schedule.held_by(rank)` orders them.
        `batches` may be None where the rank has neither a first nor a last stage. `rows` are the
        sequences of each micro-batch. `update` is for asynchronous schedules only. `counts_loss`
        is for one of the ranks that share layers, for all of them have the same loss. `weights`
        are let go of behind each play.
        """
        self._recorder = recorder
        self._batches = batches
        self._chunks = tuple(chunks)
        self._rank = rank
        self._replica = replica
        self._reducer = reducer
        self._counts_loss = counts_loss
        self._weights = weights
        self._running = RunningStep()
        self._versions = _versions(self._chunks) if schedule.is_asynchronous else None
        role = Role(
            schedule=schedule,
            rank=rank,
            chunks=dict(zip(schedule.held_by(rank), self._chunks, strict=True)),
            weights=loss_weights(schedule, rows, replicas=num_replicas),
            first_sample=replica * schedule.num_micro_batches,
        )
        self._feed = self._make_feed(role)
        self._training = bind(
            schedule,
            rank,
            tasks=self._make_tasks(role, seed, update),
            links=links,
            feed=self._feed,
            switch=recorder.switch,
        )
        self._evaluation = bind(
            schedule.forward_only(),
            rank,
            tasks=EvaluationTasks(role=role, running=self._running),
            links=links,
            feed=self._feed,
            switch=_unrecorded,
        )

    @property
    def peak_versions(self) -> int:
        """The largest number of weight versions that were live at once."""
        return 1 if self._versions is None else self._versions.peak

    def run_step(self, step: int, batches: Batches | None = None) -> StepResult:
        """Play forward and backward of a whole step; gradients are added to the parameters'.

        `batches`, if given, replace those that the runtime was made with. Raises PeerLostError
        when a neighbour went away, UserError for data or layers that cannot be used.
        """
        self._recorder.begin_step(step)
        if self._versions is not None:
            self._versions.begin()
        with self._chunks[0].keeping_casts() if self._versions is None else nullcontext():
            self._play(self._training, step, batches or self._batches, what=f"step {step}")
        if self._reducer is not None:
            self._recorder.switch(_AT_THE_END)
            self._reducer.wait()
        self._recorder.switch(IDLE)
        return self._result()

    def evaluate(self, step: int, batches: Batches | None = None) -> StepResult:
        """Play only the forwards of a step, without recording; `batches` are as in `run_step`.

        Raises what `run_step` does.
        """
        with ExitStack() as stack:
            stack.enter_context(preserving_random_state(self._chunks[0].device))
            for chunk in self._chunks:
                stack.enter_context(chunk.evaluating())
            self._play(self._evaluation, step, batches or self._batches, what="evaluation")
        return self._result()

    def _play(self, program: Program, step: int, batches: Batches | None, *, what: str) -> None:
        self._running.begin(step)
        self._feed.begin(batches, step)
        try:
            program.play()
        except LayerError as error:
            error.within(f"{what}, stage {self._rank}")
            raise
        if self._weights is not None:
            self._weights.release()

    def _result(self) -> StepResult:
        losses = self._running.losses if self._counts_loss else []
        counts = [chunk.counts.take() for chunk in self._chunks if chunk.is_last]
        if not self._counts_loss:
            counts = []
        zero = torch.zeros((), dtype=torch.float64, device=self._chunks[0].device)
        return StepResult(
            loss_sum=torch.stack(losses).sum() if losses else torch.zeros((), device=self._chunks[0].device),
            counted=sum((counted for counted, _ in counts), start=zero),
            num_targets=sum(num_targets for _, num_targets in counts),
        )

    def _make_tasks(self, role: Role, seed: int, update: Update | None) -> TrainingTasks:
        running, reducer, switch = self._running, self._reducer, self._recorder.switch
        if self._versions is None:
            return TrainingTasks(role=role, running=running, seed=seed, reducer=reducer, switch=switch)
        assert update is not None, "an asynchronous schedule updates within the step"
        check_shares(reducer)
        return AsynchronousTasks(
            role=role,
            running=running,
            seed=seed,
            reducer=reducer,
            switch=switch,
            versions=self._versions,
            update=update,
        )

    def _make_feed(self, role: Role) -> Feed:
        forwards = [action for action in role.actions if action.kind is ActionKind.FORWARD]
        return Feed(
            replica=self._replica,
            device=self._chunks[0].device,
            inputs_of=(action.micro_batch for action in forwards if role.held(action).stage == 0),
            targets_of=(a.micro_batch for a in forwards if role.held(a).stage == role.schedule.num_stages - 1),
        )


def _versions(chunks: Sequence[Chunk]) -> Versions:
    return Versions(dict.fromkeys(each for chunk in chunks for _, each in chunk.named_parameters()))


_AT_THE_END = State(SpanKind.IDLE, cause=WaitCause.BARRIER)


def _unrecorded(_: State) -> None:
    """Record nothing."""
