"""What all ranks learn of a step from its one all-reduce."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.communication.gang import Gang
from pipelinejob_trainer.data.micro_batch import IGNORED
from pipelinejob_trainer.runtime.runtime import StepResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """A step's loss and gradient norm, both of the mean over the targets that count.

    `targets_per_counted` turns gradients, which are of the mean over all targets, into those of
    that mean: exactly 1 where all count. Where none counts it is 0, and so are loss and norm.
    """

    loss: float
    gradient_norm: float
    targets_per_counted: float
    is_stop_requested: bool
    has_new_changes: bool  # of what passes change besides gradients
    moves_to: int | None = None  # the incarnation that begins now, as all ranks have heard of it
    num_written: int = 0  # ranks whose part of a checkpoint that is written beside training is there

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradients are numbers."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)

    @property
    def counts_nothing(self) -> bool:
        """Whether no target of the whole batch counts."""
        return self.targets_per_counted == 0


def of_rank(
    result: StepResult,
    squared_norm: torch.Tensor,
    *,
    is_stop_requested: bool,
    num_changes: int,
    has_written: bool = False,
    moves_to: int = 0,
) -> torch.Tensor:
    """Return what a rank adds to a step's all-reduce, float64 on its device.

    `moves_to` is the incarnation that it is to go over to at a step border; 0 for none.
    """
    values = torch.zeros(9, dtype=torch.float64, device=result.loss_sum.device)
    values[0] = squared_norm
    values[1] = result.loss_sum
    values[2] = float(is_stop_requested)
    values[3] = num_changes
    values[4] = result.counted
    values[5] = result.num_targets
    values[6] = float(has_written)
    values[7], values[8] = moves_to, moves_to**2
    return values


def over_all(gang: Gang, values: torch.Tensor) -> Totals:
    """Add up over all ranks what `of_rank` gave on each."""
    squared_norm, loss, stop, changes, counted, num_targets, num_written, moves, squared_moves = gang.sum(values)
    factor = num_targets / counted if counted else 0.0
    return Totals(
        loss=loss * factor,
        gradient_norm=math.sqrt(squared_norm) * factor,
        targets_per_counted=factor,
        is_stop_requested=stop > 0,
        has_new_changes=changes > 0,
        moves_to=common_number(moves, squared_moves, count=gang.size),
        num_written=round(num_written),
    )


def common_number(total: float, total_of_squares: float, *, count: int) -> int | None:
    """Return the number that so many ranks have in common, given sums over all of them; None if there is none but 0.

    Only equal numbers have no variance, so every rank concludes the same from the same two sums.
    """
    return round(total / count) if total and count * total_of_squares == total**2 else None


def check_reached(step: int, total: Totals) -> None:
    """Refuse a first step in which no parameter got a gradient: nothing would be trained. Raises UserError."""
    if step == 1 and total.gradient_norm == 0 and not total.counts_nothing:
        raise UserError(
            "NothingToTrain",
            "step 1: the gradient norm over all stages is 0: the loss depends on no parameter that can be trained; look"
            " for a layer that returns what has no gradient (detach, torch.no_grad, integers) or multiplies with 0",
        )


def mean_loss(gang: Gang, results: Sequence[StepResult]) -> float:
    """Return the mean over the targets that count of several batches, on all ranks.

    Raises UserError if none counts.
    """
    sums = torch.stack([each.loss_sum for each in results]).double().sum(dim=0)
    counted = torch.stack([each.counted for each in results]).sum(dim=0)
    num_targets = torch.full_like(counted, sum(each.num_targets for each in results))
    total, all_counted, all_targets = gang.sum(torch.stack([sums, counted, num_targets]))
    if not all_counted:
        raise UserError(
            "NothingCounts",
            f"spec.evaluation: none of the {all_targets:.0f} targets of its {len(results)} batches counts: all are"
            f" {IGNORED}; give more batches, or data in which some count",
        )
    return total / len(results) * (all_targets / all_counted)
