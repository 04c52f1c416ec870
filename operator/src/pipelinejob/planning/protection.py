"""What recovery in place costs while nothing fails, and the interval between copies that keeps it small.

At a border each rank copies its state in memory and, where no replica has the same, sends it to
its buddy beside the next step. Both take processor time of the rank; where ranks share processors,
of all. A transfer that is not over when the next copy is due is waited for.
"""

import math
from dataclasses import dataclass

from pipelinejob.contract.plan import Plan, StagePlan

MOST_COST = 0.02  # of a step
# Measured on one core of an EPYC with AVX2, load 7, 0.3 to 340 MB in 96 to 192 tensors: copies 0.6
# ms + 8.7 GB/s, both ends of a transfer over a socket 1.4 ms + 4.1 GB/s.
_COPIED_BYTES_PER_S = 8.5e9
_SENT_BYTES_PER_S = 8.2e9  # at either end
_COPYING_S_PER_LAYER = 0.3e-3
_SENDING_S_PER_LAYER = 0.4e-3  # at either end


@dataclass(frozen=True, slots=True, kw_only=True)
class Protection:
    """Copies every so many steps: what they cost, and what a lost stage costs at most."""

    interval_steps: int
    cost: float  # share of a step, predicted
    lost_s: float  # of steps that are done again at most, predicted

    @property
    def text(self) -> str:
        """What it is, for people."""
        every, what = _steps(self.interval_steps), "is" if self.interval_steps == 1 else "are"
        often = "step" if self.interval_steps == 1 else every
        return (
            f"a copy of each stage's state every {often} costs {self.cost:.1%} of the time; where a stage is lost, at"
            f" most {every}, {self.lost_s:.3g} s, {what} done again (predicted)"
        )


def protection(plan: Plan) -> Protection | None:
    """Return what protects a plan with recovery in place; None where it is off or nothing is known of costs."""
    if plan.recovery is None or plan.serving is not None or not plan.prediction.is_absolute:
        return None
    interval = plan.recovery.interval_steps or chosen_interval(plan)
    step_s, border_s, sending_s = plan.prediction.step_s, _border_s(plan), _sending_s(plan)
    waiting_s = max(0.0, border_s + sending_s - interval * step_s) if sending_s else 0.0
    return Protection(
        interval_steps=interval, cost=(border_s + waiting_s) / (interval * step_s), lost_s=interval * step_s
    )


def chosen_interval(plan: Plan) -> int:
    """Return the fewest steps between copies that cost at most 2 % of the time; 1 where nothing is known of costs."""
    step_s, border_s = plan.prediction.step_s, _border_s(plan)
    if not plan.prediction.is_absolute or plan.parallelism.pipeline * plan.parallelism.data == 1:
        return 1
    cheap = border_s / (MOST_COST * step_s)
    unwaited = (border_s + _sending_s(plan)) / step_s
    return max(1, math.ceil(cheap), math.ceil(unwaited))


def _border_s(plan: Plan) -> float:
    """Return the seconds of a step that one border takes from it."""
    each_s = [_processor_s(plan, stage) for stage in plan.stages]
    at_once = plan.prediction.concurrency if plan.shares_processors else None
    return max(each_s) if at_once is None else max(*each_s, plan.parallelism.data * sum(each_s) / at_once)


def _processor_s(plan: Plan, stage: StagePlan) -> float:
    size = state_bytes(stage)
    copying_s = size / _COPIED_BYTES_PER_S + _COPYING_S_PER_LAYER * stage.num_layers
    if not _has_buddies(plan):
        return copying_s
    return copying_s + 2 * (size / _SENT_BYTES_PER_S + _SENDING_S_PER_LAYER * stage.num_layers)


def _sending_s(plan: Plan) -> float:
    """Return how long the largest state travels over the slowest link; 0 where none does."""
    if not _has_buddies(plan) or not plan.links:
        return 0.0
    slowest = min(link.bytes_per_s for link in plan.links)
    return max(map(state_bytes, plan.stages)) / slowest


def state_bytes(stage: StagePlan) -> int:
    """Return the bytes of a stage's parameters and of its optimiser's state."""
    moments = 2 * stage.parameter_bytes if stage.optimizer_bytes is None else stage.optimizer_bytes
    return stage.parameter_bytes + moments


def _has_buddies(plan: Plan) -> bool:
    return plan.parallelism.data == 1 and plan.parallelism.pipeline > 1


def _steps(count: int) -> str:
    return f"{count} step{'s' * (count != 1)}"
