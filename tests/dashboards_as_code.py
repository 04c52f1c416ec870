"""The dashboards of charts/dashboards.py, as the tests ask about them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SOURCE = Path(__file__).parents[1] / "charts" / "dashboards.py"


def rendered() -> dict[str, str]:
    """Give each dashboard's file name and JSON, made anew."""
    spec = importlib.util.spec_from_file_location("charts_dashboards", _SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: dict[str, str] = module.rendered()
    return made


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    """Give every panel and its name."""
    for name, text in rendered().items():
        for panel in json.loads(text)["panels"]:
            if panel["type"] != "row":
                yield f"{name}: {panel['title']}", panel


def panel_queries() -> list[tuple[str, str]]:
    """Give every panel's name with each of its expressions."""
    return [(name, target["expr"]) for name, panel in panels() for target in panel["targets"]]


def filled_in(expression: str, *, namespace: str = ".*", job: str = ".*", interval: str = "1m") -> str:
    """Put values where Grafana would put its variables'."""
    return (
        expression.replace("$__rate_interval", interval).replace("$namespace", namespace).replace("$pipelinejob", job)
    )
