"""What ranks send each other in a step.

It follows from the schedule, so every rank knows it beforehand. A message carries a micro-batch's
activation over a **border**, from the last layer of one stage to the first of the next, or its
gradient back. Messages from one rank to another are ordered as the sender makes them.
"""

from itertools import pairwise
from typing import NamedTuple

from pipelinejob.schedules.actions import Action, ActionKind, Place, Schedule


class Border(NamedTuple):
    """Where a route goes from one stage to the next; `stage` is the earlier one.

    Layers may return other things in a forward-only pass, as in an evaluation, than in training.
    """

    route: int
    stage: int
    is_forward_only: bool = False


class Message(NamedTuple):
    """One tensor, or nesting of tensors, to send; `tag` is unique between two ranks in a step."""

    border: Border
    is_gradient: bool
    micro_batch: int
    tag: int

    def __str__(self) -> str:
        what = "gradient" if self.is_gradient else "activation"
        return (
            f"the {what} of micro-batch {self.micro_batch} between stages {self.border.stage} and"
            f" {self.border.stage + 1}"
        )


class Exchange(NamedTuple):
    """A message of an action, and its other end, which may be a chunk of the same rank."""

    message: Message
    place: Place


# Whether an action works its way along the route, or back; a weight gradient and an update go
# nowhere.
_DIRECTION = {ActionKind.FORWARD: 1, ActionKind.BACKWARD: -1, ActionKind.INPUT: -1}

# Lower tags are for what is no message: a border's header.
_FIRST_TAG = 1 << 16


def header_tag(border: Border) -> int:
    """Return the tag of a border's header."""
    return border.is_forward_only << 15 | border.route << 12 | border.stage


def awaited(schedule: Schedule, rank: int, action: Action) -> Exchange | None:
    """Return the message that an action receives from another stage."""
    return _exchanged(schedule, rank, action, -_DIRECTION.get(action.kind, 0))


def produced(schedule: Schedule, rank: int, action: Action) -> Exchange | None:
    """Return the message that an action sends to another stage."""
    return _exchanged(schedule, rank, action, _DIRECTION.get(action.kind, 0))


def order(schedule: Schedule, source: int, target: int) -> tuple[Message, ...]:
    """Return all messages from one rank to another in a step, in order."""
    exchanges = (produced(schedule, source, action) for action in schedule.ranks[source])
    return tuple(each.message for each in exchanges if each is not None and each.place.rank == target)


def received_before(schedule: Schedule, source: int, target: int) -> tuple[int, ...]:
    """Count, for each message to `target`, those from `target` that arrived before it.

    `source` produced the message after it had received them, so a rank that has the message knows
    that they arrived. The count goes as far as `source` received them without a gap, in the order
    in which `target` sends.
    """
    sent_back = order(schedule, target, source)
    taken: set[Message] = set()
    count, counts = 0, []
    for action in schedule.ranks[source]:
        got, gave = awaited(schedule, source, action), produced(schedule, source, action)
        if got is not None:
            taken.add(got.message)
        while count < len(sent_back) and sent_back[count] in taken:
            count += 1
        if gave is not None and gave.place.rank == target:
            counts.append(count)
    return tuple(counts)


def neighbours(schedule: Schedule, rank: int) -> tuple[int, ...]:
    """Return the other ranks that a rank exchanges messages with."""
    hops = {hop for route in schedule.routes for hop in pairwise(route) if rank in hop}
    return tuple(sorted({end for hop in hops for end in hop} - {rank}))


def _exchanged(schedule: Schedule, rank: int, action: Action, direction: int) -> Exchange | None:
    if direction == 0:
        return None
    stage = schedule.stage_of(rank, action)
    other = stage + direction
    if not 0 <= other < schedule.num_stages:
        return None
    border = Border(schedule.route_of[action.micro_batch], min(stage, other), schedule.is_forward_only)
    is_gradient = action.kind is not ActionKind.FORWARD
    tag = _FIRST_TAG + (2 * border.stage + is_gradient) * schedule.num_micro_batches + action.micro_batch
    return Exchange(Message(border, is_gradient, action.micro_batch, tag), schedule.place_of(action.micro_batch, other))
