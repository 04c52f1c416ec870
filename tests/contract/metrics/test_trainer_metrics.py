"""What the chart asks Prometheus about a stage, a stage exports."""

import re
import threading
from pathlib import Path

import torch

from pipelinejob.serving.chunks import PassCost
from pipelinejob.serving.scheduler import Limits, Scheduler
from pipelinejob.spec.job import Evaluation
from pipelinejob_trainer.process.stage_status import StageStatus
from pipelinejob_trainer.serving.engine import Engine
from pipelinejob_trainer.serving.front import metrics as serving
from support.training.gangs import plan

CHART = Path(__file__).parents[3] / "charts" / "pipelinejob-operator"
# Of the operator: it knows conditions, restarts, places and what is waited for, the stages do not.
OF_THE_OPERATOR = re.compile(r"pipelinejob_(operator_\w+|status_condition|restarts_total|placement_\w+|waiting_reason)")


def _asked_for() -> set[str]:
    files = [file for file in CHART.rglob("*") if file.suffix in {".json", ".yaml"}]
    found = {name for file in files for name in re.findall(r"\bpipelinejob_\w+(?=\{| >|\[| !=|\))", file.read_text())}
    return {name for name in found if not OF_THE_OPERATOR.fullmatch(name)}


def _exported_of_serving() -> set[str]:
    limits = Limits(groups=1, group_size=1, chunk_tokens=8, block=8, num_blocks=8, max_waiting=0)
    engine = Engine(Scheduler(limits), _Nothing(), num_stages=1, port=0, cost=PassCost(fixed_s=1.0, token_s=1.0))
    metrics = serving.Metrics(engine, namespace="default", job="m")
    metrics.count_request(200)
    engine.start()
    while not engine.predictions():
        threading.Event().wait(0.01)
    engine.close()
    return set(re.findall(r"^(pipelinejob_\w+)\{", metrics.text().decode(), re.MULTILINE))


class _Nothing:
    def run(self, rows: object, received: object) -> torch.Tensor:
        raise AssertionError("nothing is asked")


def test_every_metric_of_a_stage_that_the_chart_asks_for_exists() -> None:
    evaluated = plan(2, 2, evaluation=Evaluation(interval_steps=1))
    text = StageStatus(evaluated, stage=0, replica=0, attempt=1).metrics().decode()
    exported = set(re.findall(r"^(pipelinejob_\w+)\{", text, re.MULTILINE)) | _exported_of_serving()
    asked_for = _asked_for()

    assert {"pipelinejob_stage_seconds_total", "pipelinejob_serving_idle_seconds_total"} <= asked_for
    assert asked_for - exported == set()
