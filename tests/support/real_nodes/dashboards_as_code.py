"""The dashboards of charts/dashboards.py, as the tests ask about them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from dashboards import rendered


def boards() -> dict[str, dict[str, Any]]:
    """Return each dashboard by its file's name."""
    return {name: json.loads(text) for name, text in rendered().items()}


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    """Return every panel and its name."""
    for name, board in boards().items():
        for panel in board["panels"]:
            if panel["type"] != "row":
                yield f"{name}: {panel['title']}", panel


def panel_queries() -> list[tuple[str, str]]:
    """Return every panel's name with each of its expressions."""
    return [(name, target["expr"]) for name, panel in panels() for target in panel["targets"]]


def filled_in(expression: str, *, namespace: str = ".*", job: str = ".*", interval: str = "1m") -> str:
    """Put values where Grafana would put its variables'."""
    return (
        expression.replace("$__rate_interval", interval).replace("$namespace", namespace).replace("$pipelinejob", job)
    )


def of_training(found: Iterable[Any]) -> list[Any]:
    """Return those, by names of boards or of panels first in each, that a job which trains fills with lines."""
    return [each for each in found if not (each if isinstance(each, str) else each[0]).startswith("serving.json")]
