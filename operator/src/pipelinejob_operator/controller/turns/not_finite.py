"""Tells of steps that `spec.training.onNotFinite` skipped or undid, by what the stages count of the present attempt."""

from pipelinejob.spec.status import PipelineJobStatus
from pipelinejob_operator.controller.turns.transitions import Turn

_WHAT = "whose loss or gradients were infinite or no numbers"


def tell_not_finite(turn: Turn, before: PipelineJobStatus) -> Turn:
    """Add events for what was skipped or undone since the measurements before."""
    now = turn.status
    skipped = _more(now.skipped_steps, before.skipped_steps)
    if skipped:
        turn = turn.told(
            "StepsSkipped",
            f"{_steps(skipped)}, {_WHAT}, changed nothing (spec.training.onNotFinite: Skip), by step {now.step};"
            f" {now.skipped_steps} in this attempt, and more than {_limit(turn)} in a row stop the training",
            warning=True,
        )
    undone = _more(now.roll_backs, before.roll_backs)
    if undone:
        turn = turn.told(
            "RolledBack",
            f"after {_steps(undone)} {_WHAT}, training went back to the last checkpoint (spec.training.onNotFinite:"
            f" RollBack), and on with later text, now at step {now.step}; {now.roll_backs} times in this attempt, and"
            f" more than {_limit(turn)} returns to one checkpoint stop the training",
            warning=True,
        )
    return turn


def _more(now: int | None, before: int | None) -> int:
    return max(0, (now or 0) - (before or 0))


def _steps(count: int) -> str:
    return f"{count} step{'s' * (count != 1)}"


def _limit(turn: Turn) -> int:
    assert turn.job.spec is not None, "only readable jobs train"
    return turn.job.spec.training.not_finite_limit
