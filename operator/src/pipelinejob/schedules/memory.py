"""The memory that a list of actions needs: activations in flight, and weight versions.

The unit of activations is what one rank keeps of one micro-batch for all its chunks of that
micro-batch's route together, so that schedules with few and with many chunks compare; it is held
from the forward to the full backward, or to the weight gradient where the backward is split.
"""

from collections.abc import Sequence

from pipelinejob.schedules.actions import Action, ActionKind, Schedule

_ENDS = frozenset({ActionKind.BACKWARD, ActionKind.WEIGHT})


def peak_activations(schedule: Schedule) -> tuple[float, ...]:
    """Return the most that each rank holds at once, in shares of one micro-batch."""
    return tuple(
        peak_in_flight(actions) / len(schedule.stages_of[0][rank]) for rank, actions in enumerate(schedule.ranks)
    )


def peak_in_flight(actions: Sequence[Action]) -> int:
    """Count the micro-batches that a rank holds at once at most, each chunk of each one by itself."""
    held = peak = 0
    for action in actions:
        if action.kind is ActionKind.FORWARD:
            held += 1
            peak = max(peak, held)
        elif action.kind in _ENDS:
            held -= 1
    return peak


def live_versions(actions: Sequence[Action]) -> int:
    """Count the weight versions that a rank must hold at once, at most.

    The newest is always held, an older one until the last action that uses it; an update whose old
    version nobody will use again is made in place. Synchronous lists hold one.
    """
    last_use = {action.version: position for position, action in enumerate(actions) if action.version is not None}
    live, peak = {0}, 1
    for position, action in enumerate(actions):
        if action.kind is ActionKind.UPDATE:
            live = {version for version in live if last_use.get(version, -1) > position} | {action.micro_batch}
            peak = max(peak, len(live))
    return peak
