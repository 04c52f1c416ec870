"""The Grafana dashboards, as code; `make generate` writes them to the chart's files/dashboards.

Every panel has a unit and a sentence; every number's metric is declared in the trainer's
metrics.py (of serving, front/metrics.py), or the operator's opmetrics.py and jobmetrics.py. Tests
parse each expression, ask a real Prometheus for it, and draw what comes with Grafana's own panels.
"""

import json
import sys
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder

import job_board
import operator_board
import serving_board

OF_INTERVALS = ("auto", "auto_count", "auto_min")
FOLDER = Path(__file__).parent / "pipelinejob-operator" / "files" / "dashboards"


def rendered() -> dict[str, str]:
    """Return each dashboard's file name and JSON."""
    boards = {
        "pipelinejob.json": job_board.board(),
        "serving.json": serving_board.board(),
        "operator.json": operator_board.board(),
    }
    return {name: json.dumps(_plain(board), sort_keys=True, indent=1) + "\n" for name, board in boards.items()}


def _plain(board: dashboard.Dashboard) -> dict[str, Any]:
    """Return a dashboard as Grafana's types have it: the SDK writes what only intervals have to all variables."""
    made: dict[str, Any] = json.loads(JSONEncoder().encode(board.build()))
    for variable in made["templating"]["list"]:
        for field in OF_INTERVALS:
            del variable[field]
    return made


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in rendered().items():
        (FOLDER / name).write_text(text)
        sys.stdout.write(f"{FOLDER / name}\n")
