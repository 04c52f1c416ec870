"""Training, from a plan to the last step: build, meet the gang, resume, step, evaluate, save."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch

from pipelinejob.base.timeline import SpanKind
from pipelinejob.contract.plan import Plan
from pipelinejob.contract.progress import Skipped
from pipelinejob.planning.dimensions import undividable, unrunnable
from pipelinejob.schedules.causes import WaitCause
from pipelinejob.spec.workload import Packing, packing_of
from pipelinejob_trainer.base.errors import LayerError, StoppedError, UserError
from pipelinejob_trainer.checkpoint import snapshot
from pipelinejob_trainer.checkpoint.background import BackgroundSave
from pipelinejob_trainer.checkpoint.checkpoints import Checkpoints, Resumed
from pipelinejob_trainer.checkpoint.folder import CheckpointFolder, PartOf
from pipelinejob_trainer.communication.gang import Gang
from pipelinejob_trainer.communication.tensor_group import TensorGroup
from pipelinejob_trainer.data.dataset import Dataset, open_dataset, open_evaluation
from pipelinejob_trainer.data.micro_batch import IGNORED
from pipelinejob_trainer.data.position import (
    Order,
    TextIdentity,
    TextPosition,
    agreed_text,
    samples_before,
)
from pipelinejob_trainer.models.first_layer import takes_positions
from pipelinejob_trainer.models.huggingface.folder import with_sizes
from pipelinejob_trainer.optimizers.groups import check_groups
from pipelinejob_trainer.process.config import Config
from pipelinejob_trainer.process.output import Output, say, warn
from pipelinejob_trainer.process.signals import StopRequest
from pipelinejob_trainer.process.stage_status import StageStatus, StepOutcome, samples_per_step, tokens_per_step
from pipelinejob_trainer.recovery.history import Border
from pipelinejob_trainer.recovery.keeping import Keeping
from pipelinejob_trainer.runtime.device_memory import peak_bytes
from pipelinejob_trainer.runtime.rank import Rank, build_rank
from pipelinejob_trainer.runtime.recorder import Recorder
from pipelinejob_trainer.runtime.runtime import StepResult
from pipelinejob_trainer.training import preflight, totals
from pipelinejob_trainer.training.adapters import BaseCheck, agreed_base, check_targets
from pipelinejob_trainer.training.membership import Membership, choose_device
from pipelinejob_trainer.training.not_finite import Decision, NotFinitePolicy, described
from pipelinejob_trainer.training.parameter_check import ParameterCheck
from pipelinejob_trainer.training.shape_check import check_shapes
from pipelinejob_trainer.training.totals import Totals
from pipelinejob_trainer.training.tracking import Trackers
from pipelinejob_trainer.training.untrained_state import UntrainedState
from pipelinejob_trainer.training.updates import Updates


class Preparation:
    """What a rank builds before it meets the others; a user's errors show here."""

    def __init__(self, config: Config, plan: Plan) -> None:
        self.config = config
        self.plan = plan
        self.folder = CheckpointFolder(config.checkpoints)
        self.folder.prepare(who=config.process)
        degrees = plan.parallelism
        group = TensorGroup(config.tensor, degrees.tensor, divides_tokens=degrees.sequence_parallel)
        device = choose_device(plan, group.rank)
        for error in undividable(plan.model, group.size):
            raise UserError("NotDivided", str(error))
        for error in unrunnable(plan.model, plan.training, plan.schedule.name, degrees, plan.data):
            raise UserError("NotRunnable", str(error))
        self.rank = build_rank(plan, index=config.stage, replica=config.replica, device=device, tensor_group=group)
        for remark in self.rank.part.remarks if config.stage == group.rank == 0 else ():
            say(remark)
        self.output = Output(config, is_spokesman=self.rank.is_spokesman, num_steps=plan.training.steps)
        self.trackers = Trackers(plan.training.tracking, config, is_spokesman=self.rank.is_spokesman)
        self.batches = _open_data(plan) if self.rank.needs_text else None
        _refuse_unseen_positions(plan, self.rank)
        self.evaluation_batches = _open_evaluation(plan, self.batches)
        self.text, self.evaluation_text = map(_identity, (self.batches, self.evaluation_batches))


class TrainingLoop:
    """One rank's training within its gang."""

    def __init__(
        self,
        prepared: Preparation,
        membership: Membership,
        status: StageStatus,
        stop_request: StopRequest,
        keeping: Keeping | None = None,
    ) -> None:
        """`keeping` is for recovery in place: the loop may then `rejoin` the gang and `run` again."""
        config, plan = prepared.config, prepared.plan
        self._plan = plan
        self._prepared = prepared
        self._keeping = keeping
        self._status = status
        self._stop_request = stop_request
        self._output = prepared.output
        self._trackers = prepared.trackers
        self._attempt = config.attempt
        self._rank = prepared.rank
        self._batches = prepared.batches
        self._evaluation_batches = prepared.evaluation_batches
        self._samples = 0
        self._last_loss = 0.0
        self._unpublished: BackgroundSave | None = None
        self._updates = Updates(prepared.rank, membership.sum_over)
        self._not_finite = NotFinitePolicy(plan.training)
        self._recorder = Recorder(
            replica=config.replica,
            stage=config.stage,
            device=prepared.rank.device,
            shares_processors=plan.shares_processors,
        )
        self._untrained = UntrainedState(prepared.rank, membership.sum_over)
        self._parameter_check = ParameterCheck(prepared.rank)
        self._base_check = BaseCheck(prepared.rank)
        self._join(membership)

    def _join(self, membership: Membership) -> None:
        self._gang = membership.gang
        check_shapes(self._rank, membership.gang)
        self._order = _agreed_order(self._prepared, membership.gang)
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
            warn=warn,
            base=agreed_base(self._rank, membership.gang),
        )

    def rejoin(self, membership: Membership) -> None:
        """Forget the step that was interrupted, and go on in another incarnation of the gang; `run` comes next."""
        self._rank = self._rank.with_new_stages()
        self._updates.optimizer.zero_gradients()
        self._recorder.restart()
        self._unpublished = None  # of a run that is fenced off now
        self._untrained.join(membership.sum_over)
        self._join(membership)

    def run(self) -> None:
        """Train until the last step.

        Raises StoppedError after a checkpoint when any rank was asked to stop.
        """
        done = self._resume()
        self._say_what_is_read(done + 1)
        while done < self._plan.training.steps:
            done = self._step(done + 1)
        self._status.finish()
        self._output.write_timelines()

    def _resume(self) -> int:
        """Go on from what all ranks have in memory, else from the newest checkpoint; return its step."""
        border = self._keeping.go_back(self._gang, self._say) if self._keeping else None
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
        self._publish()
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
            snapshot.parts(part, stretches=self._updates.stretches),
        )

    def _begin(self, resumed: Resumed | None) -> int:
        """Take over a checkpoint's state, if there is one; return the step after which it was taken."""
        step = resumed.step if resumed else 0
        if resumed:
            _say_anew(snapshot.restore(self._rank.part, self._updates.optimizer, resumed.tensors))
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
        _check_reached(step, total)
        skipped = self._skipped(step, total, decision)
        with self._recorder.span(SpanKind.OPTIMIZER):
            rate = self._updates.end(total) if skipped is None else self._updates.skip()
        self._spread_carried(has_new_changes=total.has_new_changes)
        evaluation_loss = self._evaluate() if self._is_evaluation_due(step) else None
        # The record comes before what a lost rank goes back to: a step that is not done again has been recorded.
        self._record(step, total, rate, evaluation_loss, skipped)
        if total.num_written == self._gang.size:
            with self._recorder.span(SpanKind.CHECKPOINT):
                self._publish()
        if self._is_checkpoint_due(step) or total.is_stop_requested:
            is_last = step == self._plan.training.steps or total.is_stop_requested
            with self._recorder.span(SpanKind.CHECKPOINT):
                self._save(step, self._last_loss, waits=is_last or not self._plan.checkpoint.asynchronous)
        if self._is_border_due(step):
            with self._recorder.span(SpanKind.CHECKPOINT):
                self._keep_border(step)
        self._measure()
        if total.is_stop_requested and step < self._plan.training.steps:
            self._output.write_timelines()
            raise StoppedError(f"asked to stop; a checkpoint of step {step} was written, and a new run goes on from it")
        return step

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
                has_written=self._unpublished is not None and self._unpublished.is_written(),
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

    def _save(self, step: int, loss: float, *, waits: bool) -> None:
        """Save the state, or begin to, beside training; what was begun before is published first."""
        self._publish()
        self._status.begin_checkpoint()
        began = time.perf_counter()
        rank = self._rank
        state = snapshot.take(
            rank.part,
            self._updates.optimizer,
            step=step,
            loss=loss,
            extra_buffers=self._untrained.extra_buffers(),
            is_mine=rank.owns,
            stretches=self._updates.stretches,
        )
        place = TextPosition(samples=self._samples, order=self._order)
        if not waits:
            self._unpublished = BackgroundSave(self._checkpoints, state, place)
            return
        self._checkpoints.save(state, place)
        self._saved(step, began)

    def _publish(self) -> None:
        """Publish the checkpoint that was written beside training, if there is one; every rank calls it."""
        if self._unpublished is None:
            return
        began, save = time.perf_counter(), self._unpublished
        save.publish()
        self._unpublished = None
        self._saved(save.step, began)

    def _saved(self, step: int, began: float) -> None:
        self._not_finite.saved()
        self._status.add_checkpoint(step=step, seconds=time.perf_counter() - began)

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
            parameter_bytes=_bytes(self._rank.part.named_parameters().values()),
            optimizer_bytes=self._updates.optimizer.state_bytes,
        )
        self._status.set_bytes("send", self._links.bytes_sent)
        self._status.set_bytes("recv", self._links.bytes_received)
        if self._rank.tensor_group.is_split:
            self._status.set_bytes("tensor", self._rank.tensor_group.bytes_exchanged)
        if timeline is not None:
            self._status.add_timeline(timeline)
            self._output.add_timeline(timeline)


def run(prepared: Preparation, membership: Membership, status: StageStatus, stop_request: StopRequest) -> None:
    """Train this rank's part of a plan.

    Raises StoppedError after a checkpoint, UserError, PeerLostError, CheckpointFailedError.
    """
    with telling_errors(prepared):
        check(prepared, membership)
        if prepared.plan.training.preflight:
            say(preflighted(prepared.rank, membership))
        TrainingLoop(prepared, membership, status, stop_request).run()


def check(prepared: Preparation, membership: Membership) -> None:
    """Check what only all ranks together can tell. Raises UserError."""
    check_targets(prepared.rank, membership.gang)
    check_groups(prepared.plan.training.groups, prepared.rank.part.named_parameters(), membership.gang)
    _refuse_untrainable(prepared.rank, membership.gang)


@contextmanager
def telling_errors(prepared: Preparation) -> Iterator[None]:
    """Turn a device's errors into the user's, who can mend them; close the trackers at the end."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            "OutOfMemory",
            f"stage {prepared.config.stage} ran out of GPU memory: {str(error).splitlines()[0]}; use more stages, a"
            " smaller spec.schedule.microBatchSize, spec.schedule.recompute, or a schedule that holds less",
        ) from error
    except torch.AcceleratorError as error:
        if "device-side assert" not in str(error):
            raise
        raise UserError(
            "DeviceAssert",
            f"stage {prepared.config.stage}: a kernel was given what it refuses, mostly an index beyond a table:"
            f" {str(error).splitlines()[0]}; to see the layer, use device: cpu, or set CUDA_LAUNCH_BLOCKING=1",
        ) from error
    finally:
        prepared.trackers.close()


def preflighted(rank: Rank, membership: Membership) -> str:
    """Check gradients of a shrunk model on the gang; return what is to be said of it."""
    try:
        return preflight.check(rank, membership)
    except LayerError as error:
        error.within("preflight")
        raise


def _say_anew(names: Sequence[str]) -> None:
    if names:
        say(f"{len(names)} parameters were not trained so far, and their optimiser state begins anew: {names[0]} ...")


def _refuse_untrainable(rank: Rank, gang: Gang) -> None:
    """Refuse a model without trainable parameters; a single stage may have none."""
    parameters = rank.part.named_parameters().values()
    counts = [sum(each.requires_grad for each in parameters), len(parameters)]
    trainable, total = gang.sum(torch.tensor(counts, dtype=torch.float64))
    if trainable == 0:
        why = f"all {total:.0f} have requires_grad false" if total else "there are none"
        raise UserError(
            "NothingToTrain",
            f"spec.model: no parameter of any stage can be trained: {why}; give at least one layer a parameter that"
            " requires its gradient and that no group of spec.training.groups freezes",
        )


def _check_reached(step: int, total: Totals) -> None:
    """Refuse a step in which no parameter got a gradient: nothing would be trained."""
    if step == 1 and total.gradient_norm == 0 and not total.counts_nothing:
        raise UserError(
            "NothingToTrain",
            "step 1: the gradient norm over all stages is 0: the loss depends on no parameter that can be trained; look"
            " for a layer that returns what has no gradient (detach, torch.no_grad, integers) or multiplies with 0",
        )


def _refuse_unseen_positions(plan: Plan, rank: Rank) -> None:
    """Refuse several documents in a sequence where nothing tells the model so."""
    if plan.data.tokens is None or packing_of(plan.model, plan.data) is not Packing.DOCUMENTS:
        return
    if any(layer.index == 0 and not takes_positions(layer.module) for layer in rank.part.layers):
        raise UserError(
            "PositionsNotTaken",
            "spec.data.packing: Documents keeps the documents of a sequence apart by their positions, but the first"
            " layer's forward has no parameter `positions`; give it one and use it, or use Concatenate or Padded",
        )


def _open_data(plan: Plan) -> Dataset:
    return open_dataset(
        plan.data,
        schedule=plan.schedule,
        replicas=plan.parallelism.data,
        seed=plan.training.seed,
        model=with_sizes(plan.model),  # its vocabulary bounds the tokens
        evaluation=plan.evaluation,
    )


def _open_evaluation(plan: Plan, batches: Dataset | None) -> Dataset | None:
    if plan.evaluation is None or batches is None:
        return None
    return open_evaluation(plan.data, plan.evaluation, training=batches)


def _identity(batches: Dataset | None) -> TextIdentity | None:
    return None if batches is None else batches.samples.identity()


def _agreed_order(prepared: Preparation, gang: Gang) -> Order:
    plan = prepared.plan
    if plan.evaluation is not None:
        agreed_text(gang, prepared.evaluation_text, field="spec.evaluation")
    text = agreed_text(gang, prepared.text, field="spec.data")
    return Order(text=text, sequence_length=plan.data.sequence_length, seed=plan.training.seed)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
