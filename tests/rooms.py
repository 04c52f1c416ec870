"""The rooms of each package as a picture: which imports from which, floor by floor.

    python tests/rooms.py      # or `make generate`: writes docs/images/rooms-*.svg

A room is a folder, or a single module, directly in a package. It stands one floor above the
highest room that it imports from. Of two ways down the longer one is drawn: an arrow that others
imply is left out.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import combinations, pairwise
from pathlib import Path
from statistics import mean

import grimp

from pipelinejob_operator.report.pictures.svg import rect, text

ROOT = Path(__file__).parents[1]
PACKAGES = {"core": "pipelinejob", "operator": "pipelinejob_operator", "trainer": "pipelinejob_trainer"}
_ENTRY = "__main__"  # a way in, no room

Imports = Mapping[str, frozenset[str]]  # by room: the rooms that it imports from
Spot = tuple[int, str]  # a floor, and the room that stands there, or the arrow that passes

_BOX_HEIGHT, _FLOOR, _GAP, _EDGE = 30, 68, 22, 14  # pixels
_CHARACTER, _PADDING, _PASSING = 7.6, 26, 10
_ROUNDS = 8  # of putting spots in order, from below and from above
_STYLE = """
text{font:600 13px system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif;fill:#1b1f27}
.room{fill:#e8effc;stroke:#2f6fde}.arrow{fill:none;stroke:#5b6472;stroke-width:1.4;marker-end:url(#head)}
.head{fill:#5b6472}
@media (prefers-color-scheme: dark){text{fill:#e8ebf0}.room{fill:#1d2a44;stroke:#6ea3ff}
.arrow{stroke:#9aa4b2}.head{fill:#9aa4b2}}
"""
_HEAD = (
    '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path class="head" d="M0 0 8 4 0 8z"/></marker>'
)


def imports_of(package: str) -> Imports:
    """Return which rooms of a package import from which, directly or for types alone."""
    graph = grimp.build_graph(package, include_external_packages=False, cache_dir=None)
    found: dict[str, set[str]] = {}
    for module in graph.modules:
        room = _room(module)
        if room is not None:
            others = map(_room, graph.find_modules_directly_imported_by(module))
            found.setdefault(room, set()).update(other for other in others if other not in {None, room})
    return {room: frozenset(found[room]) for room in sorted(found)}


def _room(module: str) -> str | None:
    _, _, inside = module.partition(".")
    room = inside.partition(".")[0]
    return room if room not in {"", _ENTRY} else None


def floors_of(imports: Imports) -> list[list[str]]:
    """Return the rooms of each floor, the lowest first.

    Raises graphlib.CycleError where rooms import each other.
    """
    floor: dict[str, int] = {}
    for room in TopologicalSorter(imports).static_order():
        floor[room] = 1 + max((floor[below] for below in imports[room]), default=-1)
    return [[room for room in imports if floor[room] == number] for number in range(max(floor.values()) + 1)]


def arrows_of(imports: Imports) -> list[tuple[str, str]]:
    """Return the imports that no others imply: to rooms that are reached in no other way."""
    reached: dict[str, frozenset[str]] = {}
    for room in TopologicalSorter(imports).static_order():
        reached[room] = imports[room].union(*(reached[below] for below in imports[room]))
    return [
        (room, below)
        for room in imports
        for below in sorted(imports[room])
        if not any(below in reached[other] for other in imports[room])
    ]


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where rooms stand and arrows pass: each floor from left to right, each arrow from above."""

    floors: list[list[Spot]]
    ways: list[list[Spot]]

    @classmethod
    def of(cls, imports: Imports) -> "_Layout":
        rooms = floors_of(imports)
        floor = {room: number for number, on_it in enumerate(rooms) for room in on_it}
        floors: list[list[Spot]] = [[(number, room) for room in on_it] for number, on_it in enumerate(rooms)]
        ways: list[list[Spot]] = []
        for room, below in arrows_of(imports):
            passed: list[Spot] = [(number, f"{room} {below}") for number in range(floor[room] - 1, floor[below], -1)]
            for spot in passed:
                floors[spot[0]].append(spot)
            ways.append([(floor[room], room), *passed, (floor[below], below)])
        layouts = [cls(floors, ways)]
        for turn in range(_ROUNDS):
            layouts.append(layouts[-1].sorted(from_below=turn % 2 == 0))
        return min(reversed(layouts), key=_Layout.num_crossings)

    def num_crossings(self) -> int:
        """Return how often arrows cross each other between floors."""
        at = self.centres()
        parts = [pair for way in self.ways for pair in pairwise(way)]
        return sum(
            (at[upper] - at[other_upper]) * (at[lower] - at[other_lower]) < 0
            for (upper, lower), (other_upper, other_lower) in combinations(parts, 2)
            if upper[0] == other_upper[0]
        )

    def sorted(self, *, from_below: bool) -> "_Layout":
        """Sort each floor's spots by where their neighbours stand, so that arrows cross less."""
        joined: dict[Spot, list[Spot]] = {}
        for way in self.ways:
            for upper, lower in pairwise(way):
                joined.setdefault(upper if from_below else lower, []).append(lower if from_below else upper)
        layout = _Layout([[*floor] for floor in self.floors], self.ways)
        for floor in layout.floors if from_below else layout.floors[::-1]:
            at = layout.centres()
            floor.sort(key=lambda spot: (mean(at[each] for each in joined.get(spot, [spot])), spot))
        return layout

    def centres(self) -> dict[Spot, float]:
        """Return the middle of each spot, in pixels from the middle of the picture."""
        found: dict[Spot, float] = {}
        for floor in self.floors:
            left = -self.width(floor) / 2
            for spot in floor:
                found[spot] = left + _width(spot) / 2
                left += _width(spot) + _GAP
        return found

    def width(self, floor: list[Spot]) -> float:
        """Return the pixels that a floor takes."""
        return sum(map(_width, floor)) + _GAP * (len(floor) - 1)


def _is_room(spot: Spot) -> bool:
    return " " not in spot[1]


def _width(spot: Spot) -> float:
    return len(spot[1]) * _CHARACTER + _PADDING if _is_room(spot) else _PASSING


def drawn(package: str) -> str:
    """Draw the rooms of a package as an SVG file that stands alone."""
    layout = _Layout.of(imports_of(package))
    width = max(map(layout.width, layout.floors)) + 2 * _EDGE
    height = len(layout.floors) * _FLOOR - (_FLOOR - _BOX_HEIGHT) + 2 * _EDGE
    centres = {spot: x + width / 2 for spot, x in layout.centres().items()}
    label = f"The rooms of {package}: each imports only from those below it"
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{label}">',
            f"<style>{_STYLE}</style>{_HEAD}",
            *(_arrow(way, centres, height) for way in layout.ways),
            *_boxes(centres, height),
            "</svg>\n",
        ]
    )


def _boxes(centres: Mapping[Spot, float], height: float) -> Iterator[str]:
    for spot, x in centres.items():
        if _is_room(spot):
            top = _top(spot, height)
            yield rect(x - _width(spot) / 2, top, _width(spot), _BOX_HEIGHT, style="room", radius=7)
            yield text(x, top + _BOX_HEIGHT / 2 + 4.5, spot[1], anchor="middle")


def _arrow(way: list[Spot], centres: Mapping[Spot, float], height: float) -> str:
    """Draw an arrow as one curve, straight past the rooms of floors between."""
    path = f"M{centres[way[0]]:.1f} {_top(way[0], height) + _BOX_HEIGHT:.1f}"
    for upper, lower in pairwise(way):
        start, end = _top(upper, height) + _BOX_HEIGHT, _top(lower, height)
        middle = (start + end) / 2
        path += f"C{centres[upper]:.1f} {middle:.1f} {centres[lower]:.1f} {middle:.1f} {centres[lower]:.1f} {end:.1f}"
        if lower is not way[-1]:
            path += f"v{_BOX_HEIGHT}"
    return f'<path class="arrow" d="{path}"/>'


def _top(spot: Spot, height: float) -> float:
    return height - _EDGE - _BOX_HEIGHT - spot[0] * _FLOOR


def picture_of(name: str) -> Path:
    """Return the file of a package's picture, by the package's short name."""
    return ROOT / "docs" / "images" / f"rooms-{name}.svg"


def main() -> None:
    """Write the pictures, and print how many floors each package has."""
    for name, package in PACKAGES.items():
        picture_of(name).write_text(drawn(package), encoding="utf-8")
        print(f"{package}: {len(floors_of(imports_of(package)))} floors, drawn in {picture_of(name)}")


if __name__ == "__main__":
    main()
