"""The text form of a schedule, to read, to write by hand and to keep.

One line a rank, its actions apart by blanks. Blank lines and what follows a `#` count as nothing.
Before the ranks may stand lines that begin with `route`: the rank of each stage, first stage
first, and after a colon the micro-batches that take it, singly or as ranges. Without any, there is
one stage a rank and one route; a single route needs no colon.

    # Chimera, two ranks, two micro-batches
    route 0 1: 0
    route 1 0: 1
    F0 F1 B1 B0
    F1 F0 B0 B1
"""

import re
from collections.abc import Iterator, Sequence

from pipelinejob.schedules.actions import Action, ActionKind, RankActions, Route, Schedule, ScheduleError, straight

_ACTION = re.compile(r"([FBIWO])([0-9]{1,7})(?:\.([0-9]{1,4}))?(?:@([0-9]{1,7}))?")
_KINDS = {kind.value: kind for kind in ActionKind}


def parse_action(word: str) -> Action:
    """Read what `str` printed of an action.

    Raises ScheduleError.
    """
    match = _ACTION.fullmatch(word)
    if match is None:
        raise ScheduleError(
            f"{word!r} is no action; write F, B, I, W or O and a number, then .chunk and @version where there are"
            " several, as in F3, F3.1 or F3@2"
        )
    kind, number, chunk, version = match.groups()
    return Action(_KINDS[kind], int(number), int(chunk or 0), None if version is None else int(version))


def render(schedule: Schedule) -> str:
    """Print a schedule; `parse` reads it back."""
    lines = [*_route_lines(schedule), *(" ".join(map(str, actions)) for actions in schedule.ranks)]
    return "\n".join(lines) + "\n"


def parse(text: str) -> Schedule:
    """Read a schedule; whether it can be played is for `validate` to say.

    Raises ScheduleError for what is no schedule, naming the line.
    """
    routes: list[tuple[Route, str | None]] = []
    ranks: list[RankActions] = []
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.partition("#")[0].strip()
        if not content:
            continue
        try:
            if content.startswith("route"):
                routes.append(_parse_route(content.removeprefix("route")))
            else:
                ranks.append(tuple(map(parse_action, content.split())))
        except ScheduleError as error:
            raise ScheduleError(f"line {number}: {error}") from error
    if not ranks:
        raise ScheduleError("no rank has a line; write one line of actions for each rank, as in F0 F1 B0 B1")
    return _assembled(routes, tuple(ranks))


def _route_lines(schedule: Schedule) -> Iterator[str]:
    if schedule.routes == (straight(schedule.num_ranks),):
        return
    for number, route in enumerate(schedule.routes):
        taken = [k for k, taken in enumerate(schedule.route_of) if taken == number]
        suffix = f": {_ranges(taken)}" if len(schedule.routes) > 1 else ""
        yield f"route {' '.join(map(str, route))}{suffix}"


def _ranges(numbers: Sequence[int]) -> str:
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def _parse_route(content: str) -> tuple[Route, str | None]:
    ranks, colon, micro_batches = content.partition(":")
    if not ranks.split() or not all(word.isascii() and word.isdigit() for word in ranks.split()):
        raise ScheduleError(f"route {ranks.strip()!r} is no list of ranks; write numbers, as in route 0 1 1 0")
    return tuple(map(int, ranks.split())), micro_batches if colon else None


def _parse_ranges(text: str) -> Iterator[int]:
    for word in text.split():
        first, dash, last = word.partition("-")
        if not (first.isdigit() and (last.isdigit() or not dash)):
            raise ScheduleError(f"{word!r} names no micro-batches; write numbers or ranges, as in 0 2-5")
        yield from range(int(first), int(last or first) + 1)


def _assembled(routes: list[tuple[Route, str | None]], ranks: tuple[RankActions, ...]) -> Schedule:
    numbers = [a.micro_batch for actions in ranks for a in actions if a.kind is not ActionKind.UPDATE]
    num_micro_batches = max(numbers, default=-1) + 1
    if not routes:
        return Schedule(routes=(straight(len(ranks)),), route_of=(0,) * num_micro_batches, ranks=ranks)
    _check_routes([route for route, _ in routes], len(ranks))
    route_of: list[int | None] = [0 if len(routes) == 1 else None] * num_micro_batches
    for number, (_, micro_batches) in enumerate(routes):
        for k in _parse_ranges(micro_batches or ""):
            if k < num_micro_batches:
                route_of[k] = number
    missing = [k for k, number in enumerate(route_of) if number is None]
    if missing:
        raise ScheduleError(f"micro-batch {missing[0]} takes none of the routes; name it after a route's colon")
    return Schedule(
        routes=tuple(route for route, _ in routes),
        route_of=tuple(number for number in route_of if number is not None),
        ranks=ranks,
    )


def _check_routes(routes: Sequence[Route], num_ranks: int) -> None:
    for route in routes:
        if len(route) != len(routes[0]):
            raise ScheduleError(f"routes of {len(routes[0])} and {len(route)} stages; all must have the same stages")
        if set(route) != set(range(num_ranks)):
            raise ScheduleError(
                f"route {' '.join(map(str, route))} must pass each of the ranks 0 to {num_ranks - 1}, for which there"
                " are lines, and no other"
            )
