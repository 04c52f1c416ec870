"""What is counted of a model with adapters before anything ran is what the trainer's memory then holds of it."""

import pytest

from pipelinejob.contract.plan import Plan
from pipelinejob.costs.layers import LayerCost, analytic_profile
from pipelinejob.planning.planner import make_plan
from pipelinejob.spec.job import PipelineJobSpec
from pipelinejob_trainer.profile.profile import measure

SEQUENCE, ROWS = 64, 3


def plan_of(more: dict[str, object]) -> Plan:
    spec = PipelineJobSpec.model_validate(
        {
            "model": {"gpt": {"numLayers": 16, "hiddenSize": 4096, "numHeads": 32, "vocabularySize": 32000}},
            "data": {"corpus": "python-stdlib", "sequenceLength": 1024},
            "parallelism": {"pipeline": 4},
            "schedule": {"name": "1F1B", "microBatches": 8, "microBatchSize": 1},
            **more,
        }
    )
    counted = analytic_profile(spec.model, spec.data, spec.schedule, spec.training, device=spec.device)
    return make_plan(namespace="team", name="job", spec=spec, profile=counted)


def counted_and_measured(schedule: str, **training: object) -> list[tuple[LayerCost, LayerCost]]:
    sizes = {"numLayers": 2, "hiddenSize": 96, "numHeads": 4, "feedForwardSize": 512, "vocabularySize": 1000}
    spec = PipelineJobSpec.model_validate(
        {
            "model": {"gpt": sizes},
            "data": {"corpus": "python-stdlib", "sequenceLength": SEQUENCE},
            "parallelism": {"pipeline": 2},
            "schedule": {"name": schedule, "microBatches": 4, "microBatchSize": ROWS},
            "training": {"steps": 1, **training},
            "device": "cpu",
        }
    )
    counted = analytic_profile(spec.model, spec.data, spec.schedule, spec.training, device=spec.device)
    measured = measure(make_plan(namespace="team", name="job", spec=spec, profile=counted))
    assert measured is not None
    return list(zip(counted.layers, measured.layers, strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("targets", [["*"], ["qkv", "feed_forward_in"], ["layers.2.attention_out"]], ids=str)
def test_counted_bytes_of_a_model_with_adapters_are_the_measured_ones(targets: list[str], precision: str) -> None:
    layers = counted_and_measured("ZB-H1", lora={"rank": 4, "targets": targets}, precision=precision)

    # Beside what grows with the width: norms' means and deviations, attention's sums, the numbers
    # of positions.
    few = SEQUENCE * (8 + 4 * (2 * 2 + 4) * ROWS)
    for counted, measured in layers:
        assert counted.parameter_bytes == measured.parameter_bytes
        assert counted.frozen_bytes == measured.frozen_bytes
        assert counted.cast_bytes == measured.cast_bytes
        assert counted.activation_bytes == pytest.approx(measured.activation_bytes, abs=few)
        assert counted.between_bytes == pytest.approx(measured.between_bytes, rel=0.05, abs=few)
        assert 0.98 * measured.working_bytes <= counted.working_bytes
    assert sum(counted.frozen_bytes for counted, _ in layers) > 5 * sum(
        counted.parameter_bytes for counted, _ in layers
    )


def test_a_stage_with_adapters_needs_a_fraction_of_what_the_whole_model_needs() -> None:
    whole, adapted = (
        plan_of({"training": {"steps": 1, "precision": "bf16", **more}})
        for more in ({}, {"lora": {"rank": 8, "targets": ["*"]}})
    )

    for one, other in zip(whole.stages, adapted.stages, strict=True):
        assert other.gradient_bytes is not None
        assert other.gradient_bytes < one.parameter_bytes / 50
        assert other.memory_bytes < one.memory_bytes / 4
        assert other.backward_weight_s < one.backward_weight_s / 10
        assert other.backward_input_s == pytest.approx(one.backward_input_s, rel=0.1)
