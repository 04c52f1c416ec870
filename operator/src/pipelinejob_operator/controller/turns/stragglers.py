"""Tells a stage that computes longer than its share from the stages that wait for it, by what they measured of late.

All stages share a step's time, so shares of computing compare as seconds do. Each is set against the share that the
plan gave the stage: one that was planned to do more is no straggler.
"""

from statistics import median

from pipelinejob.spec.status import Condition, PipelineJobStatus
from pipelinejob_operator.objects.conditions import Fact

STRAGGLES = "StageStraggles"
_MAYBE = "StageMayStraggle"  # seen once; a second time in a row makes it one
_TOLERATED = 1.3  # times the median


def find_straggler(status: PipelineJobStatus) -> str | None:
    """Say in one sentence which stage holds up the others, None if none does or not all have measured."""
    planned = {each.stage: each.bubble for each in status.plan.stages} if status.plan else {}
    loads = {
        (stage.replica, stage.stage): _ratio(stage.utilization) / max(0.01, 1 - _ratio(planned.get(stage.stage)))
        for stage in status.stages
        if stage.utilization is not None
    }
    if len(loads) < max(2, len(status.stages)):
        return None
    typical, slowest = median(loads.values()), max(status.stages, key=lambda each: loads[each.replica, each.stage])
    load = loads[slowest.replica, slowest.stage]
    if load <= _TOLERATED * typical:
        return None
    return (
        f"stage {slowest.stage} of replica {slowest.replica} (node {slowest.node}) computes {load / typical:.1f} times "
        f"as long as the median stage does for its share of the plan, so the others wait for it; look at its node"
    )


def straggling(last: Condition | None, sentence: str | None) -> Fact:
    """Return what is found of DEGRADED: two measurements in a row make a straggler, one that is well clears it."""
    if sentence is None:
        return Fact(False, "AsExpected")
    is_known = last is not None and last.reason in {STRAGGLES, _MAYBE}
    return Fact(True, STRAGGLES, sentence) if is_known else Fact(False, _MAYBE, sentence)


def unchanged(last: Condition | None) -> Fact:
    """Return what stood before, when nothing new was measured; other troubles are over once all stages are up."""
    if last is None or last.reason not in {STRAGGLES, _MAYBE}:
        return Fact(False, "AsExpected")
    return Fact(last.reason == STRAGGLES, last.reason, last.message)


def _ratio(share: str | None) -> float:
    return float(share.removesuffix("%")) / 100 if share else 0.0
