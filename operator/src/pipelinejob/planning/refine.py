"""Refines a profile by what a run measured, so that the next plan starts from what was seen.

A run measures stages, not layers: each layer's seconds are scaled by what its stage took over what
was predicted of it, forward, input gradient and weight gradient apart. Links follow from the
moments at which one rank's action ended and the next one's, which waited for its message, began.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from statistics import mean, median
from typing import NamedTuple

from pipelinejob.base.timeline import Span, SpanKind, StageTimeline, Timeline
from pipelinejob.contract.plan import CostSource, Plan
from pipelinejob.costs.layers import LayerCost, Profile
from pipelinejob.planning.planner import predicted_timeline
from pipelinejob.planning.playing import schedule_of
from pipelinejob.schedules.actions import Schedule
from pipelinejob.schedules.causes import WaitCause

_ROUNDS = 6  # where stages share processors, or compute again, what one layer takes shows in spans of others
_LEAST_S = 1e-9
_LARGEST = 100.0  # a factor beyond is no refinement

Chunk = tuple[int, int | None]  # a rank, and one of its chunks
Action = tuple[Chunk, SpanKind]


def refined(profile: Profile, plan: Plan, timelines: Sequence[Timeline]) -> Profile:
    """Return the profile that predicts for the plan's stages what the timelines measured.

    What they do not speak of stays as it was. A profile that knew nothing of the layers still
    knows no bytes, and keeps its source; any other counts as measured.
    """
    steps = [each for timeline in timelines for each in timeline.stages]
    if not any(step.spans for step in steps):
        return profile
    schedule = schedule_of(plan)
    measured = _typical(steps)
    for _ in range(_ROUNDS):
        factors = _factors(measured, _typical(predicted_timeline(plan, profile).stages), profile.action_s)
        profile = profile.model_copy(update={"layers": tuple(_scaled(profile, plan, schedule, factors))})
    hop_s = _hop_s(steps, schedule)
    if hop_s is not None:
        profile = _with_hops(profile, hop_s)
    source = CostSource.PROFILED if profile.source is CostSource.ANALYTIC else profile.source
    return profile.model_copy(update={"source": source, "step_overhead_s": _overhead_s(steps)})


def _typical(steps: Iterable[StageTimeline]) -> dict[Action, float]:
    """Return the mean seconds of each kind of action, of each chunk of each rank; an update's are of the whole step.

    Replicas are alike, and a plan knows one of them.
    """
    seconds: defaultdict[Action, list[float]] = defaultdict(list)
    for step in steps:
        of_step: defaultdict[Action, defaultdict[int | None, float]] = defaultdict(lambda: defaultdict(float))
        for span in step.spans:  # an action has two where it waited in its midst
            of_step[(step.stage, span.chunk), span.kind][span.micro_batch] += _length(span)
        for action, lengths in of_step.items():
            typical = sum if action[1] is SpanKind.OPTIMIZER else mean
            seconds[action].append(typical(lengths.values()))
    return {action: median(each) for action, each in seconds.items()}


def _factors(measured: dict[Action, float], predicted: dict[Action, float], action_s: float) -> dict[Action, float]:
    """Return the factor of each kind of action, without the per-action overhead that predictions include."""
    return {
        action: min(measured[action] / seconds, _LARGEST)
        for action, was_s in predicted.items()
        if action in measured and (seconds := was_s - (0.0 if action[1] is SpanKind.OPTIMIZER else action_s)) > _LEAST_S
    }


def _scaled(profile: Profile, plan: Plan, schedule: Schedule, factors: dict[Action, float]) -> Iterator[LayerCost]:
    """Scale each layer by the mean of the factors of the chunks that it stands in."""
    homes = _homes(plan, schedule)
    for index, layer in enumerate(profile.layers):
        forward, back, aside, update = (_factor(factors, homes[index], kind) for kind in _KINDS)
        if not schedule.is_split:  # a full backward pass is one span, under the name of its first half
            aside = back
        yield layer.model_copy(
            update={
                "forward_s": layer.forward_s * forward,
                # The first layer has no input to give a gradient to: what is under that name is
                # done with its weights.
                "backward_input_s": layer.backward_input_s * (back if index else aside),
                "backward_weight_s": layer.backward_weight_s * aside,
                "optimizer_s": layer.optimizer_s * update,
            }
        )


_KINDS = (SpanKind.FORWARD, SpanKind.BACKWARD_INPUT, SpanKind.BACKWARD_WEIGHT, SpanKind.OPTIMIZER)


def _factor(factors: dict[Action, float], homes: Sequence[Chunk], kind: SpanKind) -> float:
    # An update is of a rank as a whole.
    chunks = [(rank, None) for rank, _ in homes] if kind is SpanKind.OPTIMIZER else homes
    known = [factors[chunk, kind] for chunk in chunks if (chunk, kind) in factors]
    return mean(known) if known else 1.0


def _homes(plan: Plan, schedule: Schedule) -> dict[int, list[Chunk]]:
    """Return the chunks that hold each layer."""
    homes: defaultdict[int, list[Chunk]] = defaultdict(list)
    for rank in range(schedule.num_ranks):
        for route in schedule.stages_of:
            for chunk, stage in enumerate(route[rank]):
                for layer in range(*plan.cuts[stage]):
                    if (rank, chunk) not in homes[layer]:
                        homes[layer].append((rank, chunk))
    return homes


class _Message(NamedTuple):
    """One message, by the clocks of both ranks: from the end of the action that made it."""

    waiting_s: float  # to when its receiver began to wait for it: below 0 if that was before
    arrived_s: float  # to when its receiver went on


def _hop_s(steps: Sequence[StageTimeline], schedule: Schedule) -> float | None:
    """Return the seconds from the end of the action that sent a message to the start of the one that waited for it.

    Ranks on different machines have different clocks. What one is ahead of the other lengthens the
    shortest way there and shortens the shortest way back; half of the difference is taken off, as
    if both ways were equally fast.
    """
    messages = _messages(steps, schedule)
    hops: list[float] = []
    for (source, target), there in messages.items():
        back = messages.get((target, source))
        if back is None:
            continue
        ahead_s = (min(each.arrived_s for each in there) - min(each.arrived_s for each in back)) / 2
        hops += [each.arrived_s - ahead_s for each in there if each.waiting_s < ahead_s]
    return max(median(hops), 0.0) if hops else None


def _messages(steps: Sequence[StageTimeline], schedule: Schedule) -> dict[tuple[int, int], list[_Message]]:
    """Return the messages between ranks, by sender and receiver."""
    by_step: defaultdict[tuple[int, int], dict[int, StageTimeline]] = defaultdict(dict)
    for step in steps:
        if step.started is not None:
            by_step[step.replica, step.step][step.stage] = step
    found: defaultdict[tuple[int, int], list[_Message]] = defaultdict(list)
    for ranks in by_step.values():
        ended = {rank: dict(_ends(step)) for rank, step in ranks.items()}
        begun = {rank: dict(_beginnings(step)) for rank, step in ranks.items()}
        for key, source, target in _ways(schedule):
            left = ended.get(source[0], {}).get((source[1], *key))
            taken = begun.get(target[0], {}).get((target[1], *key))
            if left is not None and taken is not None:
                found[source[0], target[0]].append(_Message(taken[0] - left, taken[1] - left))
    return dict(found)


_Way = tuple[
    tuple[SpanKind, int], tuple[int, int], tuple[int, int]
]  # kind and micro-batch; rank and chunk at both ends


def _ways(schedule: Schedule) -> Iterator[_Way]:
    """Yield the messages of a step that go from one rank to another."""
    for route, ranks in enumerate(schedule.routes):
        chunk_of = {stage: chunk for of_rank in schedule.stages_of[route] for chunk, stage in enumerate(of_rank)}
        for stage, (here, there) in enumerate(pairwise(ranks)):
            if here == there:
                continue
            ends = (here, chunk_of[stage]), (there, chunk_of[stage + 1])
            for k in (k for k in range(schedule.num_micro_batches) if schedule.route_of[k] == route):
                yield (SpanKind.FORWARD, k), *ends
                yield (SpanKind.BACKWARD_INPUT, k), *ends[::-1]


def _ends(step: StageTimeline) -> Iterator[tuple[tuple[int, SpanKind, int], float]]:
    """Yield when each action ended."""
    assert step.started is not None, "only steps of which it is known are looked at"
    for span in step.spans:
        if span.micro_batch is not None:
            yield (span.chunk or 0, span.kind, span.micro_batch), step.started + span.end_s


def _beginnings(step: StageTimeline) -> Iterator[tuple[tuple[int, SpanKind, int], tuple[float, float]]]:
    """Yield, for each action that had to receive, when the rank began to wait and when it went on."""
    assert step.started is not None, "only steps of which it is known are looked at"
    for waiting, span in pairwise(each for each in step.spans if each.cause != WaitCause.PROCESSOR):
        if waiting.kind is SpanKind.RECV and span.micro_batch is not None:
            key = (span.chunk or 0, span.kind, span.micro_batch)
            yield key, (step.started + waiting.start_s, step.started + waiting.end_s)


def _with_hops(profile: Profile, hop_s: float) -> Profile:
    """Return the profile whose messages take so long on average, without the sender's per-action overhead."""
    sizes = [layer.output_bytes for layer in profile.layers[:-1]]
    message_s = mean(sizes) / profile.link_bytes_per_s if sizes and profile.link_bytes_per_s else 0.0
    way_s = max(hop_s - profile.action_s, 0.0)
    if way_s >= message_s:
        return profile.model_copy(update={"link_s": way_s - message_s})
    faster = message_s / max(way_s, _LEAST_S)
    return profile.model_copy(
        update={"link_s": 0.0, "link_bytes_per_s": profile.link_bytes_per_s and profile.link_bytes_per_s * faster}
    )


def _overhead_s(steps: Sequence[StageTimeline]) -> float:
    """Return the seconds of a step outside its schedule: loading data, work between steps, the final all-reduce.

    That is what the rank waits that comes to it last.
    """
    by_step: defaultdict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for step in steps:
        between = sum(map(_length, filter(_is_between, step.spans)))
        barrier = sum(_length(span) for span in step.spans if span.cause == WaitCause.BARRIER)
        by_step[step.replica, step.step].append((between, barrier))
    return median(max(b for b, _ in ranks) + min(b for _, b in ranks) for ranks in by_step.values())


def _is_between(span: Span) -> bool:
    return span.kind is SpanKind.DATA or (span.kind is SpanKind.IDLE and span.cause is None)


def _length(span: Span) -> float:
    return span.end_s - span.start_s
