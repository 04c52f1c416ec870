"""A stage's own status: what its HTTP server shows. The loop writes it, the server reads it."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipelinejob.base.timeline import SpanKind, StageTimeline
from pipelinejob.contract.incarnation import Incarnation, Lost
from pipelinejob.contract.plan import Plan
from pipelinejob.contract.progress import Phase, Progress, Skipped, Spent, Waits
from pipelinejob_trainer.base.waiting import waits_for
from pipelinejob_trainer.process.metrics import LEFT, LOST, Metrics
from pipelinejob_trainer.process.spending import mean, spent_on

_WINDOW_STEPS = 20
# A stage is stuck when a step takes far longer than any did. Too early a restart loses work, so
# the bounds are wide.
_STUCK_S = 300.0
_STUCK_STEPS = 20.0
_STUCK_BEFORE_FIRST_STEP_S = 1800.0
_STUCK_SAVING_S = 1800.0
_STUCK_EVALUATING_S = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """What is known on every rank when a step ends.

    `gradient_norm` is before clipping; with an asynchronous schedule, that of each rank's last
    update. `evaluation_loss` is set where the step ended with an evaluation. A step that was
    skipped has the loss of the last one that was not, or 0.
    """

    step: int
    loss: float
    evaluation_loss: float | None = None
    gradient_norm: float
    learning_rate: float
    step_s: float
    tokens_per_s: float
    skipped: Skipped | None = None


class StageStatus:
    """This stage's progress, metrics and health."""

    def __init__(self, plan: Plan, *, stage: int, replica: int, attempt: int, tensor: int = 0) -> None:
        self.numbers = Metrics(plan, stage=stage, replica=replica, tensor=tensor)
        self._progress = Progress(replica=replica, stage=stage, attempt=attempt, phase=Phase.STARTING, step=0)
        self._tokens = tokens_per_step(plan)
        self._spent: deque[Spent] = deque(maxlen=_WINDOW_STEPS)
        self._seconds = dict.fromkeys(SpanKind, 0.0)
        self._bytes = {"send": 0, "recv": 0, "tensor": 0, "expert": 0}
        self._longest_step_s = 0.0
        self._deadline: float | None = None
        self._has_stacks = False  # in its log, since it last went on
        self._hang_timeout_s = plan.hang_timeout_seconds
        self._num_stages, self._num_tensor = plan.parallelism.pipeline, plan.parallelism.tensor
        self._patience_s = 0.0
        self._recovers_from = LOST
        self._moves_since: float | None = None
        self._further: tuple[Callable[[], bytes], ...] = ()
        self._beat()

    @property
    def step(self) -> int:
        """The optimiser steps completed, over all attempts."""
        return self._progress.step

    @property
    def incarnation(self) -> int:
        """The newest incarnation of the gang that this rank has heard of."""
        return self._progress.incarnation

    def begin_training(self, *, step: int, loss: float | None, checkpoint_step: int | None) -> None:
        """Note that all ranks have met and go on from a step; `checkpoint_step` is of the checkpoint, if from one."""
        self._update(phase=Phase.TRAINING, step=step, loss=loss)
        if checkpoint_step is not None:
            self._update(checkpoint_step=checkpoint_step)
        self.numbers.step.set(step)
        if loss is not None:
            self.numbers.loss.set(loss)
        self._expect_within(_STUCK_BEFORE_FIRST_STEP_S)

    def begin_serving(self, *, is_ready: bool, answered: int | None = None, requests: int | None = None) -> None:
        """Note whether this stage can answer, and of a batch how many have an answer.

        Nothing is a step, so that no deadline counts.
        """
        phase = Phase.SERVING if is_ready else Phase.STARTING
        if (self._progress.phase, self._progress.answered) != (phase, answered):
            self._update(phase=phase, answered=answered, requests=requests)
        self._deadline = None
        self._beat()

    def add_metrics(self, render: Callable[[], bytes]) -> None:
        """Show further metrics, in Prometheus' text form, beside the stage's own."""
        self._further = (*self._further, render)

    def add_step(self, outcome: StepOutcome) -> None:
        """Note that a step has ended."""
        numbers = self.numbers
        numbers.steps.inc()
        numbers.step.set(outcome.step)
        numbers.tokens.inc(self._tokens)
        numbers.loss.set(outcome.loss)
        numbers.gradient_norm.set(outcome.gradient_norm)
        numbers.step_duration.observe(outcome.step_s)
        if outcome.skipped is not None:
            numbers.skipped[outcome.skipped].inc()
        self._update(
            step=outcome.step,
            skipped_steps=self._progress.skipped_steps + (outcome.skipped is not None),
            not_finite_steps=self._progress.not_finite_steps + (outcome.skipped is Skipped.NOT_FINITE),
            loss=outcome.loss,
            gradient_norm=outcome.gradient_norm,
            tokens_per_s=outcome.tokens_per_s,
            step_s=outcome.step_s,
        )
        self._longest_step_s = max(self._longest_step_s, outcome.step_s)
        self._expect_step()

    def add_roll_back(self) -> None:
        """Note that a step was not finite, and the last checkpoint was returned to."""
        self.numbers.roll_backs.inc()
        self._update(roll_backs=self._progress.roll_backs + 1)

    def add_timeline(self, timeline: StageTimeline) -> None:
        """Count what a step's time was spent on."""
        self.numbers.add_timeline(timeline)
        for span in timeline.spans:
            self._seconds[span.kind] += span.end_s - span.start_s
        self._spent.append(spent_on(timeline))
        spent = mean(self._spent)
        of_schedule_s = spent.waiting_s + spent.compute_s
        self._update(
            bubble_ratio=spent.waiting_s / of_schedule_s if of_schedule_s else None,
            utilization_ratio=spent.compute_s / spent.step_s if spent.step_s else None,
            spent=spent,
            seconds={kind: seconds for kind, seconds in self._seconds.items() if seconds},
        )

    def begin_evaluation(self) -> None:
        """Note that the model is being evaluated, which may take long."""
        self._expect_within(_STUCK_EVALUATING_S)

    def add_evaluation(self, loss: float) -> None:
        """Note the loss of an evaluation."""
        self.numbers.evaluation_loss.set(loss)
        self._update(evaluation_loss=loss)
        self._expect_step()

    def begin_checkpoint(self) -> None:
        """Note that a checkpoint is being written, which may take long."""
        self._expect_within(_STUCK_SAVING_S)

    def add_checkpoint(self, *, step: int, seconds: float) -> None:
        """Note that a checkpoint is complete."""
        self.numbers.checkpoints.inc()
        self.numbers.checkpoint_duration.observe(seconds)
        self.numbers.checkpoint_step.set(step)
        self.numbers.checkpoint_time.set(time.time())
        self._update(checkpoint_step=step, checkpoint_failure=None)
        self._expect_step()

    def add_failed_checkpoint(self, why: str) -> None:
        """Note that a checkpoint could not be written, and that training goes on without it."""
        self.numbers.failed_checkpoints.inc()
        self._update(failed_checkpoints=self._progress.failed_checkpoints + 1, checkpoint_failure=why)
        self._expect_step()

    def set_memory(self, *, peak_bytes: int, parameter_bytes: int, optimizer_bytes: int) -> None:
        """Set what this stage's memory holds, in bytes."""
        self.numbers.memory["peak"].set(peak_bytes)
        self.numbers.memory["parameters"].set(parameter_bytes)
        self.numbers.memory["optimizer"].set(optimizer_bytes)
        self._update(memory_bytes=peak_bytes)

    def listen(self, port: int) -> None:
        """Note where the other ranks reach this one, as recovery in place is on."""
        self._update(control_port=port)

    def await_incarnation(self, lost: Sequence[Lost], *, within_s: float) -> None:
        """Note that this rank waits to be told who meets, after it lost these ranks."""
        self._moves_since = None  # it does not go on as it was to
        told = {"phase": Phase.STARTING, "awaits_incarnation": True, "lost": tuple(lost)}
        self._update(**told, stall_s=None, stands_still=False)
        self._expect_within(within_s)

    def add_lost(self, lost: Lost) -> None:
        """Note another rank that is lost."""
        self._update(lost=(*self._progress.lost, lost))

    def hear(self, incarnation: Incarnation) -> None:
        """Note that this rank was told who meets, now or at a step border to come."""
        if incarnation.at_border:
            self._update(moves_to=incarnation.number)
        else:
            self.begin_incarnation(incarnation.number)

    def begin_incarnation(self, number: int) -> None:
        """Note that this rank waits for nobody to tell it who meets any more."""
        lost = self._progress.lost
        self._recovers_from = LEFT if lost and all(each.handed_over is not None for each in lost) else LOST
        self._update(awaits_incarnation=False, incarnation=number, lost=(), moves_to=None)
        self._bytes = {"send": 0, "recv": 0}  # its links are new ones

    def begin_move(self) -> None:
        """Note that this rank stands still at a step border, as the job goes over to another plan."""
        self._moves_since = time.monotonic()
        self._update(stands_still=True)

    def follow(self, plan: Plan) -> None:
        """Go by this plan, and show what it predicts."""
        self._num_stages = plan.parallelism.pipeline
        self.numbers.follow(plan, self._progress.stage)

    def add_recovery(self) -> None:
        """Note that training goes on in place: after a loss, or by another plan."""
        if self._moves_since is not None:
            stall_s, self._moves_since = time.monotonic() - self._moves_since, None
            self.numbers.resizes.inc()
            self.numbers.resize_stall.set(stall_s)
            self._update(stall_s=stall_s, stands_still=False)
            return
        self.numbers.recoveries[self._recovers_from].inc()
        self._update(recoveries=self._progress.recoveries + 1)

    def set_bytes(self, direction: str, total: int) -> None:
        """Set how many bytes this process has sent to its neighbours, or received, or sent in its stage."""
        self.numbers.p2p[direction].inc(total - self._bytes[direction])
        self._bytes[direction] = total

    def finish(self) -> None:
        """Note that all steps are done."""
        self._update(phase=Phase.FINISHED)
        self._deadline = None

    # What the server shows.

    def metrics(self) -> bytes:
        return self.numbers.render() + b"".join(render() for render in self._further)

    def progress(self) -> bytes:
        stuck = self.unhealthy_reason() if self._has_stacks else None
        now = self._progress.model_copy(update={"waits": self._waits(), "stuck": stuck})
        return now.model_dump_json(by_alias=True, exclude_none=True).encode()

    def unhealthy_reason(self) -> str | None:
        if self._deadline is None or time.monotonic() < self._deadline:
            return None
        return f"no progress for {self._patience_s:.0f} s after step {self.step}"

    def add_stacks(self) -> None:
        """Note that this process's stacks are in its log: from now on it says that it is stuck."""
        self._has_stacks = True

    def describe_wait(self) -> str:
        """Say for whom this rank waits, as the end of a sentence."""
        waits = self._waits()
        if waits is None:
            return "waits for nobody"
        whom = "others" if waits.stage is None else f"stage {waits.stage} of replica {waits.replica}"
        return f"has waited for {whom} for {waits.seconds:.0f} s"

    def _waits(self) -> Waits | None:
        waiting = waits_for()
        if waiting is None or waiting.peer is None:
            return None if waiting is None else Waits(seconds=waiting.seconds)
        replica, stage = divmod(waiting.peer // self._num_tensor, self._num_stages)
        return Waits(replica=replica, stage=stage, seconds=waiting.seconds)

    def is_ready(self) -> bool:
        return self._progress.phase is not Phase.STARTING

    def _update(self, **changes: object) -> None:
        # One assignment: a reader in another thread sees the account before or after, never
        # between.
        self._progress = self._progress.model_copy(update=changes)

    def _expect_step(self) -> None:
        self._expect_within(self._hang_timeout_s or max(_STUCK_S, _STUCK_STEPS * self._longest_step_s))

    def _expect_within(self, seconds: float) -> None:
        self._patience_s = seconds
        self._has_stacks = False
        self._deadline = time.monotonic() + seconds
        self._beat()

    def _beat(self) -> None:
        self.numbers.heartbeat.set(time.time())


def tokens_per_step(plan: Plan) -> int:
    """Return the tokens of one optimiser step, over all replicas."""
    return samples_per_step(plan) * plan.data.sequence_length


def samples_per_step(plan: Plan) -> int:
    """Return the sequences of one optimiser step, over all replicas."""
    return plan.schedule.sequences * plan.parallelism.data
