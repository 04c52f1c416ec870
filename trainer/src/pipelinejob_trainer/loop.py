"""Training, from a plan to the last step: build this rank's layers, meet the gang, resume, step, save."""

import math
import resource
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from pipelinejob.plan import Plan
from pipelinejob.schedule import stage_actions
from pipelinejob.timeline import SpanKind
from pipelinejob_trainer import process, snapshot
from pipelinejob_trainer.account import Account, StepOutcome, tokens_per_step
from pipelinejob_trainer.checkpoint import Checkpoints
from pipelinejob_trainer.checkpoint_folder import CheckpointFolder
from pipelinejob_trainer.config import Config
from pipelinejob_trainer.data import Dataset, open_dataset
from pipelinejob_trainer.errors import StoppedError, UserError
from pipelinejob_trainer.gang import Gang
from pipelinejob_trainer.models import build_layers
from pipelinejob_trainer.optimizer import AdamW, clip_factor, learning_rate
from pipelinejob_trainer.output import Output, say, warn
from pipelinejob_trainer.recorder import Recorder
from pipelinejob_trainer.runtime import Runtime
from pipelinejob_trainer.signals import StopWish
from pipelinejob_trainer.stage import Stage


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
        self.device = process.choose_device(plan)
        self.folder = CheckpointFolder(config.checkpoints)
        self.folder.prepare(who=config.pod)
        planned = plan.stages[config.stage]
        self.is_last = config.stage == plan.parallelism.pipeline - 1
        self.output = Output(config, is_spokesman=self.is_last and config.replica == 0, num_steps=plan.training.steps)
        # Stages between the first and the last see no text, and need not be able to.
        self.batches = _open_data(plan) if self.is_last or config.stage == 0 else None
        layers = build_layers(
            plan.model, plan.data, first=planned.first_layer, end=planned.end_layer, seed=plan.training.seed
        )
        self.stage = Stage(
            layers,
            is_first=config.stage == 0,
            is_last=self.is_last,
            loss_weight=1 / (plan.schedule.micro_batches * plan.parallelism.data),
            precision=plan.training.precision,
            device=self.device,
        )
        self.stage.module.float()  # masters are fp32, whatever a user's layers were made in
        self.optimizer = AdamW(self.stage.named_parameters(), weight_decay=plan.training.weight_decay)


class Training:
    """A rank at work in its gang."""

    def __init__(
        self, prepared: Preparation, membership: process.Membership, account: Account, stop_wish: StopWish
    ) -> None:
        config, plan = prepared.config, prepared.plan
        self._plan = plan
        self._gang: Gang = membership.gang
        self._links = membership.links
        self._account = account
        self._stop_wish = stop_wish
        self._output = prepared.output
        self._stage = prepared.stage
        self._optimizer = prepared.optimizer
        self._recorder = Recorder(replica=config.replica, stage=config.stage, device=prepared.device)
        self._runtime = Runtime(
            actions=stage_actions(
                plan.schedule.name, config.stage, plan.parallelism.pipeline, plan.schedule.micro_batches
            ),
            stage=prepared.stage,
            links=membership.links,
            recorder=self._recorder,
            batches=prepared.batches,
            seed=plan.training.seed,
            replica=config.replica,
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
        wanted = snapshot.wanted(self._stage.module, self._optimizer)
        resumed = self._checkpoints.resume(wanted)
        step = resumed.step if resumed else 0
        if resumed:
            snapshot.restore(self._stage.module, self._optimizer, resumed.tensors)
            say(f"resumed from the checkpoint of step {step}")
        self._account.begin_training(
            step=step, loss=resumed.loss if resumed else None, checkpoint_step=step if resumed else None
        )
        self._step_began = time.perf_counter()
        return step

    def _step(self, step: int) -> None:
        result = self._runtime.run_step(step)
        totals = self._total(result.loss_sum)
        self._check_finite(step, totals)
        rate = learning_rate(self._plan.training, step)
        with self._recorder.span(SpanKind.OPTIMIZER):
            factor = clip_factor(totals.gradient_norm, self._plan.training.clip_norm)
            self._optimizer.step(step, rate=rate, gradient_factor=factor)
            self._optimizer.zero_gradients()
        if self._is_checkpoint_due(step) or totals.is_stop_wished:
            with self._recorder.span(SpanKind.CHECKPOINT):
                self._save(step, totals.loss)
        self._report(step, totals, rate)
        if totals.is_stop_wished and step < self._plan.training.steps:
            self._output.write_timelines()
            raise StoppedError(f"asked to stop; a checkpoint of step {step} was written, and a new run goes on from it")

    def _total(self, loss_sum: torch.Tensor) -> Totals:
        """Add up gradients over replicas, then everything that all ranks must know, in one all-reduce."""
        with self._recorder.span(SpanKind.IDLE, cause="replicas"):
            self._gang.sum_gradients(each for each in self._stage.module.parameters() if each.requires_grad)
        with self._recorder.span(SpanKind.OPTIMIZER):
            values = torch.zeros(3, dtype=torch.float64, device=self._stage.device)
            if self._gang.replica == 0:  # the other replicas hold the same gradients
                values[0] = self._optimizer.squared_norm()
            values[1] = loss_sum
            values[2] = float(self._stop_wish.is_set())
        with self._recorder.span(SpanKind.IDLE, cause="drain"):
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

    def _is_checkpoint_due(self, step: int) -> bool:
        interval = self._plan.checkpoint.interval_steps
        return step == self._plan.training.steps or (interval > 0 and step % interval == 0)

    def _save(self, step: int, loss: float) -> None:
        self._account.begin_checkpoint()
        began = time.perf_counter()
        self._checkpoints.save(snapshot.take(self._stage.module, self._optimizer, step=step, loss=loss))
        self._account.add_checkpoint(step=step, seconds=time.perf_counter() - began)

    def _count_bytes(self) -> None:
        for direction, ends in (
            ("send", (self._links.activations_out, self._links.gradients_out)),
            ("recv", (self._links.activations_in, self._links.gradients_in)),
        ):
            total = sum(end.bytes_total for end in ends if end is not None)
            self._account.set_bytes(direction, total)

    def _report(self, step: int, totals: Totals, rate: float) -> None:
        timeline = self._recorder.finish_step()
        ended = time.perf_counter()
        step_s, self._step_began = ended - self._step_began, ended
        outcome = StepOutcome(
            step=step,
            loss=totals.loss,
            gradient_norm=totals.gradient_norm,
            learning_rate=rate,
            step_s=step_s,
            tokens_per_s=tokens_per_step(self._plan) / step_s,
        )
        self._account.add_step(outcome)
        self._account.set_memory(
            peak_bytes=_peak_memory(self._stage.device),
            parameter_bytes=_bytes(self._optimizer.parameters.values()),
            optimizer_bytes=_bytes(self._optimizer.first_moments.values()) * 2,
        )
        self._count_bytes()
        self._output.add_step(outcome)
        if timeline is not None:
            self._account.add_timeline(timeline)
            self._output.add_timeline(timeline)


def run(prepared: Preparation, membership: process.Membership, account: Account, stop_wish: StopWish) -> None:
    """Train this rank's part of a plan.

    Raises StoppedError after a checkpoint, UserError, PeerLostError, CheckpointFailedError.
    """
    try:
        Training(prepared, membership, account, stop_wish).run()
    except torch.OutOfMemoryError as error:
        raise UserError(
            "OutOfMemory",
            f"stage {prepared.config.stage} ran out of GPU memory: {str(error).splitlines()[0]}; use more stages, a"
            " smaller spec.schedule.microBatchSize or schedule 1F1B",
        ) from error


def _open_data(plan: Plan) -> Dataset:
    return open_dataset(
        plan.data,
        schedule=plan.schedule,
        replicas=plan.parallelism.data,
        seed=plan.training.seed,
        vocabulary_size=plan.model.gpt.vocabulary_size if plan.model.gpt else None,
    )


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
