"""Uses the model family `tall` in every way there is.

Test_new_family.py runs it over sources that have one.
"""

import json
from typing import Any

from pipelinejob.base.errors import InvalidManifestError
from pipelinejob.fabric import hardware
from pipelinejob.planning.planner import make_plan
from pipelinejob.spec.job import PipelineJobSpec
from pipelinejob_operator.validation.validate import validate
from support.manifests.building import manifest

TALL = {"tall": {"pairs": 3, "width": 16}}
TIED = {"tall": {"pairs": 3, "width": 16, "tieEmbeddings": True}}


def errors(model: dict[str, Any], **changes: Any) -> list[str]:
    try:
        validate(manifest({"spec.model": model} | changes))
    except InvalidManifestError as error:
        return [each.path for each in error.errors]
    return []


if __name__ == "__main__":
    spec = PipelineJobSpec.model_validate({
        "model": TALL,
        "data": {"corpus": "python-stdlib"},
        "parallelism": {"pipeline": 4},
        "schedule": {"microBatches": 8},
        "training": {"steps": 1},
    })  # fmt: skip
    device = hardware.default().devices["H100-SXM"]
    plan = make_plan(namespace="n", name="j", spec=spec, devices=(device,) * 4, hardware=hardware.default())
    tied = spec.model.model_validate(TIED)
    asynchronous = {"spec.schedule.name": "PipeDream", "spec.training.clipNorm": 0}
    print(
        json.dumps(
            {
                "errors": errors(TALL),
                "errors_beside_gpt": errors({**TALL, "gpt": {"numLayers": 2, "hiddenSize": 8, "numHeads": 1}}),
                "errors_with_too_many_stages": errors(TALL, **{"spec.parallelism.pipeline": 9}),
                "errors_of_tying_with_pipedream": errors(TIED, **asynchronous),
                "parameters": spec.model.layer_sizes(8).parameters,
                "tied_bytes": tied.tied_bytes,
                "planned_layers": sum(stage.num_layers for stage in plan.stages),
                "shrunk": spec.model.shrunk().built_in.dump(),
            }
        )
    )
