"""What else could be done than what was planned: another configuration, another place, or a request that fits now."""

from dataclasses import dataclass
from enum import StrEnum

from pipelinejob.contract.plan import Plan


class About(StrEnum):
    """What an alternative changes."""

    CONFIGURATION = "configuration"  # degrees, schedule, micro-batches
    PLACEMENT = "placement"  # the nodes, of the same configuration
    TO_FIT = "to-fit"  # what the job asks for, so that it fits now


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """Something else that could be done, and its price: what a step would take then. A prediction."""

    about: About
    what: str
    step_s: float | None  # None where seconds mean nothing
    price: float | None  # of a step, against the plan's own: 0.031 is 3.1 % longer
    bubble_ratio: float | None = None
    memory_bytes: int | None = None  # of the fullest stage
    crossings: dict[str, int] | None = None
    room_left: dict[str, int] | None = None
    fields: dict[str, object] | None = None  # of the manifest, by path, that would say so


def priced(plan: Plan, other: Plan, *, about: About, what: str, fields: dict[str, object] | None = None) -> Alternative:
    """Compare another plan with a plan; the price is of the same work.

    A step of a plan with fewer replicas does less work, so its seconds count for as many tokens as
    the first one's.
    """
    own, its = plan.prediction, other.prediction
    is_absolute = own.is_absolute and its.is_absolute
    placement = other.placement
    return Alternative(
        about=about,
        what=what,
        step_s=its.step_s if is_absolute else None,
        price=own.tokens_per_s / its.tokens_per_s - 1 if is_absolute else None,
        bubble_ratio=its.bubble_ratio,
        memory_bytes=max(stage.memory_bytes for stage in other.stages) if is_absolute else None,
        crossings=placement.crossings if placement else None,
        room_left=placement.room_left or None if placement else None,
        fields=fields,
    )
