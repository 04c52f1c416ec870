"""Training, from a plan to the last step: build, meet the gang, resume, step, evaluate, save."""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NoReturn

import torch

from pipelinejob.base.timeline import SpanKind
from pipelinejob.contract.progress import Skipped
from pipelinejob.schedules.causes import WaitCause
from pipelinejob_trainer.base.errors import GangMovesError, UserError
from pipelinejob_trainer.checkpoint import snapshot
from pipelinejob_trainer.checkpoint.checkpoints import Checkpoints, Resumed
from pipelinejob_trainer.checkpoint.copies import places_of
from pipelinejob_trainer.checkpoint.folder import PartOf
from pipelinejob_trainer.data.micro_batch import IGNORED
from pipelinejob_trainer.data.position import TextPosition, samples_before
from pipelinejob_trainer.optimizers.rates import changed_rate, learning_rate
from pipelinejob_trainer.process.output import say, warn
from pipelinejob_trainer.process.signals import StopRequest
from pipelinejob_trainer.process.stage_status import StageStatus, StepOutcome, samples_per_step, tokens_per_step
from pipelinejob_trainer.recovery.history import Border
from pipelinejob_trainer.recovery.keeping import Keeping
from pipelinejob_trainer.runtime.device_memory import peak_bytes
from pipelinejob_trainer.runtime.rank import Rank
from pipelinejob_trainer.runtime.runtime import StepResult
from pipelinejob_trainer.training import totals
from pipelinejob_trainer.training.checks.adapters import BaseCheck, agreed_base
from pipelinejob_trainer.training.checks.parameter_check import ParameterCheck
from pipelinejob_trainer.training.checks.shape_check import check_shapes
from pipelinejob_trainer.training.checks.untrained_state import UntrainedState
from pipelinejob_trainer.training.membership import Membership
from pipelinejob_trainer.training.not_finite import Decision, described
from pipelinejob_trainer.training.preparation import (
    Preparation,
    agreed_order,
    check,
    preflighted,
    say_compiled,
    telling_errors,
)
from pipelinejob_trainer.training.saving import Saving
from pipelinejob_trainer.training.stopping import Stopping
from pipelinejob_trainer.training.totals import Totals
from pipelinejob_trainer.training.updates import Updates


class TrainingLoop:
    """One rank's training within its gang."""

    def __init__(
        self,
        prepared: Preparation,
        membership: Membership,
        status: StageStatus,
        stop_request: StopRequest,
        keeping: Keeping | None = None,
        *,
        moves_to: Callable[[], int] = lambda: 0,
    ) -> None:
        """`keeping` is for recovery in place: the loop may then `rejoin` the gang and `run` again.

        `moves_to` says which incarnation is to begin at a step border; 0 if none is.
        """
        config = prepared.config
        self._prepared = prepared
        self._keeping = keeping
        self._moves_to = moves_to
        self._status = status
        self._stop_request = stop_request
        self._output = prepared.output
        self._trackers = prepared.trackers
        self._attempt = config.attempt
        self._samples = 0
        self._last_loss = 0.0
        self._updates = Updates(prepared.rank, membership.sum_over)
        self._not_finite = prepared.not_finite
        self._recorder = prepared.recorder()
        self._untrained = UntrainedState(prepared.rank, membership.sum_over)
        self._parameter_check = ParameterCheck(prepared.rank)
        self._base_check = BaseCheck(prepared.rank)
        self._join(membership, prepared.rank)

    def _join(self, membership: Membership, rank: Rank) -> None:
        self._plan, self._rank = self._prepared.plan, rank
        self._batches, self._evaluation_batches = self._prepared.batches, self._prepared.evaluation_batches
        self._gang = membership.gang
        check_shapes(self._rank, membership.gang)
        self._order = agreed_order(self._prepared, membership.gang)
        self._links = membership.link(self._plan.schedule.micro_batch_sizes)
        self._runtime = self._rank.runtime(
            links=self._links,
            sum_over=membership.sum_over,
            recorder=self._recorder,
            batches=self._prepared.batches,
            update=self._updates.within_step,
        )
        self._checkpoints = Checkpoints(
            self._prepared.folder,
            membership.gang,
            attempt=self._attempt,
            keep=self._plan.checkpoint.keep,
            keep_s=self._plan.checkpoint.keep_seconds,
            copies=places_of(self._plan),
            warn=warn,
            base=agreed_base(self._rank, membership.gang),
        )
        # What an earlier incarnation had begun to save is of a run that is fenced off now.
        self._saving = Saving(self._checkpoints, self._status, self._not_finite)
        self._stopping = Stopping(membership.gang, self._stop_request, self._keeping)

    def rejoin(self, membership: Membership) -> None:
        """Forget a step that was interrupted, and go on in another incarnation of the gang; `run` comes next."""
        rank = self._prepared.rank.with_new_stages()
        self._updates.optimizer.zero_gradients()
        if self._prepared.plan is self._plan:
            self._recorder.restart()
        else:  # of another number of ranks, that may share processors
            self._recorder = self._prepared.recorder()
        self._untrained.join(rank, membership.sum_over)
        self._join(membership, rank)

    def run(self) -> None:
        """Train until the last step.

        Raises StoppedError after a checkpoint when all ranks stop; where only some do, LeftError
        on them and PeersLeaveError on the others, that may `rejoin`, as all may after
        GangMovesError.
        """
        done = self._resume()
        self._say_what_is_read(done + 1)
        while done < self._plan.training.steps:
            done = self._step(done + 1)
        self._status.finish()
        self._output.write_timelines()

    def _resume(self) -> int:
        """Go on from what all ranks have in memory, else from the newest checkpoint; return its step."""
        border = self._keeping.go_back(self._gang, self._say, needs=self._needs) if self._keeping else None
        if border is not None:
            return self._return(border)
        resumed = self._checkpoints.resume(*self._restorable())
        if resumed:
            self._set_position(resumed)
        return self._begin(resumed)

    def _return(self, border: Border) -> int:
        self._checkpoints.take_over(border.step)
        self._samples = border.samples
        if self._batches is not None:
            self._batches = self._batches.resumed(step=border.step, samples=border.samples)
        self._untrained.check_restored({name.partition("/")[2] for name in border.tensors})
        step = self._begin(Resumed(step=border.step, loss=border.loss, place=None, tensors=border.tensors))
        self._status.add_recovery()
        return step

    def _roll_back(self, step: int, total: Totals) -> int:
        """Go back to the newest checkpoint, and on with the text after this step's; return its step."""
        self._saving.publish()
        resumed = self._checkpoints.resume(*self._restorable())
        what = described(step, total)
        if resumed is None:
            raise UserError(
                "LossNotFinite",
                f"{what}: spec.training.onNotFinite is RollBack, and there is no checkpoint yet to return to; save one"
                " sooner (spec.checkpoint.intervalSteps), or use Skip",
            )
        if self._batches is not None:
            self._batches = self._batches.resumed(step=resumed.step, samples=self._samples)
        self._updates.optimizer.zero_gradients()
        self._status.add_roll_back()
        self._say(
            f"{what}: back to the checkpoint of step {resumed.step}; the text goes on with sample {self._samples}, and"
            " what came since that checkpoint is left out"
        )
        self._recorder.finish_step()
        if self._keeping is not None:
            self._keeping.history.clear()  # its steps come anew, with other text
        return self._begin(resumed)

    def _restorable(self) -> tuple[dict[str, torch.Size], Callable[[str], bool], PartOf]:
        part = self._rank.part
        return (
            snapshot.wanted(part),
            snapshot.may_hold(part, self._updates.optimizer),
            snapshot.parts(part, sharded=self._updates.sharded),
        )

    def _needs(self, names: Collection[str]) -> frozenset[str] | None:
        """Return which of these tensors are of this rank's state; None where one of it is missing."""
        needed, may_hold, _ = self._restorable()
        if not needed.keys() <= {*names}:
            return None
        return frozenset(name for name in names if name in needed or may_hold(name))

    def _begin(self, resumed: Resumed | None) -> int:
        """Take over a checkpoint's state, if there is one; return the step after which it was taken."""
        step = resumed.step if resumed else 0
        if resumed:
            _say_anew(
                snapshot.restore(
                    self._rank.part, self._updates.optimizer, resumed.tensors, sharded=self._updates.sharded
                )
            )
            self._last_loss = resumed.loss or 0.0
        self._untrained.begin()
        self._parameter_check.begin()
        self._keep_border(step)
        self._first_step = step + 1
        self._status.begin_training(
            step=step,
            loss=resumed.loss if resumed else None,
            checkpoint_step=step if resumed and resumed.place else None,
        )
        self._trackers.begin(self._plan, attempt=self._attempt, step=step)
        self._step_began = time.perf_counter()
        return step

    def _set_position(self, resumed: Resumed) -> None:
        """Set the data to go on after the samples consumed so far."""
        self._samples, where = samples_before(
            resumed.place,
            self._order,
            checkpoint_step=resumed.step,
            on_change=self._plan.checkpoint.on_data_change,
        )
        if self._batches is not None:
            self._batches = self._batches.resumed(step=resumed.step, samples=self._samples)
        say(f"resumed from the checkpoint of step {resumed.step}, {where}")
        if (changed := changed_rate(self._plan.training, resumed.step, resumed.rate)) is not None:
            self._say(changed)

    def _say_what_is_read(self, first: int) -> None:
        """Say how often each source will have been read through when the last step is done."""
        if self._batches is not None and self._rank.is_spokesman:
            steps_to_come = self._plan.training.steps - first + 1
            for line in self._batches.describe(self._samples + steps_to_come * samples_per_step(self._plan)):
                say(line)

    def _step(self, step: int) -> int:
        """Train a step; return the one that is done then: an earlier one where it was rolled back."""
        self._updates.begin(step)
        result = self._runtime.run_step(step, self._batches)
        self._samples += samples_per_step(self._plan)
        changes = self._find_changes(step)
        if self._keeping is not None and self._is_border_due(step):
            with self._recorder.span(SpanKind.CHECKPOINT):
                self._keeping.await_last()
        total = self._total(result, changes)
        decision = self._not_finite.decide(step, total)
        if decision is Decision.ROLL_BACK:
            return self._roll_back(step, total)
        totals.check_reached(step, total)
        skipped = self._skipped(step, total, decision)
        with self._recorder.span(SpanKind.OPTIMIZER):
            rate = self._updates.end(total) if skipped is None else self._updates.skip()
        self._spread_carried(has_new_changes=total.has_new_changes)
        evaluation_loss = self._evaluate() if self._is_evaluation_due(step) else None
        # The record comes before what a lost rank goes back to: a step that is not done again has
        # been recorded.
        self._record(step, total, rate, evaluation_loss, skipped)
        if total.num_written == self._gang.size:
            with self._recorder.span(SpanKind.CHECKPOINT):
                self._saving.publish()
        leaving = self._stopping.who(is_requested=total.is_stop_requested and step < self._plan.training.steps)
        if self._is_checkpoint_due(step) or leaving.is_all:
            is_last = step == self._plan.training.steps or leaving.is_all
            with self._recorder.span(SpanKind.CHECKPOINT):
                self._save(step, is_last=is_last)
        moves_to = None if leaving.ranks or step == self._plan.training.steps else total.moves_to
        if self._is_border_due(step) or leaving.is_some or moves_to is not None:
            with self._recorder.span(SpanKind.CHECKPOINT):
                self._keep_border(step)
        self._measure()
        if leaving.ranks:
            self._output.write_timelines()
            self._stopping.stop(leaving, step)
        if moves_to is not None:
            self._move(step, moves_to)
        return step

    def _move(self, step: int, to: int) -> NoReturn:
        """Leave nothing behind that only this incarnation can end, and go over to another."""
        self._status.begin_move()
        self._saving.publish()
        self._output.write_timelines()
        raise GangMovesError(f"after step {step}, all go over to incarnation {to}", to)

    def _skipped(self, step: int, total: Totals, decision: Decision) -> Skipped | None:
        """Return why a step updates nothing, and say so."""
        if decision is Decision.SKIP:
            self._untrained.check_finite()
            self._say(f"{described(step, total)}: skipped")
            return Skipped.NOT_FINITE
        if total.counts_nothing:
            self._say(f"step {step}: skipped, as none of its targets counts: all are {IGNORED}")
            return Skipped.NOTHING_COUNTS
        self._last_loss = total.loss
        return None

    def _find_changes(self, step: int) -> int:
        """Check what the step's passes changed besides gradients.

        Returns how many changes other ranks do not know of.
        """
        is_thorough = step == self._first_step or self._is_checkpoint_due(step)
        if is_thorough:
            self._parameter_check.check()
            self._base_check.check()
        return self._untrained.find_changes(thoroughly=is_thorough)

    def _spread_carried(self, *, has_new_changes: bool) -> None:
        if has_new_changes:
            self._untrained.agree(self._gang)
        if self._untrained.is_spread:
            with self._recorder.span(SpanKind.SEND, cause=WaitCause.SEND):
                self._untrained.spread()

    def _total(self, result: StepResult, num_changes: int) -> Totals:
        """Add up what all ranks must know, in one all-reduce."""
        with self._recorder.span(SpanKind.OPTIMIZER):
            mine = totals.of_rank(
                result,
                self._updates.squared_norm(),
                is_stop_requested=self._stop_request.is_set(),
                num_changes=num_changes,
                has_written=self._saving.has_written,
                moves_to=self._moves_to(),
            )
        with self._recorder.span(SpanKind.IDLE, cause=WaitCause.BARRIER):
            return totals.over_all(self._gang, mine)

    def _say(self, line: str) -> None:
        """Say something that is the whole gang's, once."""
        if self._rank.is_spokesman:
            say(line)

    def _is_evaluation_due(self, step: int) -> bool:
        evaluation = self._plan.evaluation
        return evaluation is not None and (step == self._plan.training.steps or step % evaluation.interval_steps == 0)

    def _evaluate(self) -> float:
        """Return the mean loss over the evaluation's batches, which are the same every time."""
        assert self._plan.evaluation is not None, "it is due"
        self._status.begin_evaluation()
        batches = self._plan.evaluation.batches
        with self._recorder.span(SpanKind.EVALUATION):
            results = [self._runtime.evaluate(step, self._evaluation_batches) for step in range(1, batches + 1)]
            loss = totals.mean_loss(self._gang, results)
        self._status.add_evaluation(loss)
        return loss

    def _is_checkpoint_due(self, step: int) -> bool:
        interval = self._plan.checkpoint.interval_steps
        return step == self._plan.training.steps or (interval > 0 and step % interval == 0)

    def _is_border_due(self, step: int) -> bool:
        return self._keeping is not None and (self._keeping.is_due(step) or self._is_checkpoint_due(step))

    def _keep_border(self, step: int) -> None:
        """Keep this rank's state in memory, if recovery in place is on."""
        if self._keeping is None:
            return
        unkept = self._untrained.extra_buffers()
        state = snapshot.take(self._rank.part, self._updates.optimizer, step=step, extra_buffers=unkept)
        self._keeping.keep(step=step, loss=self._last_loss, samples=self._samples, tensors=state.tensors)

    def _save(self, step: int, *, is_last: bool) -> None:
        rank = self._rank
        state = snapshot.take(
            rank.part,
            self._updates.optimizer,
            step=step,
            loss=self._last_loss,
            rate=learning_rate(self._plan.training, step),
            extra_buffers=self._untrained.extra_buffers(),
            is_mine=rank.owns,
            sharded=self._updates.sharded,
        )
        waits = is_last or not self._plan.checkpoint.asynchronous
        self._saving.save(state, TextPosition(samples=self._samples, order=self._order), waits=waits, is_last=is_last)

    def _record(
        self, step: int, total: Totals, rate: float, evaluation_loss: float | None, skipped: Skipped | None
    ) -> None:
        """Tell of a step; its time is that since the record before it."""
        ended = time.perf_counter()
        step_s, self._step_began = ended - self._step_began, ended
        outcome = StepOutcome(
            step=step,
            loss=self._last_loss,
            evaluation_loss=evaluation_loss,
            skipped=skipped,
            gradient_norm=total.gradient_norm if total.is_finite else 0.0,
            learning_rate=rate,
            step_s=step_s,
            tokens_per_s=tokens_per_step(self._plan) / step_s,
        )
        self._status.add_step(outcome)
        self._output.add_step(outcome)
        self._trackers.add_step(outcome)

    def _measure(self) -> None:
        """Tell what the step's time, memory and links were used for, saving included."""
        timeline = self._recorder.finish_step()
        self._status.set_memory(
            peak_bytes=peak_bytes(self._rank.device),
            parameter_bytes=_bytes({**self._rank.part.named_parameters(), **self._updates.sharded.parameters}.values()),
            optimizer_bytes=self._updates.optimizer.state_bytes,
        )
        self._status.set_bytes("send", self._links.bytes_sent)
        self._status.set_bytes("recv", self._links.bytes_received)
        for name, group in (("tensor", self._rank.tensor_group), ("expert", self._rank.part.expert_group)):
            if group.is_split:
                self._status.set_bytes(name, group.bytes_exchanged)
        if timeline is not None:
            self._status.add_timeline(timeline)
            self._output.add_timeline(timeline)


def run(prepared: Preparation, membership: Membership, status: StageStatus, stop_request: StopRequest) -> None:
    """Train this rank's part of a plan.

    Raises StoppedError after a checkpoint, UserError, PeerLostError, CheckpointFailedError.
    Without recovery in place, all ranks stop where one is asked to.
    """
    with telling_errors(prepared):
        check(prepared, membership)
        if prepared.plan.training.preflight:
            say(preflighted(prepared.rank, membership))
        say_compiled(prepared, membership)
        TrainingLoop(prepared, membership, status, stop_request).run()


def _say_anew(names: Sequence[str]) -> None:
    if names:
        say(f"{len(names)} parameters were not trained so far, and their optimiser state begins anew: {names[0]} ...")


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
