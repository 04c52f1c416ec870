"""Tells of checkpoints that could not be written, by what the stages count of the present attempt."""

from collections.abc import Iterable

from pipelinejob.contract.progress import Progress
from pipelinejob.spec.status import PipelineJobStatus
from pipelinejob_operator.controller.turns.transitions import Turn


def tell_of_failed_checkpoints(turn: Turn, before: PipelineJobStatus, reports: Iterable[Progress]) -> Turn:
    """Add an event where more have failed than were known to."""
    now = turn.status
    if (now.failed_checkpoints or 0) <= (before.failed_checkpoints or 0):
        return turn
    why = next((report.checkpoint_failure for report in reports if report.checkpoint_failure), "its stages say why")
    last = (
        "there is none yet" if now.last_checkpoint_step is None else f"the last is of step {now.last_checkpoint_step}"
    )
    message = (
        f"A checkpoint could not be written, {now.failed_checkpoints} in this attempt: {why}. Training goes on; {last},"
        " and the next is tried at its step (spec.checkpoint.intervalSteps)"
    )
    return turn.told("CheckpointFailed", message, warning=True)
