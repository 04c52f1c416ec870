"""The fabric as a picture: boxes in boxes, nodes as cells, the chain of stages over them. Pure.

Domains, and the nodes in the smallest ones, come in the order in which the chain of stages reaches
them, so that a good placement reads from left to right. In large fabrics only domains that hold a
rank are opened. Each other domain is a chip that tells how much in it is free; if there are too
many of them, one chip stands for the rest.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import groupby

from pipelinejob_operator.report.fabric_view import (
    DomainView,
    FabricView,
    NodeView,
    Rank,
    boundaries,
    closest_common_depth,
)
from pipelinejob_operator.report.pictures.svg import WIDTH, opened, rect, text

_CELL_WIDTH, _CELL_HEIGHT, _GAP = 46, 26, 12
_PADDING, _TITLE = 10, 20
_CHIP_HEIGHT, _CHIP_PX = 24, 6.4
_SMALL = 160  # nodes: a fabric of no more is shown whole
_MOST_CHIPS = 18  # domains beside each other that are one chip each
_MOST_CELLS = 48  # unused nodes of one domain that are one cell each
_MOST_REPLICAS = 4  # whose chains are drawn
_LANES = 4

_CLASSES = ("near", "far", "farther", "farthest")


def fabric_picture(view: FabricView) -> str:
    """Draw the fabric as one SVG element for a page."""
    box = _box(view.root, _Sizes(num_nodes=len(view.nodes)), WIDTH)
    drawing = _Drawing()
    drawing.put(box, 0.0, 0.0)
    chains = list(_chains(view, drawing.centres))
    label = f"{len(view.nodes)} nodes, and the stages of the pipeline on them"
    return "".join([opened(box.height, label), *drawing.shapes, *chains, *drawing.labels, "</svg>"])


def crossings_by_class(view: FabricView) -> list[tuple[str, str, int]]:
    """Return each kind of line drawn: its class, the coarsest level it crosses, and their number.

    The coarsest level comes first.
    """
    depths = Counter(
        closest_common_depth(one.path, other.path) for _, one, other in boundaries(view.nodes) if one is not other
    )
    return [(_class_of(view, depth), view.levels[depth], depths[depth]) for depth in sorted(depths)]


def _class_of(view: FabricView, depth: int) -> str:
    """Return the class of a boundary whose ends have their closest common domain at a depth."""
    return _CLASSES[min(len(view.levels) - 1 - depth, len(_CLASSES) - 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    num_nodes: int

    @property
    def is_small(self) -> bool:
        return self.num_nodes <= _SMALL


@dataclass(frozen=True, slots=True, kw_only=True)
class _Box:
    """A rectangle with what stands in it, at places relative to its own corner."""

    width: float
    height: float
    title: str = ""
    style: str = ""
    tip: str = ""
    node: NodeView | None = None
    inside: tuple[tuple[float, float, "_Box"], ...] = ()


def _box(domain: DomainView, sizes: _Sizes, width: float) -> _Box:
    """Lay a domain out within a width."""
    is_root = not domain.path
    inner = width - (0 if is_root else 2 * _PADDING)
    parts = list(_cells(domain, sizes) if _holds_nodes(domain) else _parts(domain, sizes, inner))
    placed, used_width, used_height = _flow(parts, inner)
    if is_root:
        return _Box(width=width, height=used_height, inside=placed)
    title = f"{domain.name} · {_free_text(domain)}"
    needed = max(used_width, len(title) * _CHIP_PX)
    return _Box(
        width=min(needed + 2 * _PADDING, width),
        height=used_height + _TITLE + 1.6 * _PADDING,
        title=title,
        style=f"domain d{domain.depth}",
        tip="/".join(domain.path),
        inside=tuple((x + _PADDING, y + _TITLE + _PADDING * 0.6, box) for x, y, box in placed),
    )


def _holds_nodes(domain: DomainView) -> bool:
    return len(domain.nodes[0].path) == domain.depth + 1


def _parts(domain: DomainView, sizes: _Sizes, width: float) -> Iterator[_Box]:
    """Yield the domains inside: opened if in use or the fabric is small, otherwise as chips."""
    shut: list[DomainView] = []
    for child in domain.children:
        if child.is_used or sizes.is_small:
            yield _box(child, sizes, width)
        else:
            shut.append(child)
    for child in shut[:_MOST_CHIPS] if len(shut) > _MOST_CHIPS else shut:
        yield _chip(f"{child.name} · {_free_text(child)}", "/".join(child.path))
    further = shut[_MOST_CHIPS:]
    if further:
        rest = DomainView(path=domain.path, nodes=tuple(node for child in further for node in child.nodes))
        yield _chip(f"and {len(further)} more · {_free_text(rest)}", "")


def _chip(title: str, tip: str) -> _Box:
    return _Box(width=len(title) * _CHIP_PX + 20, height=_CHIP_HEIGHT, title=title, style="chip", tip=tip)


def _cells(domain: DomainView, sizes: _Sizes) -> Iterator[_Box]:
    ours = sorted((node for node in domain.nodes if node.ranks), key=lambda node: node.ranks)
    others = sorted((node for node in domain.nodes if not node.ranks), key=lambda node: (node.busy_ratio, node.name))
    shown = others if sizes.is_small or len(others) <= _MOST_CELLS else []
    for node in [*ours, *shown]:
        yield _Box(width=_CELL_WIDTH, height=_CELL_HEIGHT, style=_cell_style(node), tip=_tip(node), node=node)
    if len(shown) < len(others):
        rest = DomainView(path=domain.path, nodes=tuple(others))
        yield _chip(f"and {len(others)} more nodes · {_free_text(rest)}", "")


def _cell_style(node: NodeView) -> str:
    if node.ranks:
        return f"cell ours{' r1' if node.ranks[0][0] % 2 else ''}"
    if node.unusable is not None:
        return "cell out"
    if node.busy_ratio == 0:
        return "cell"
    return "cell busy" if node.free == 0 else "cell partly"


def _tip(node: NodeView) -> str:
    lines = ["/".join(node.path), f"{node.free:g} of {node.capacity:g} free before this job"]
    if node.unusable:
        lines.append(f"left out: it {node.unusable}")
    lines += [f"stage {stage} of replica {replica}" for replica, stage in node.ranks]
    return "\n".join(lines)


def _free_text(domain: DomainView) -> str:
    return f"{domain.num_free} of {len(domain.nodes)} free"


def _flow(boxes: Sequence[_Box], width: float) -> tuple[tuple[tuple[float, float, _Box], ...], float, float]:
    """Put boxes side by side in rows; return their places, and the total width and height."""
    placed: list[tuple[float, float, _Box]] = []
    x = y = row_height = used = 0.0
    for box in boxes:
        if x > 0 and x + box.width > width:
            x, y, row_height = 0.0, y + row_height + _GAP, 0.0
        placed.append((x, y, box))
        used = max(used, x + box.width)
        x, row_height = x + box.width + _GAP, max(row_height, box.height)
    return tuple(placed), used, y + row_height


@dataclass(slots=True)
class _Drawing:
    """Elements in painting order (boxes, chain, labels), and where each node's cell stands."""

    shapes: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    centres: dict[str, tuple[float, float]] = field(default_factory=dict)

    def put(self, box: _Box, x: float, y: float) -> None:
        """Draw a box and all in it, its corner at (x, y)."""
        if box.style:
            radius = 5 if box.node else 9
            self.shapes.append(rect(x, y, box.width, box.height, style=box.style, tip=box.tip, radius=radius))
        if box.node is not None:
            self._put_node(box.node, x, y)
        elif box.title:
            style = "" if box.style == "chip" else "strong"
            self.labels.append(text(x + 10, y + 16, box.title, anchor="start", style=style))
        for dx, dy, inner in box.inside:
            self.put(inner, x + dx, y + dy)

    def _put_node(self, node: NodeView, x: float, y: float) -> None:
        middle = x + _CELL_WIDTH / 2, y + _CELL_HEIGHT / 2
        self.centres[node.name] = middle
        if node.ranks:
            self.labels.append(
                text(middle[0], middle[1] + 4, _ranks_text(node.ranks), anchor="middle", style="on-dark")
            )


def _ranks_text(ranks: Sequence[Rank]) -> str:
    """Write a node's stages: `3`, `0–7`, `1·3` of replica 1, `0–1 ×4` of four replicas."""
    replicas = sorted({replica for replica, _ in ranks})
    stages = sorted({stage for _, stage in ranks})
    is_run = stages == list(range(stages[0], stages[0] + len(stages)))
    if not is_run or len(ranks) < len(stages) * len(replicas):
        return f"{len(ranks)} in all" if len(ranks) > 1 else str(stages[0])
    of_stages = f"{stages[0]}–{stages[-1]}" if len(stages) > 1 else str(stages[0])
    if len(replicas) > 1:
        return f"{of_stages} ×{len(replicas)}"
    return of_stages if replicas == [0] else f"{replicas[0]}·{of_stages}"


def _chains(view: FabricView, centres: dict[str, tuple[float, float]]) -> Iterator[str]:
    """Draw the boundaries between stages on different nodes, those of later replicas paler."""
    found = [(rank, one, other) for rank, one, other in boundaries(view.nodes) if one is not other]
    for replica, of_replica in groupby(found, key=lambda each: each[0][0]):
        if replica >= _MOST_REPLICAS:
            return
        for index, ((_, stage), one, other) in enumerate(of_replica):
            depth = closest_common_depth(one.path, other.path)
            style = f"chain {_class_of(view, depth)}{' more' if replica else ''}"
            tip = f"stage {stage} to {stage + 1} of replica {replica}\ncrosses a {view.levels[depth]}"
            yield _link(centres[one.name], centres[other.name], lane=(index + replica) % _LANES, style=style, tip=tip)


def _link(start: tuple[float, float], end: tuple[float, float], *, lane: int, style: str, tip: str) -> str:
    """Draw a line from cell to cell: straight, or below the row and along the other's left side.

    It passes over no cell and no title. Lanes keep lines between the same rows apart.
    """
    (x1, y1), (x2, y2) = start, end
    left = x2 - _CELL_WIDTH / 2
    if abs(y1 - y2) < 1 and 0 < x2 - x1 < _CELL_WIDTH + 2 * _GAP:
        path = f"M{x1 + _CELL_WIDTH / 2:.1f} {y1:.1f}L{left:.1f} {y2:.1f}"
    else:
        below, aside = y1 + _CELL_HEIGHT / 2 + 2.5 + 3.2 * lane, left - 3 - 1.3 * lane
        path = f"M{x1:.1f} {y1 + _CELL_HEIGHT / 2:.1f}V{below:.1f}H{aside:.1f}V{y2:.1f}H{left:.1f}"
    return f'<path class="{style}" d="{path}"><title>{escape(tip)}</title></path>'
