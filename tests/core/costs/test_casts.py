"""Copies of parameters in bf16: there once in a step, but once for each micro-batch where weights change meanwhile."""

import pytest

from pipelinejob.contract.plan import CostSource
from pipelinejob.costs.layers import LayerCost, Profile
from pipelinejob.planning.planner import make_plan
from pipelinejob.spec.job import PipelineJobSpec


def memory(schedule, *, cast_bytes):
    layer = LayerCost(
        name="x",
        forward_s=1.0,
        backward_input_s=1.0,
        backward_weight_s=1.0,
        parameter_bytes=100,
        cast_bytes=cast_bytes,
        activation_bytes=10,
        output_bytes=1,
    )
    spec = PipelineJobSpec.model_validate(
        {
            "model": {"gpt": {"numLayers": 6, "hiddenSize": 128, "numHeads": 4}},
            "data": {"corpus": "python-stdlib"},
            "parallelism": {"pipeline": 4},
            "schedule": {"name": schedule, "microBatches": 8},
            "training": {"steps": 10},
            "device": "cpu",
        }
    )
    profile = Profile(source=CostSource.PROFILED, layers=(layer,) * 8)
    plan = make_plan(namespace="team", name="job", spec=spec, profile=profile)
    return [stage.memory_bytes for stage in plan.stages]


@pytest.mark.parametrize(
    ("schedule", "copies"),
    [("1F1B", [1, 1, 1, 1]), ("GPipe", [1, 1, 1, 1]), ("ZB-H1", [1, 1, 1, 1]), ("PipeDream", [4, 3, 2, 1])],
)
def test_copies_are_as_many_as_weights_that_micro_batches_met(schedule, copies):
    """Two layers a stage, 50 bytes a copy of each."""
    without, with_copies = (memory(schedule, cast_bytes=each) for each in (0, 50))

    assert [ours - theirs for ours, theirs in zip(with_copies, without, strict=True)] == [100 * each for each in copies]
