"""What becomes of a job that asks for room, as plain values: it is placed, it waits, or it can never be."""

from dataclasses import dataclass

from pipelinejob.contract.plan import Placement
from pipelinejob.spec.reported.waiting import AskedJob
from pipelinejob_operator.cluster import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Room for the whole gang, which is promised to the job from now on."""

    placement: Placement
    passed: str = ""  # who is ahead in the line, beside whose room it fits


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """Why the job waits, in one sentence, and what is done about that."""

    reason: str  # of the condition Placed
    message: str
    is_stalled: bool = False  # only a person, or another cluster, can change it
    preempts: tuple[AskedJob, ...] = ()  # who makes way for it
    waits_for: tuple[str, ...] = ()  # whose end it needs
    events: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The spec is one that nothing can be planned for."""

    message: str


Verdict = Placed | Waits | Refused
