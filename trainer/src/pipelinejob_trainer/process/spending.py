"""What a step's seconds were spent on, in few numbers instead of many spans."""

from collections.abc import Sequence

from pipelinejob.base.timeline import COMPUTE, WAITING, SpanKind, StageTimeline
from pipelinejob.contract.progress import Spent
from pipelinejob.schedules.causes import WaitCause


def spent_on(timeline: StageTimeline) -> Spent:
    """Add up a step's spans."""
    seconds = dict.fromkeys(SpanKind, 0.0)
    processor_s = 0.0
    for span in timeline.spans:
        seconds[span.kind] += span.end_s - span.start_s
        if span.cause == WaitCause.PROCESSOR:
            processor_s += span.end_s - span.start_s
    return Spent(
        step_s=sum(seconds.values()),
        compute_s=sum(seconds[kind] for kind in COMPUTE),
        waiting_s=sum(seconds[kind] for kind in WAITING),
        processor_s=processor_s,
        send_s=seconds[SpanKind.SEND],
        data_s=seconds[SpanKind.DATA],
    )


def mean(steps: Sequence[Spent]) -> Spent:
    """Return the mean of some steps, at least one."""
    return Spent(**{name: sum(getattr(step, name) for step in steps) / len(steps) for name in Spent.model_fields})
