"""Tells a stage that holds up the others from those that wait for it, and what it is slow at, by what they measured.

All stages share a step's time, so shares of it compare as seconds do. Each is set against the
share that the plan gave the stage: one that was planned to do more is no straggler. What decides
nothing is done about it here (`remedies`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

from pipelinejob.contract.progress import Progress
from pipelinejob.spec.reported.conditions import Condition, ConditionType
from pipelinejob.spec.status import PipelineJobStatus
from pipelinejob_operator.objects.conditions import Fact
from pipelinejob_operator.objects.job import Rank, condition

STRAGGLES = "StageStraggles"
_MAYBE = "StageMayStraggle"  # seen once; a second time in a row makes it one
_TOLERATED = 1.3  # times the median
_BLOCKED = 0.5  # of a step, in sending alone


class Slowness(StrEnum):
    """What a stage is slow at."""

    COMPUTE = "compute"
    PROCESSOR = "processor"  # it waits for one in the midst of its passes: others have it, or it is throttled
    INPUT = "input"
    LINK = "link"  # its messages do not leave


_ADVICE = {
    Slowness.COMPUTE: "look at its node",
    Slowness.PROCESSOR: "something else has its processor, or a limit throttles it: look at its node and its CPU limit",
    Slowness.INPUT: "its input is slow: look at the volume or the network that it comes from",
    Slowness.LINK: "its messages do not leave: look at the link between its node and its neighbours'",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow:
    """A stage that holds up the others."""

    rank: Rank
    node: str | None
    at: Slowness
    times: float  # what it takes, to what the median stage takes, each for its share of the plan
    step_s: float | None  # of late; None where none was measured
    gain: float  # share of a step, if it were as quick as the median stage
    sentence: str


def look(
    reports: Iterable[Progress], *, before: PipelineJobStatus, measured: PipelineJobStatus
) -> tuple[Slow | None, Fact]:
    """Return the stage that holds up the others, and what is found of DEGRADED.

    `measured` is the status `before` with what the reports say.
    """
    last, slow = condition(before, ConditionType.DEGRADED), find_slow(reports, measured)
    return slow, unchanged(last) if measured == before else straggling(last, None if slow is None else slow.sentence)


def find_slow(reports: Iterable[Progress], status: PipelineJobStatus) -> Slow | None:
    """Return the stage that holds up the others; None if none does, or not all have measured."""
    measured = {
        Rank(each.replica, each.stage): each
        for each in reports
        if each.attempt == status.attempt and each.utilization_ratio is not None
    }
    if len(measured) < max(2, len(status.stages)):
        return None
    planned = {each.stage: max(0.01, 1 - ratio(each.bubble)) for each in status.plan.stages} if status.plan else {}
    busy = _busy(measured)
    loads = {rank: sum(parts.values()) / planned.get(rank.stage, 1.0) for rank, parts in busy.items()}
    typical, slowest = median(loads.values()), max(loads, key=lambda rank: loads[rank])
    nodes = {Rank(each.replica, each.stage): each.node for each in status.stages}
    if loads[slowest] <= _TOLERATED * typical:
        return _behind_link(measured, nodes)
    share = planned.get(slowest.stage, 1.0) * typical  # what it would take, were it as quick as the median stage
    excess = {**busy[slowest], Slowness.COMPUTE: busy[slowest][Slowness.COMPUTE] - share}
    at = max(excess, key=lambda kind: excess[kind])
    times = loads[slowest] / typical
    after = max(share, *(sum(parts.values()) for rank, parts in busy.items() if rank != slowest))
    verb = "computes" if at is Slowness.COMPUTE else "takes"
    return Slow(
        rank=slowest,
        node=nodes.get(slowest),
        at=at,
        times=times,
        step_s=measured[slowest].step_s,
        gain=max(0.0, sum(busy[slowest].values()) - after),
        sentence=(
            f"{slowest} (node {nodes.get(slowest)}) {verb} {times:.1f} times as long as the median stage does for its "
            f"share of the plan, so the others wait for it; {_ADVICE[at]}"
        ),
    )


def relative_speeds(reports: Iterable[Progress], status: PipelineJobStatus) -> tuple[float, ...]:
    """Return how fast each stage is to what was planned with, the fastest being 1; of its replicas the slowest counts.

    `reports` are of all ranks, as `find_slow` wants them.
    """
    planned = {each.stage: max(0.01, 1 - ratio(each.bubble)) for each in status.plan.stages} if status.plan else {}
    known = [float(each) for each in (status.recovery.speeds if status.recovery else None) or ()]
    measured = {Rank(each.replica, each.stage): each for each in reports if each.utilization_ratio is not None}
    found: dict[int, float] = {}
    for rank, parts in _busy(measured).items():
        planned_with = known[rank.stage] if rank.stage < len(known) else 1.0
        speed = planned_with * planned.get(rank.stage, 1.0) / max(1e-6, sum(parts.values()))
        found[rank.stage] = min(found.get(rank.stage, speed), speed)
    best = max(found.values())
    return tuple(round(found[stage] / best, 3) for stage in sorted(found))


def straggling(last: Condition | None, sentence: str | None) -> Fact:
    """Return what is found of DEGRADED: two measurements in a row make a straggler, one that is well clears it."""
    if sentence is None:
        return Fact(False, "AsExpected")
    return Fact(True, STRAGGLES, sentence) if is_known(last) else Fact(False, _MAYBE, sentence)


def is_known(last: Condition | None) -> bool:
    """Tell whether a straggler was seen the last time."""
    return last is not None and last.reason in {STRAGGLES, _MAYBE}


def unchanged(last: Condition | None) -> Fact:
    """Return what stood before, when nothing new was measured; other troubles are over once all stages are up."""
    if last is None or last.reason not in {STRAGGLES, _MAYBE}:
        return Fact(False, "AsExpected")
    return Fact(last.reason == STRAGGLES, last.reason, last.message)


def ratio(share: str | None) -> float:
    """Read a share as a status has it."""
    return float(share.removesuffix("%")) / 100 if share else 0.0


def _busy(measured: Mapping[Rank, Progress]) -> dict[Rank, dict[Slowness, float]]:
    """Return the shares of a step in which the others may wait for each rank; of input and processor, beyond the usual.

    All stages of a machine wait for its processors now and then, and all read input.
    """
    waits = {rank: _share(each, "processor_s") for rank, each in measured.items()}
    reads = {rank: _share(each, "data_s") for rank, each in measured.items()}
    return {
        rank: {
            Slowness.COMPUTE: each.utilization_ratio or 0.0,
            Slowness.PROCESSOR: max(0.0, waits[rank] - median(waits.values())),
            Slowness.INPUT: max(0.0, reads[rank] - median(reads.values())),
        }
        for rank, each in measured.items()
    }


def _behind_link(measured: Mapping[Rank, Progress], nodes: Mapping[Rank, str | None]) -> Slow | None:
    sends = {rank: _share(each, "send_s") for rank, each in measured.items()}
    slowest = max(sends, key=lambda rank: sends[rank])
    if sends[slowest] < max(_BLOCKED, 3 * median(sends.values())):
        return None
    sentence = (
        f"{slowest} (node {nodes.get(slowest)}) is blocked in sending for {sends[slowest]:.0%} of each step, though no "
        f"stage is slow; {_ADVICE[Slowness.LINK]}"
    )
    step_s, node = measured[slowest].step_s, nodes.get(slowest)
    return Slow(rank=slowest, node=node, at=Slowness.LINK, times=1.0, step_s=step_s, gain=0.0, sentence=sentence)


def _share(report: Progress, seconds: str) -> float:
    spent = report.spent
    return getattr(spent, seconds) / spent.step_s if spent is not None and spent.step_s else 0.0
