"""Plays a rank's list of actions. It knows no schedule by name: what to do, and in which order, is all in the list."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from pipelinejob.schedules.actions import ActionKind, Schedule
from pipelinejob.schedules.causes import WaitCause
from pipelinejob.timeline import SpanKind
from pipelinejob_trainer.asynchronous import Asynchronous, Update, check_shares
from pipelinejob_trainer.feed import Batches, Feed
from pipelinejob_trainer.link import Links
from pipelinejob_trainer.program import Program, bind
from pipelinejob_trainer.recorder import IDLE, Recorder, State
from pipelinejob_trainer.reduction import Reducer
from pipelinejob_trainer.stage import Stage
from pipelinejob_trainer.tasks import Evaluation, Moment, Seat, Training, loss_weights
from pipelinejob_trainer.versions import Versions


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What a step gave beside gradients.

    `loss_sum` is this rank's part of the global batch's mean loss: summed over all ranks it is that mean, in nats per
    token. It is zero on ranks without a last stage, and stays on the device.
    """

    loss_sum: torch.Tensor


class Runtime:
    """A rank at work on its list of actions."""

    def __init__(
        self,
        *,
        schedule: Schedule,
        rank: int,
        chunks: Sequence[Stage],
        links: Links,
        recorder: Recorder,
        batches: Batches | None,
        rows: Sequence[int],
        seed: int,
        replica: int = 0,
        num_replicas: int = 1,
        reducer: Reducer | None = None,
        update: Update | None = None,
    ) -> None:
        """Take what this rank has.

        `rank` counts within the pipeline; `chunks` are as `schedule.held_by(rank)` orders them. `batches` may be None
        where the rank has neither a first nor a last stage. `rows` are the sequences of each micro-batch. `update` is
        for asynchronous schedules only.
        """
        self._recorder = recorder
        self._batches = batches
        self._chunks = tuple(chunks)
        self._replica = replica
        self._reducer = reducer
        self._moment = Moment()
        self._versions = _versions(self._chunks) if schedule.is_asynchronous else None
        seat = Seat(
            schedule=schedule,
            rank=rank,
            chunks=dict(zip(schedule.held_by(rank), self._chunks, strict=True)),
            weights=loss_weights(schedule, rows, replicas=num_replicas),
            first_sample=replica * schedule.num_micro_batches,
        )
        self._feed = self._make_feed(seat)
        self._training = bind(
            schedule,
            rank,
            tasks=self._make_tasks(seat, seed, update),
            links=links,
            feed=self._feed,
            switch=recorder.switch,
        )
        self._evaluation = bind(
            schedule.forward_only(),
            rank,
            tasks=Evaluation(seat=seat, moment=self._moment),
            links=links,
            feed=self._feed,
            switch=_unrecorded,
        )

    @property
    def peak_versions(self) -> int:
        """Count the weight versions that were live at once, at most."""
        return 1 if self._versions is None else self._versions.peak

    def run_step(self, step: int) -> StepResult:
        """Do forward and backward of a whole step; gradients are added to what the parameters hold.

        Raises PeerLostError when a neighbour went away, UserError for data or layers that cannot be used.
        """
        self._recorder.begin_step(step)
        if self._versions is not None:
            self._versions.begin()
        with self._chunks[0].keeping_casts() if self._versions is None else nullcontext():
            self._play(self._training, step, self._batches)
        if self._reducer is not None:
            self._recorder.switch(_AT_THE_END)
            self._reducer.wait()
        self._recorder.switch(IDLE)
        return self._result()

    def evaluate(self, step: int, batches: Batches | None = None) -> StepResult:
        """Run the forwards of a step and keep nothing; `batches` stand in for those that are trained on.

        Nothing is recorded of it. Raises what `run_step` does.
        """
        for chunk in self._chunks:
            chunk.module.eval()
        self._play(self._evaluation, step, batches or self._batches)
        for chunk in self._chunks:
            chunk.module.train()
        return self._result()

    def _play(self, program: Program, step: int, batches: Batches | None) -> None:
        self._moment.begin(step)
        self._feed.begin(batches, step)
        program.play()

    def _result(self) -> StepResult:
        losses = self._moment.losses
        return StepResult(
            loss_sum=torch.stack(losses).sum() if losses else torch.zeros((), device=self._chunks[0].device)
        )

    def _make_tasks(self, seat: Seat, seed: int, update: Update | None) -> Training:
        moment, reducer, switch = self._moment, self._reducer, self._recorder.switch
        if self._versions is None:
            return Training(seat=seat, moment=moment, seed=seed, reducer=reducer, switch=switch)
        assert update is not None, "an asynchronous schedule updates within the step"
        check_shares(reducer)
        return Asynchronous(
            seat=seat,
            moment=moment,
            seed=seed,
            reducer=reducer,
            switch=switch,
            versions=self._versions,
            update=update,
        )

    def _make_feed(self, seat: Seat) -> Feed:
        forwards = [action for action in seat.actions if action.kind is ActionKind.FORWARD]
        return Feed(
            replica=self._replica,
            device=self._chunks[0].device,
            inputs_of=(action.micro_batch for action in forwards if seat.held(action).stage == 0),
            targets_of=(a.micro_batch for a in forwards if seat.held(a).stage == seat.schedule.num_stages - 1),
        )


def _versions(chunks: Sequence[Stage]) -> Versions:
    return Versions({index: layer for chunk in chunks for index, layer in chunk.layers}.items())


_AT_THE_END = State(SpanKind.IDLE, cause=WaitCause.BARRIER)


def _unrecorded(_: State) -> None:
    """Record nothing."""
