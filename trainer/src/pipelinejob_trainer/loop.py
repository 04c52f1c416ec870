"""Training, from a plan to the last step: build this rank's chunks, meet the gang, resume, step, evaluate, save."""

import math
import resource
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from pipelinejob.plan import Plan
from pipelinejob.schedules.causes import WaitCause
from pipelinejob.timeline import SpanKind
from pipelinejob_trainer import preflight, process, snapshot
from pipelinejob_trainer.account import Account, StepOutcome, tokens_per_step
from pipelinejob_trainer.checkpoint import Checkpoints
from pipelinejob_trainer.checkpoint_folder import CheckpointFolder
from pipelinejob_trainer.config import Config
from pipelinejob_trainer.data import Dataset, open_dataset, open_evaluation
from pipelinejob_trainer.errors import StoppedError, UserError
from pipelinejob_trainer.output import Output, say, warn
from pipelinejob_trainer.rank import put_together
from pipelinejob_trainer.recorder import Recorder
from pipelinejob_trainer.signals import StopWish
from pipelinejob_trainer.updates import Updates


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What a step's one all-reduce tells every rank."""

    loss: float
    gradient_norm: float
    is_stop_wished: bool


class Preparation:
    """What a rank can build by itself, before it meets the others; a user's errors show here."""

    def __init__(self, config: Config, plan: Plan) -> None:
        self.config = config
        self.plan = plan
        self.folder = CheckpointFolder(config.checkpoints)
        self.folder.prepare(who=config.pod)
        device = process.choose_device(plan)
        self.rank = put_together(plan, index=config.stage, replica=config.replica, device=device)
        self.output = Output(config, is_spokesman=self.rank.is_spokesman, num_steps=plan.training.steps)
        self.batches = _open_data(plan) if self.rank.sees_text else None
        self.evaluation_batches = _open_evaluation(plan, self.batches)


class Training:
    """A rank at work in its gang."""

    def __init__(
        self, prepared: Preparation, membership: process.Membership, account: Account, stop_wish: StopWish
    ) -> None:
        config, plan = prepared.config, prepared.plan
        self._plan = plan
        self._gang = membership.gang
        self._account = account
        self._stop_wish = stop_wish
        self._output = prepared.output
        self._rank = prepared.rank
        self._evaluation_batches = prepared.evaluation_batches
        self._updates = Updates(prepared.rank)
        self._recorder = Recorder(replica=config.replica, stage=config.stage, device=prepared.rank.device)
        self._links = membership.link(plan.schedule.micro_batch_sizes)
        self._runtime = prepared.rank.runtime(
            links=self._links,
            sum_over=membership.sum_over,
            recorder=self._recorder,
            batches=prepared.batches,
            update=self._updates.within_step,
        )
        self._checkpoints = Checkpoints(
            prepared.folder, membership.gang, attempt=config.attempt, keep=plan.checkpoint.keep, warn=warn
        )

    def run(self) -> None:
        """Train until the last step.

        Raises StoppedError after a checkpoint when any rank was asked to stop.
        """
        first = self._resume() + 1
        for step in range(first, self._plan.training.steps + 1):
            self._step(step)
        self._account.finish()
        self._output.write_timelines()

    def _resume(self) -> int:
        part, optimizer = self._rank.part, self._updates.optimizer
        resumed = self._checkpoints.resume(snapshot.wanted(part, optimizer))
        step = resumed.step if resumed else 0
        if resumed:
            snapshot.restore(part, optimizer, resumed.tensors)
            say(f"resumed from the checkpoint of step {step}")
        self._account.begin_training(
            step=step, loss=resumed.loss if resumed else None, checkpoint_step=step if resumed else None
        )
        self._step_began = time.perf_counter()
        return step

    def _step(self, step: int) -> None:
        self._updates.begin(step)
        result = self._runtime.run_step(step)
        totals = self._total(result.loss_sum)
        self._check_finite(step, totals)
        with self._recorder.span(SpanKind.OPTIMIZER):
            rate = self._updates.end(totals.gradient_norm)
        evaluation_loss = self._evaluate() if self._is_evaluation_due(step) else None
        if self._is_checkpoint_due(step) or totals.is_stop_wished:
            with self._recorder.span(SpanKind.CHECKPOINT):
                self._save(step, totals.loss)
        self._report(step, totals, rate, evaluation_loss)
        if totals.is_stop_wished and step < self._plan.training.steps:
            self._output.write_timelines()
            raise StoppedError(f"asked to stop; a checkpoint of step {step} was written, and a new run goes on from it")

    def _total(self, loss_sum: torch.Tensor) -> Totals:
        """Add up everything that all ranks must know, in one all-reduce."""
        with self._recorder.span(SpanKind.OPTIMIZER):
            values = torch.zeros(3, dtype=torch.float64, device=self._rank.device)
            values[0] = self._updates.squared_norm()
            values[1] = loss_sum
            values[2] = float(self._stop_wish.is_set())
        with self._recorder.span(SpanKind.IDLE, cause=WaitCause.BARRIER):
            squared_norm, loss, stop = self._gang.sum(values)
        return Totals(loss=loss, gradient_norm=math.sqrt(squared_norm), is_stop_wished=stop > 0)

    def _check_finite(self, step: int, totals: Totals) -> None:
        if math.isfinite(totals.loss) and math.isfinite(totals.gradient_norm):
            return
        training = self._plan.training
        raise UserError(
            "LossNotFinite",
            f"step {step}: loss {totals.loss:g}, gradient norm {totals.gradient_norm:g}: training has diverged; lower"
            f" spec.training.learningRate ({training.learning_rate:g}), raise warmupSteps ({training.warmup_steps}), or"
            f" set clipNorm; checkpoints up to step {step - 1} are sound",
        )

    def _is_evaluation_due(self, step: int) -> bool:
        evaluation = self._plan.evaluation
        return evaluation is not None and (step == self._plan.training.steps or step % evaluation.interval_steps == 0)

    def _evaluate(self) -> float:
        """Give the mean loss over the evaluation's batches, which are the same every time."""
        assert self._plan.evaluation is not None, "it is due"
        self._account.begin_evaluation()
        batches = self._plan.evaluation.batches
        with self._recorder.span(SpanKind.EVALUATION):
            sums = [self._runtime.evaluate(step, self._evaluation_batches).loss_sum for step in range(1, batches + 1)]
            (total,) = self._gang.sum(torch.stack(sums).double().sum(dim=0, keepdim=True))
        self._account.add_evaluation(total / batches)
        return total / batches

    def _is_checkpoint_due(self, step: int) -> bool:
        interval = self._plan.checkpoint.interval_steps
        return step == self._plan.training.steps or (interval > 0 and step % interval == 0)

    def _save(self, step: int, loss: float) -> None:
        self._account.begin_checkpoint()
        began = time.perf_counter()
        rank = self._rank
        self._checkpoints.save(
            snapshot.take(rank.part, self._updates.optimizer, step=step, loss=loss, is_mine=rank.owns)
        )
        self._account.add_checkpoint(step=step, seconds=time.perf_counter() - began)

    def _report(self, step: int, totals: Totals, rate: float, evaluation_loss: float | None) -> None:
        timeline = self._recorder.finish_step()
        ended = time.perf_counter()
        step_s, self._step_began = ended - self._step_began, ended
        outcome = StepOutcome(
            step=step,
            loss=totals.loss,
            evaluation_loss=evaluation_loss,
            gradient_norm=totals.gradient_norm,
            learning_rate=rate,
            step_s=step_s,
            tokens_per_s=tokens_per_step(self._plan) / step_s,
        )
        self._account.add_step(outcome)
        self._account.set_memory(
            peak_bytes=_peak_memory(self._rank.device),
            parameter_bytes=_bytes(self._updates.optimizer.parameters.values()),
            optimizer_bytes=_bytes(self._updates.optimizer.first_moments.values()) * 2,
        )
        self._account.set_bytes("send", self._links.bytes_sent)
        self._account.set_bytes("recv", self._links.bytes_received)
        self._output.add_step(outcome)
        if timeline is not None:
            self._account.add_timeline(timeline)
            self._output.add_timeline(timeline)


def run(prepared: Preparation, membership: process.Membership, account: Account, stop_wish: StopWish) -> None:
    """Train this rank's part of a plan.

    Raises StoppedError after a checkpoint, UserError, PeerLostError, CheckpointFailedError.
    """
    try:
        if prepared.plan.training.preflight:
            say(preflight.check(prepared.rank, membership))
        Training(prepared, membership, account, stop_wish).run()
    except torch.OutOfMemoryError as error:
        raise UserError(
            "OutOfMemory",
            f"stage {prepared.config.stage} ran out of GPU memory: {str(error).splitlines()[0]}; use more stages, a"
            " smaller spec.schedule.microBatchSize, spec.schedule.recompute, or a schedule that holds less",
        ) from error


def _open_data(plan: Plan) -> Dataset:
    return open_dataset(
        plan.data,
        schedule=plan.schedule,
        replicas=plan.parallelism.data,
        seed=plan.training.seed,
        vocabulary_size=plan.model.gpt.vocabulary_size if plan.model.gpt else None,
        evaluation=plan.evaluation,
    )


def _open_evaluation(plan: Plan, batches: Dataset | None) -> Dataset | None:
    if plan.evaluation is None or batches is None:
        return None
    return open_evaluation(plan.data, plan.evaluation, beside=batches)


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
