"""What a watcher sees of a run: made from plan, status and the stages' own progress. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelinejob.contract.plan import LayerRange, Plan
from pipelinejob.contract.progress import Progress
from pipelinejob.spec.reported.conditions import State
from pipelinejob.spec.status import PipelineJobStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class StageView:
    """One rank."""

    replica: int
    stage: int
    layers: str
    phase: str
    utilization_ratio: float | None
    bubble_ratio: float | None
    predicted_bubble_ratio: float
    memory_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """The whole run."""

    state: State
    message: str
    step: int
    steps: int
    loss: float | None
    tokens_per_s: float | None
    eta_s: float | None
    bubble_ratio: float | None
    restarts: int
    stages: tuple[StageView, ...]


def layers(chunks: Sequence[LayerRange]) -> str:
    """Write which layers a stage holds: `3-5`, `3` for one, `0-2, 9-11` for two stretches."""
    return ", ".join(str(first) if end == first + 1 else f"{first}-{end - 1}" for first, end in chunks)


class Pace:
    """Remembers when the first step was seen, so that all steps tell the time left."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def seconds_per_step(self, step: int, now: float) -> float | None:
        """Return the mean since the first step seen; None until a second one. Any steady clock."""
        if self._first is None and step > 0:
            self._first = (step, now)
        if self._first is None or step <= self._first[0]:
            return None
        return (now - self._first[1]) / (step - self._first[0])


def view(plan: Plan, status: PipelineJobStatus, accounts: Sequence[Progress], *, pace: Pace, now: float) -> RunView:
    """Collect what is known now; a stage that does not answer is shown as starting."""
    by_rank = {(account.replica, account.stage): account for account in accounts}
    # A stage is one step ahead of another at times: the run is as far as the one furthest behind.
    step = min((account.step for account in accounts), default=status.step or 0)
    loss = next((account.loss for account in accounts if account.loss is not None), None)
    tokens_per_s = next((account.tokens_per_s for account in accounts if account.tokens_per_s is not None), None)
    step_s = pace.seconds_per_step(step, now)
    bubbles = [account.bubble_ratio for account in accounts if account.bubble_ratio is not None]
    return RunView(
        state=status.state or State.PENDING,
        message=_message(status),
        step=step,
        steps=plan.training.steps,
        loss=loss,
        tokens_per_s=tokens_per_s,
        eta_s=None if step_s is None else (plan.training.steps - step) * step_s,
        bubble_ratio=sum(bubbles) / len(bubbles) if bubbles else None,
        restarts=status.restarts,
        stages=tuple(
            _stage(plan, replica, stage, by_rank.get((replica, stage)))
            for replica in range(plan.parallelism.data)
            for stage in range(len(plan.stages))
        ),
    )


def _stage(plan: Plan, replica: int, stage: int, account: Progress | None) -> StageView:
    planned = plan.stages[stage]
    return StageView(
        replica=replica,
        stage=stage,
        layers=layers(planned.chunks),
        phase=account.phase.value if account else "Starting",
        utilization_ratio=account.utilization_ratio if account else None,
        bubble_ratio=account.bubble_ratio if account else None,
        predicted_bubble_ratio=planned.bubble_ratio,
        memory_bytes=account.memory_bytes if account else None,
    )


def _message(status: PipelineJobStatus) -> str:
    """Return the sentence that says why the run is not moving; empty while it moves."""
    for name in ("Stalled", "Admitted", "Ready"):
        for condition in status.conditions:
            wanted = "True" if name == "Stalled" else "False"
            if condition.type == name and condition.status == wanted and condition.message:
                return condition.message
    return ""
