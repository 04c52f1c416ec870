"""The facts of schedules that the API's rules need, in CEL and in words, from their descriptions."""

from collections.abc import Callable

from pipelinejob.schedules.families import CUSTOM, FAMILIES
from pipelinejob.schedules.family import Family, RouteShape, Updates

_ALL = (*FAMILIES.values(), CUSTOM)


class Names:
    """The schedules that a fact holds for: a list in CEL (`cel`), words in a sentence (`both`, `either`)."""

    def __init__(self, holds: Callable[[Family], bool]) -> None:
        self._names = [family.name.value for family in _ALL if holds(family)]

    @property
    def cel(self) -> str:
        return f"[{', '.join(map(repr, self._names))}]"

    @property
    def both(self) -> str:
        """The names with "and" before the last one."""
        return self._joined("and")

    @property
    def either(self) -> str:
        """The names with "or" before the last one."""
        return self._joined("or")

    def _joined(self, word: str) -> str:
        *others, last = self._names
        return f"{', '.join(others)} {word} {last}" if others else last


CHOOSES_CHUNKS = Names(lambda family: family.chunk_choice and family.trains)
IN_WAVES = Names(lambda family: family.in_waves)
BOTH_WAYS = Names(lambda family: family.route is RouteShape.BOTH_WAYS)
ROUTE_OPEN = Names(lambda family: family.route is RouteShape.OPEN)  # only the planner knows their stages
CAPPED = Names(lambda family: family.takes_cap)
TRAINS_NOTHING = Names(lambda family: not family.trains)
ASYNCHRONOUS = Names(lambda family: family.is_asynchronous)
UPDATES_EACH = Names(lambda family: family.updates is Updates.EACH_MICRO_BATCH)
UPDATES_BATCHES = Names(lambda family: family.updates is Updates.EACH_BATCH)


def _usual_chunks() -> str:
    """Return the CEL of a schedule's usual number of chunks on each rank."""
    expression = "1"
    for number in sorted({family.usual_chunks for family in _ALL} - {1}):
        names = Names(lambda family, number=number: family.usual_chunks == number)  # type: ignore[misc]
        expression = f"self.schedule.name in {names.cel} ? {number} : {expression}"
    return expression


CHUNKS = f"(has(self.schedule.virtualStages) ? self.schedule.virtualStages : {_usual_chunks()})"
