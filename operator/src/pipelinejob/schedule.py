"""Micro-batch schedules, as data: for each stage an ordered list of actions. Nothing here executes; the runtime plays it.

An action prints as `F3` (forward of micro-batch 3), `B3` (its full backward), and parses back. Sends and receives are derived
from the order: F3 on stage s > 0 needs the activation of F3 on s-1, B3 on s < p-1 the gradient of B3 on s+1.
"""

from dataclasses import dataclass
from enum import StrEnum


class ActionKind(StrEnum):
    """What is computed. I and W, the halves of a split backward, join with the schedules that use them."""

    FORWARD = "F"
    BACKWARD = "B"


@dataclass(frozen=True, slots=True)
class Action:
    """One unit of work of one stage."""

    kind: ActionKind
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.kind}{self.micro_batch}"
