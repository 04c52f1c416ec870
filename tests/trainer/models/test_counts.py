"""What is counted of a layer before anything ran is what the trainer's memory then holds of it."""

import pytest

from pipelinejob.costs.layers import analytic_profile
from pipelinejob.planning.planner import make_plan
from pipelinejob.spec.job import PipelineJobSpec
from pipelinejob_trainer.profile.profile import measure


def counted_and_measured(schedule, *, width, inner, sequence, micro_batch_size):
    sizes = {"numLayers": 2, "hiddenSize": width, "numHeads": 4, "feedForwardSize": inner, "vocabularySize": 1000}
    spec = PipelineJobSpec.model_validate(
        {
            "model": {"gpt": sizes},
            "data": {"corpus": "python-stdlib", "sequenceLength": sequence},
            "parallelism": {"pipeline": 2},
            "schedule": {"name": schedule, "microBatches": 4, "microBatchSize": micro_batch_size},
            "training": {"steps": 1},
            "device": "cpu",
        }
    )
    counted = analytic_profile(spec.model, spec.data, spec.schedule, spec.training, device=spec.device)
    measured = measure(make_plan(namespace="team", name="job", spec=spec, profile=counted))
    return list(zip(counted.layers, measured.layers, strict=True))


@pytest.mark.parametrize(
    "sizes",
    [
        {"width": 96, "inner": 512, "sequence": 64, "micro_batch_size": 3},  # what is kept outweighs the matrices
        {"width": 256, "inner": 384, "sequence": 32, "micro_batch_size": 1},  # and the other way round
    ],
)
def test_counted_bytes_of_a_gpt_are_the_measured_ones(sizes):
    for counted, measured in counted_and_measured("1F1B", **sizes):
        assert counted.parameter_bytes == measured.parameter_bytes
        # Beside what grows with the width: norms' means and deviations, attention's sums, the
        # numbers of positions.
        few = sizes["sequence"] * (8 + 4 * (2 * 2 + 4) * sizes["micro_batch_size"])
        assert counted.activation_bytes == pytest.approx(measured.activation_bytes, abs=few)
        assert counted.working_bytes == pytest.approx(measured.working_bytes, rel=0.01)


def test_so_are_those_between_the_halves_of_a_split_backward_pass():
    layers = counted_and_measured("ZB-H1", width=96, inner=512, sequence=64, micro_batch_size=3)

    for counted, measured in layers:
        assert counted.between_bytes == pytest.approx(measured.between_bytes, rel=0.01)
        assert measured.working_bytes <= counted.working_bytes <= 1.2 * measured.working_bytes
