"""Spans prepared for drawing: the one step from timelines to pages, pictures and terminals."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from pipelinejob.base.timeline import WAITING, Span, SpanKind, StageTimeline
from pipelinejob.schedules.actions import Schedule
from pipelinejob_operator.report.looks import INPUT, LOOKS, WAIT, Look, look_of

Writer = Callable[[float], str]  # writes a duration


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One span as it is drawn, with the first of its `labels` that fits; the fullest comes first.

    `shade` tells a rank's chunks apart, and the directions of a schedule with several routes.
    """

    look: Look
    start_s: float
    end_s: float
    shade: int = 0
    labels: tuple[str, ...] = ()
    tip: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One rank's marks."""

    name: str
    marks: tuple[Mark, ...]

    @property
    def end_s(self) -> float:
        """The end of its last mark."""
        return self.marks[-1].end_s if self.marks else 0.0


def row(
    timeline: StageTimeline, name: str, *, write: Writer, schedule: Schedule | None = None, start_s: float = 0.0
) -> Row:
    """Make a row of a rank's timeline, `start_s` seconds into the picture.

    A backward pass whose weight gradient comes apart is drawn as an input gradient. Without the
    schedule, micro-batches are taken to go one route.
    """
    versions = _versions(schedule, timeline.stage) if schedule and schedule.is_asynchronous else {}
    split = {(s.micro_batch, s.chunk) for s in timeline.spans if s.kind is SpanKind.BACKWARD_WEIGHT}

    def mark(span: Span) -> Mark:
        look = _look(span, split)
        version = versions.get((look.letter, span.micro_batch, span.chunk or 0))
        return Mark(
            look=look,
            start_s=start_s + span.start_s,
            end_s=start_s + span.end_s,
            shade=_shade(span, timeline.stage, schedule),
            labels=_labels(span, look, version),
            tip=f"{name}: {_tip(span, look, timeline.stage, schedule)}{_of(version)}\n"
            f"{write(span.end_s - span.start_s)}, from {write(span.start_s)} to {write(span.end_s)}",
        )

    return Row(name=name, marks=tuple(map(mark, timeline.spans)))


def shades_of(schedule: Schedule) -> dict[int, str]:
    """Return what the shades of a schedule's marks stand for; nothing if there is only one."""
    chunks = len(schedule.stages_of[0][0])
    if len(schedule.routes) == 1:
        return {chunk: f"chunk {chunk}" for chunk in range(chunks)} if chunks > 1 else {}
    of_chunk = [f", chunk {chunk}" if chunks > 1 else "" for chunk in range(chunks)]
    return {
        route * chunks + chunk: f"direction {route}{of_chunk[chunk]}"
        for route in range(len(schedule.routes))
        for chunk in range(chunks)
    }


def looks_in(rows: Collection[Row]) -> list[Look]:
    """Return the looks that rows have, in the order of legends."""
    found = {mark.look.key: mark.look for row in rows for mark in row.marks if mark.end_s > mark.start_s}
    order = [look.key for look in LOOKS.values()]
    return sorted(found.values(), key=lambda look: order.index(look.key))


def _look(span: Span, split: Collection[tuple[int | None, int | None]]) -> Look:
    if span.kind is SpanKind.BACKWARD_INPUT and (span.micro_batch, span.chunk) in split:
        return INPUT
    if span.kind in WAITING and span.kind is not SpanKind.SEND:
        return look_of(span.cause) if span.cause in LOOKS else WAIT
    return LOOKS[span.kind.value]


def _shade(span: Span, rank: int, schedule: Schedule | None) -> int:
    if span.micro_batch is None or span.kind in WAITING:
        return 0
    chunk = span.chunk or 0
    if schedule is None or span.micro_batch >= schedule.num_micro_batches:
        return chunk
    route = schedule.route_of[span.micro_batch]
    return sum(len(schedule.stages_of[before][rank]) for before in range(route)) + chunk


def _versions(schedule: Schedule, rank: int) -> dict[tuple[str, int | None, int], int | None]:
    """Return the weight version that each action of a rank uses, by (kind, micro-batch, chunk)."""
    return {(action.kind.value, action.micro_batch, action.chunk): action.version for action in schedule.ranks[rank]}


def _of(version: int | None) -> str:
    return "" if version is None else f", with weight version {version}"


def _labels(span: Span, look: Look, version: int | None) -> tuple[str, ...]:
    """Write an action as the action language does, and short."""
    if not look.letter:
        return ()
    if span.micro_batch is None:
        return (look.letter,)
    short = f"{look.letter}{span.micro_batch}"
    full = short + (f".{span.chunk}" if span.chunk else "") + ("" if version is None else f"@{version}")
    return tuple(dict.fromkeys((full, short)))


def _tip(span: Span, look: Look, rank: int, schedule: Schedule | None) -> str:
    if span.micro_batch is None:
        return look.name
    is_wait = span.kind in WAITING
    said = f"{look.name}, before micro-batch {span.micro_batch}" if is_wait else f"{look.name} {span.micro_batch}"
    if schedule is None or span.chunk is None or is_wait or span.micro_batch >= schedule.num_micro_batches:
        return said
    stages = schedule.stages_of[schedule.route_of[span.micro_batch]][rank]
    of_chunk = f", chunk {span.chunk}" if len(stages) > 1 else ""
    return f"{said}{of_chunk}, stage {stages[span.chunk]} of {schedule.num_stages}"
