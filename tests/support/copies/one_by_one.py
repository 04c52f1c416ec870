"""Uses the schedule `OneByOne` in every way there is.

Test_new_schedule.py runs it over sources that have one.
"""

import json
import sys
from pathlib import Path
from typing import Any

from pipelinejob.base.errors import InvalidManifestError
from pipelinejob.fabric import hardware
from pipelinejob.fabric.pool import Pool, PoolGroup
from pipelinejob.planning.planner import make_plan
from pipelinejob.scheduler.catalogue import build
from pipelinejob.scheduler.comparison import COMPARABLE, outcome
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.setting import Setting
from pipelinejob.schedules.validate import validate
from pipelinejob.search.best import search
from pipelinejob.search.found import Found
from pipelinejob.spec.crds import crd
from pipelinejob.spec.job import PipelineJobSpec
from pipelinejob_operator.cli import main
from pipelinejob_operator.validation.validate import validate as judge
from support.manifests.building import manifest
from support.plans.schedule_page import undocumented

NAME = ScheduleName("OneByOne")
H100 = hardware.default().devices["H100-SXM"]


def spec_of(parallelism: dict[str, Any], schedule: dict[str, Any]) -> PipelineJobSpec:
    return PipelineJobSpec.model_validate({
        "model": {"gpt": {"numLayers": 6, "hiddenSize": 512, "numHeads": 8}},
        "data": {"corpus": "python-stdlib", "sequenceLength": 512},
        "parallelism": parallelism,
        "schedule": schedule,
        "training": {"steps": 1},
    })  # fmt: skip


def simulated() -> dict[str, Any]:
    setting = Setting(num_ranks=4, num_micro_batches=8)
    validate(build(NAME, setting))
    played = outcome(NAME, setting)
    return {
        "makespan": played.simulation.makespan_s,
        "peaks": played.peak_activations,
        "is_comparable": NAME in COMPARABLE,
    }


def planned() -> dict[str, Any]:
    spec = spec_of({"pipeline": 4}, {"name": NAME, "microBatches": 8})
    plan = make_plan(namespace="n", name="j", spec=spec, devices=(H100,) * 4, hardware=hardware.default())
    return {"planned": [plan.schedule.name, plan.prediction.step_s > 0]}


def searched() -> dict[str, Any]:
    auto = found("auto")
    return {
        "searched": sorted({each.chosen.schedule for each in found(NAME).candidates}),
        "is_looked_at_by_auto": any(NAME in str(each) for each in (*auto.candidates, *auto.rejected)),
    }


def found(name: str) -> Found:
    spec = spec_of({"pipeline": 4, "gpus": 4}, {"globalBatchSize": 8, "name": name})
    return search(spec, Pool(groups=(PoolGroup(device=H100, gpus_per_node=1, num_nodes=4),)))


def judged() -> dict[str, Any]:
    schema = crd.generate()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    spec = schema["properties"]["spec"]["properties"]
    return {
        "is_in_the_enum": NAME in spec["schedule"]["properties"]["name"]["enum"],
        "errors": errors({"name": NAME, "microBatches": 8}),
        "errors_with_chunks": errors({"name": NAME, "microBatches": 8, "virtualStages": 2}),
    }


def errors(schedule: dict[str, Any]) -> list[str]:
    try:
        judge(manifest({"spec.schedule": schedule}))
    except InvalidManifestError as error:
        return [each.path for each in error.errors]
    return []


def documented(page: str, section: str) -> dict[str, Any]:
    """Tell what the page lacks of the schedule, before and after it is told of."""
    row = "| 1F1B | (p-1)(F+B)"
    route = "| straight | 0 1 2 3 | "
    told = page.replace(row, f"| {NAME} | m |\n{row}").replace(route, f"{route}{NAME}, ") + section
    return {"undocumented": undocumented(page), "undocumented_once_told": undocumented(told)}


if __name__ == "__main__":
    page = Path(sys.argv[1]).read_text()
    told = documented(page, sys.argv[2])
    print(json.dumps({**simulated(), **planned(), **searched(), **judged(), **told}), flush=True)
    main(["schedule", "list", "-o", "json"])
