"""What docs/schedules.md must have of each schedule."""

import re
from collections.abc import Iterator

from pipelinejob.schedules.families import FAMILIES
from pipelinejob.schedules.family import RouteShape

PICTURES_OF = re.compile(r"^`(\S+)`, p = (\d+), m = (\d+)(?:, v = (\d+))?.*:\n\n((?:    rank .*\n)+)", re.MULTILINE)

_ROUTE_ROWS = {
    RouteShape.STRAIGHT: "| straight |",
    RouteShape.LOOPED: "| looped, v chunks |",
    RouteShape.FOLDED: "| folded, a V |",
    RouteShape.BOTH_WAYS: "| two, straight both ways |",
}


def undocumented(page: str) -> list[str]:
    """Say, in a line each, what the page lacks of a schedule."""
    return list(_lacks(page))


def _lacks(page: str) -> Iterator[str]:
    lines = page.splitlines()
    headings = [line for line in lines if line.startswith("### ")]
    pictures = {name for name, *_ in PICTURES_OF.findall(page)}
    for family in FAMILIES.values():
        name = family.name.value
        if not any(name in re.split(r",? and |, |### ", heading) for heading in headings):
            yield f"{name} has no heading"
        if family.looks_at_costs:  # has no list that could be drawn
            continue
        if name not in pictures:
            yield f"{name} has no picture"
        if not any(line.startswith((f"| {name} |", f"| {name},")) for line in lines):
            yield f"{name} has no row of bubble, peak and weights"
        row = next(line for line in lines if line.startswith(_ROUTE_ROWS[family.route]))
        if not re.search(rf"[ |]{re.escape(name)}[,: |]", row):
            yield f"{name} is not named beside the route that it takes"
