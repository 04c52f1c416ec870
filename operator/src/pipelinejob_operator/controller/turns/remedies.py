"""What is done about a stage that holds up the others, decided purely: only what pays within the steps that are left.

What is gained is predicted from measured spans; what a remedy costs is how long the last one, or
the last start, took.
"""

from dataclasses import dataclass, replace
from datetime import datetime

from pipelinejob.spec.job import PipelineJobSpec
from pipelinejob.spec.reported.conditions import ConditionStatus, ConditionType, State
from pipelinejob.spec.reported.recovery_status import LostRank
from pipelinejob.spec.running.recovery import Stragglers
from pipelinejob.spec.status import PipelineJobStatus, decimal
from pipelinejob_operator.admission.refusals import with_refusals
from pipelinejob_operator.controller.observing.divided import Divided
from pipelinejob_operator.controller.observing.observe import Observed
from pipelinejob_operator.controller.turns import moving, shapes
from pipelinejob_operator.controller.turns.failing import replacing
from pipelinejob_operator.controller.turns.failing.budget import within
from pipelinejob_operator.controller.turns.failing.giving_back import since_release_s
from pipelinejob_operator.controller.turns.failing.next_places import placed_anew, unused
from pipelinejob_operator.controller.turns.stragglers import Slow, Slowness, is_known
from pipelinejob_operator.controller.turns.transitions import Turn, give_up
from pipelinejob_operator.objects.conditions import Fact
from pipelinejob_operator.objects.job import condition, format_time, parse_time

_ASSUMED_S = 120.0  # that a remedy costs, before any start was measured
_DEGRADED = ConditionType.DEGRADED
_HELPED = frozenset({Slowness.COMPUTE, Slowness.PROCESSOR})  # by another node, or by fewer layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """Whether a remedy pays, and the two numbers that say so."""

    pays: bool
    words: str


def may_act(spec: PipelineJobSpec) -> bool:
    """Tell whether anything is ever done about a straggler, so that what it would cost is measured."""
    return spec.recovery.stragglers is not Stragglers.REPORT


def act(turn: Turn, pace: Fact, slow: Slow | None, observed: Observed, spec: PipelineJobSpec) -> Turn | Fact:
    """Do what the policy says about a straggler; or return what is found of DEGRADED, with why nothing is done."""
    if not pace.holds or slow is None or not may_act(spec):
        return pace
    why_not = _why_not(turn.status, slow, spec, turn.now)
    if why_not is None and spec.recovery.stragglers is Stragglers.REPLACE:
        acted = replace_slow(turn, slow, observed, spec)
    else:
        acted = why_not or repartition(turn, slow, observed.divided)
    return acted if isinstance(acted, Turn) else Fact(pace.holds, pace.reason, f"{pace.message}; {acted}")


def weigh(gain_s: float, *, steps_left: int, cost_s: float, source: str) -> Worth:
    """Compare what a remedy gains in each step with what it costs once; `source` says where the cost is from."""
    gained_s = gain_s * steps_left
    words = (
        f"predicted to gain {decimal(gain_s)} s in each of {steps_left} steps, {gained_s:.0f} s, and to cost "
        f"{cost_s:.0f} s ({source})"
    )
    return Worth(pays=gained_s > cost_s, words=words)


def replace_slow(turn: Turn, slow: Slow, observed: Observed, spec: PipelineJobSpec) -> Turn | str:
    """Have a slow stage's pod replaced in place, on another node if there is one; or say why it stays."""
    recovery, now = replacing.recovery_of(turn.status), format_time(turn.now)
    cost_s, source = _start_cost(turn.status)
    if recovery.last_seconds is not None:
        cost_s, source = float(recovery.last_seconds), "what the last replacement took"
    worth = weigh(slow.gain * (slow.step_s or 0.0), steps_left=_steps_left(turn), cost_s=cost_s, source=source)
    if not worth.pays:
        return f"Replace does not pay: {worth.words}"
    place = observed.places([slow.rank], frozenset({slow.node or ""})).get(slow.rank)
    if place is None:
        return f"Replace would pay, {worth.words}; but no other node has room for it now"
    is_elsewhere = place.node != slow.node
    where = f"goes to {place.node}" if is_elsewhere else f"begins anew on {place.node}, as there is no other node"
    message = f"{slow.sentence}; it is asked to hand over, and {where}: {worth.words}"
    uid = observed.current[slow.rank].reference.uid
    entry = LostRank(replica=slow.rank.replica, stage=slow.rank.stage, uid=uid, gently=True)
    changes = {
        "replacing": (*recovery.replacing, entry),
        "since": now,
        "replacements": recovery.replacements + 1,
        "last_remedy_time": now,
        "spares": unused(recovery.spares, {slow.rank: place}),
        "spares_used": recovery.spares_used + (place.spare is not None),
    }
    stages = placed_anew(turn, {slow.rank: place})
    turn = turn.having(recovery=recovery.model_copy(update=changes), stages=stages)
    if is_elsewhere and slow.node is not None:
        for_s = float(spec.recovery.replacement_window_seconds)
        refused = with_refusals(turn.status, {slow.node: slow.sentence}, now=turn.now, for_s=for_s)
        turn = replace(turn, status=refused)
    turn = turn.finding(State.STARTING, {ConditionType.READY: Fact(False, "Replacing", message)})
    turn = turn.told("ReplacingStraggler", f"{message[0].upper()}{message[1:]}", warning=True)
    return replace(turn, look_again_s=replacing.LOOK_S)


def repartition(turn: Turn, slow: Slow, divided: Divided | None) -> Turn | str:
    """Have the layers divided anew, from memory or else by the next attempt; or say why it goes on as it is."""
    if divided is None:
        return "no other partition could be planned"
    if divided.layers == divided.before:
        return f"no partition is predicted to be quicker than {shapes.listed(divided.before)} layers"
    cost_s, source = _start_cost(turn.status)
    gain_s = (slow.step_s or 0.0) * (1 - divided.step_ratio)
    worth = weigh(gain_s, steps_left=_steps_left(turn), cost_s=cost_s, source=source)
    if not worth.pays:
        return f"Repartition to {shapes.listed(divided.layers)} layers does not pay: {worth.words}"
    chosen = shapes.present(turn.job)
    in_place = turn.job.spec is not None and turn.job.spec.recovery.in_place
    why_not = shapes.why_not(turn.job, chosen) if in_place and chosen is not None else None
    from_memory = why_not == ""
    cannot = f" (not from memory: {why_not})" if why_not else ""
    how = "all go over at the next step border" if from_memory else "the stages write a checkpoint, and go on from it"
    message = (
        f"{slow.sentence}; {how} with {shapes.listed(divided.layers)} layers"
        f" instead of {shapes.listed(divided.before)}{cannot}: {worth.words}"
    )
    if from_memory and chosen is not None:
        turn = moving.begin(turn, chosen, {}, divided.layers)
    else:
        turn = give_up(
            turn, state=State.RESTARTING, reason="Repartitioning", message=message, backoff_s=0.0, comes_back=True
        )
    changes = {
        "last_remedy_time": format_time(turn.now),
        "speeds": tuple(f"{speed:g}" for speed in divided.speeds),
    }
    recovery = replacing.recovery_of(turn.status).model_copy(update=changes)
    return turn.having(recovery=recovery).told("Repartitioning", f"{message[0].upper()}{message[1:]}", warning=True)


def with_start(turn: Turn, spec: PipelineJobSpec) -> Turn:
    """Note how long a gang took that is up for the first time, where that is weighed."""
    ready, released = condition(turn.status, ConditionType.READY), turn.status.released_time
    if not may_act(spec) or ready is None or released is None or ready.status is ConditionStatus.TRUE:
        return turn
    was_up = parse_time(ready.last_transition_time) > parse_time(released)
    return turn if was_up else turn.having(start_seconds=decimal(since_release_s(turn.status, turn.now)))


def wants_division(status: PipelineJobStatus, slow: Slow, spec: PipelineJobSpec, now: datetime) -> bool:
    """Tell whether the layers are to be divided anew, to see whether that pays."""
    is_asked = spec.recovery.stragglers is Stragglers.REPARTITION and is_known(condition(status, _DEGRADED))
    return is_asked and _why_not(status, slow, spec, now) is None


def _why_not(status: PipelineJobStatus, slow: Slow, spec: PipelineJobSpec, now: datetime) -> str | None:
    """Say why nothing is to be done about a straggler whatever it would gain; None if something may be."""
    policy, window_s = spec.recovery.stragglers, spec.recovery.replacement_window_seconds
    last = replacing.recovery_of(status).last_remedy_time
    if slow.at not in _HELPED:
        return f"spec.recovery.stragglers: {policy} does not help against a slow {slow.at}"
    if last is not None and within([last], window_s, now):
        return f"spec.recovery.stragglers: {policy} was done at {last}, and is done once in {window_s} s"
    return None


def _start_cost(status: PipelineJobStatus) -> tuple[float, str]:
    if status.start_seconds is None:
        return _ASSUMED_S, "assumed, as no start was measured"
    return float(status.start_seconds), "what the last start took"


def _steps_left(turn: Turn) -> int:
    return max(0, (turn.status.steps or 0) - (turn.status.step or 0))
