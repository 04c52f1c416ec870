"""What the chart asks Prometheus about a stage, a stage exports."""

import re
from pathlib import Path

from gangs import plan
from pipelinejob.spec.job import Evaluation
from pipelinejob_trainer.process.stage_status import StageStatus

CHART = Path(__file__).parents[2] / "charts" / "pipelinejob-operator"
# Of the operator: it knows conditions, restarts, places and what is waited for, the stages do not.
OF_THE_OPERATOR = re.compile(r"pipelinejob_(operator_\w+|status_condition|restarts_total|placement_\w+|waiting_reason)")


def _asked_for() -> set[str]:
    files = [file for file in CHART.rglob("*") if file.suffix in {".json", ".yaml"}]
    found = {name for file in files for name in re.findall(r"\bpipelinejob_\w+(?=\{| >|\[| !=|\))", file.read_text())}
    return {name for name in found if not OF_THE_OPERATOR.fullmatch(name)}


def test_every_metric_of_a_stage_that_the_chart_asks_for_exists() -> None:
    evaluated = plan(2, 2, evaluation=Evaluation(interval_steps=1))
    text = StageStatus(evaluated, stage=0, replica=0, attempt=1).metrics().decode()
    exported = set(re.findall(r"^(pipelinejob_\w+)\{", text, re.MULTILINE))
    asked_for = _asked_for()

    assert "pipelinejob_stage_seconds_total" in asked_for
    assert asked_for - exported == set()
