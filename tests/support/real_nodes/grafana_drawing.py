"""Dashboards as Grafana shows them: its own panels over a real Prometheus' answers, drawn in a browser.

Grafana itself cannot be had from a package registry; its panels can. npm fetches them once into a
cache folder.
"""

from __future__ import annotations

import copy
import json
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import toolchain

_SOURCE = Path(__file__).parents[2] / "grafana"
_CACHE = toolchain.home() / "grafana"
_WIDTH = 1600  # pixels of the page
_POINTS = 200  # of a line, at most

Panel = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a panel, as it was drawn."""

    name: str
    color: str
    dash: str  # solid or dash


@dataclass(frozen=True, slots=True)
class Drawn:
    """One panel, as it was drawn."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What is asked of Prometheus: where it is, and the time that is looked at."""

    url: str
    start: float
    end: float
    rate_interval: str


def draw(
    board: Mapping[str, Any], window: Window, chosen: Mapping[str, Sequence[str]], *, picture: Path, theme: str = "dark"
) -> tuple[Drawn, ...]:
    """Draw a dashboard with what was chosen in its variables; write a picture of it, and give its panels."""
    panels = [{**panel, "frames": [*_frames(panel, window)]} for panel in laid_out(board["panels"], chosen)]
    page = {
        "width": _WIDTH,
        "theme": theme,
        "from": window.start * 1000,
        "to": window.end * 1000,
        "panels": panels,
    }
    script = _script()
    file = picture.with_suffix(".html")
    file.write_text(
        f"<!doctype html><meta charset=utf-8><link rel=stylesheet href='{script.with_suffix('.css').as_uri()}'>"
        f"<div id=root></div><script>window.page = {json.dumps(page)}</script><script src='{script.as_uri()}'></script>"
    )
    height = max(each["gridPos"]["y"] + each["gridPos"]["h"] for each in panels) * 38 + 40
    _browse(file, f"--screenshot={picture}", f"--window-size={_WIDTH + 40},{height}")
    dom = _browse(file, "--dump-dom", f"--window-size={_WIDTH + 40},{height}")
    found = re.search(r'<script type="application/json" id="drawn">(.*?)</script>', dom, re.DOTALL)
    assert found is not None, f"nothing was drawn; open {file} in a browser and read its console"
    return tuple(Drawn(each["title"], tuple(Line(**line) for line in each["lines"])) for each in json.loads(found[1]))


def type_errors(board: Mapping[str, Any]) -> list[str]:
    """Say what Grafana's own types have against a dashboard: fields that they do not know, or miss."""
    _install()
    (_CACHE / "types.ts").write_text((_SOURCE / "types.ts").read_text())
    (_CACHE / "board.ts").write_text(
        f'import type {{ Dashboard }} from "./types";\nexport const board: Dashboard = {json.dumps(board, indent=1)};\n'
    )
    flags = ("--noEmit", "--strict", "--skipLibCheck", "--moduleResolution", "node", "--target", "es2020")
    command = ["node_modules/.bin/tsc", *flags, "board.ts"]
    return subprocess.run(command, cwd=_CACHE, capture_output=True, text=True, check=False).stdout.splitlines()


def laid_out(panels: Sequence[Panel], chosen: Mapping[str, Sequence[str]]) -> Iterator[Panel]:
    """Return the panels with their variables filled in, a repeated row with all of its panels once for each value."""
    shift = 0
    for row in _rows(panels):
        repeated = row[0].get("repeat")
        height = max(each["gridPos"]["y"] + each["gridPos"]["h"] for each in row) - row[0]["gridPos"]["y"]
        for index, value in enumerate(chosen[repeated] if repeated else (None,)):
            shift += height if index else 0
            values = chosen if value is None else {**chosen, repeated: (value,)}
            for panel in row:
                yield _filled_in(panel, values, shift)


def _rows(panels: Sequence[Panel]) -> Iterator[list[Panel]]:
    starts = [index for index, panel in enumerate(panels) if panel["type"] == "row"]
    for start, end in zip(starts, [*starts[1:], len(panels)], strict=True):
        yield [*panels[start:end]]


def _filled_in(panel: Panel, values: Mapping[str, Sequence[str]], shift: int) -> Panel:
    made = copy.deepcopy(panel)
    made["gridPos"]["y"] += shift
    for name, chosen in values.items():
        made["title"] = made["title"].replace(f"${name}", " + ".join(chosen))
        for target in made.get("targets", ()):
            target["expr"] = target["expr"].replace(f"${name}", "|".join(chosen))
    return made


def _frames(panel: Panel, window: Window) -> Iterator[dict[str, Any]]:
    for target in panel.get("targets", ()):
        expression = target["expr"].replace("$__rate_interval", window.rate_interval)
        step = max(1, (window.end - window.start) / _POINTS)
        asked = {"query": expression, "start": window.start, "end": window.end, "step": step}
        with urllib.request.urlopen(f"{window.url}/api/v1/query_range?{urllib.parse.urlencode(asked)}") as answer:
            results = json.loads(answer.read())["data"]["result"]
        for result in results:
            labels = result["metric"]
            yield {
                "refId": target["refId"],
                "name": _legend(target["legendFormat"], labels),
                "labels": labels,
                "times": [time * 1000 for time, _ in result["values"]],
                "values": [None if value == "NaN" else float(value) for _, value in result["values"]],
            }


def _legend(text: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), text)


def _script() -> Path:
    """Return the drawing program with Grafana's components in it, bundled anew from cached packages."""
    _install()
    bundle = _CACHE / "draw.js"
    source = _CACHE / "draw.jsx"
    source.write_text((_SOURCE / "draw.jsx").read_text())
    production = '--define:process.env.NODE_ENV="production"'
    loaders = ("--loader:.svg=dataurl", "--loader:.ttf=empty")
    flags = ("--bundle", f"--outfile={bundle}", "--jsx=automatic", production, *loaders)
    _do("node_modules/.bin/esbuild", source.name, *flags)
    return bundle


def _install() -> None:
    """Fetch the packages, if those in the cache are not the ones that are pinned."""
    _CACHE.mkdir(parents=True, exist_ok=True)
    wanted = (_SOURCE / "package.json").read_text()
    installed = _CACHE / "installed.json"
    if not installed.exists() or installed.read_text() != wanted:
        (_CACHE / "package.json").write_text(wanted)
        _do("npm", "install", "--ignore-scripts", "--legacy-peer-deps", "--no-audit", "--no-fund", "--no-package-lock")
        installed.write_text(wanted)


def _browse(file: Path, *flags: str) -> str:
    common = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=20000")
    return _do("chromium", *common, f"--user-data-dir={_CACHE / 'chromium'}", *flags, file.as_uri())


def _do(*command: str) -> str:
    done = subprocess.run(command, cwd=_CACHE, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout
