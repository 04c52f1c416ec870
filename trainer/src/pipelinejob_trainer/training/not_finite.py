"""What a step does whose loss or gradients are infinite or no numbers: `spec.training.onNotFinite`.

Every rank has the same totals, so all decide alike without another word.
"""

from enum import Enum, auto

from pipelinejob.spec.job import Training
from pipelinejob.spec.training import OnNotFinite
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.training.totals import Totals


class Decision(Enum):
    """What is done after a step's passes."""

    UPDATE = auto()
    SKIP = auto()
    ROLL_BACK = auto()


class NotFinitePolicy:
    """Decides after each step, and counts what was skipped or undone in a row."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self._in_a_row = 0

    def decide(self, step: int, total: Totals) -> Decision:
        """Return what is done after a step. Raises UserError where training stops."""
        if total.is_finite:
            if self._training.on_not_finite is OnNotFinite.SKIP:
                self._in_a_row = 0
            return Decision.UPDATE
        self._in_a_row += 1
        if self._training.on_not_finite is OnNotFinite.STOP or self._in_a_row > self._training.not_finite_limit:
            raise UserError("LossNotFinite", f"{described(step, total)}: training has diverged{self._way_out(step)}")
        return Decision.SKIP if self._training.on_not_finite is OnNotFinite.SKIP else Decision.ROLL_BACK

    def saved(self) -> None:
        """Note that there is a new checkpoint: the next one to return to."""
        if self._training.on_not_finite is OnNotFinite.ROLL_BACK:
            self._in_a_row = 0

    def _way_out(self, step: int) -> str:
        training = self._training
        advice = (
            f"; lower spec.training.learningRate ({training.learning_rate:g}), raise warmupSteps"
            f" ({training.warmup_steps}), or set clipNorm"
        )
        match training.on_not_finite:
            case OnNotFinite.STOP:
                return f"{advice}; checkpoints up to step {step - 1} are sound"
            case OnNotFinite.SKIP:
                return f": {training.not_finite_limit} steps before it were skipped already{advice}"
            case OnNotFinite.ROLL_BACK:
                return f": it was returned {training.not_finite_limit} times to one checkpoint already{advice}"


def described(step: int, total: Totals) -> str:
    """Return what is wrong with a step, for a sentence."""
    return f"step {step}: loss {total.loss:g}, gradient norm {total.gradient_norm:g}"
