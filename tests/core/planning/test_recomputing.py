"""What stages compute again is as little as their memory demands, chosen together with the partition."""

import random
from itertools import combinations, pairwise, product

import pytest

from pipelinejob.base.errors import TooLargeError
from pipelinejob.contract.plan import CostSource, Plan
from pipelinejob.costs.layers import LayerCost, Profile
from pipelinejob.costs.stages import Division
from pipelinejob.planning.planner import make_plan
from pipelinejob.planning.playing import schedule_of
from pipelinejob.planning.step_prediction import simulated
from pipelinejob.schedules.recomputation import Recomputing, spread
from pipelinejob.spec.chosen import Chosen, resolved
from pipelinejob.spec.job import PipelineJobSpec


def spec(*, pipeline, num_layers, name="1F1B", micro_batches=6, schedule=None, **others):
    return PipelineJobSpec.model_validate({
        "model": {"entrypoint": "a:b", "numLayers": num_layers},
        "data": {"corpus": "python-stdlib"},
        "parallelism": {"pipeline": pipeline},
        "schedule": {"name": name, "microBatches": micro_batches} | (schedule or {}),
        "training": {"steps": 1},
        **others,
    })  # fmt: skip


def profile(activations, memory, *, forward_s=None):
    """Layers of 100 bytes of parameters (400 with gradient and moments), these bytes of activations, 1 of output."""
    layers = (
        LayerCost(
            name="x", forward_s=seconds, backward_input_s=seconds, backward_weight_s=seconds,
            parameter_bytes=100, activation_bytes=kept, output_bytes=1,
        )
        for kept, seconds in zip(activations, forward_s or [1.0] * len(activations), strict=True)
    )  # fmt: skip
    return Profile(source=CostSource.PROFILED, layers=tuple(layers), device_memory_bytes=memory)


def plan_of(spec, costs):
    return make_plan(namespace="team", name="job", spec=spec, profile=costs)


def best_of_all(job, costs):
    """Try every partition, and everything that its ranks may compute again; return the shortest step that fits."""
    num_layers, ranks = len(costs.layers), job.parallelism.pipeline
    schedule = schedule_of(plan_of(job, costs.model_copy(update={"device_memory_bytes": None})))
    best = float("inf")
    for borders in combinations(range(1, num_layers), ranks - 1):
        cuts = tuple(pairwise((0, *borders, num_layers)))
        for again in product(*(range(end - first + 1) for first, end in cuts)):
            division = Division(
                profile=costs, cuts=cuts, routes=schedule.routes, schedule=job.schedule.recomputing(again)
            )
            if all(division.memory_bytes(schedule, rank) <= costs.device_memory_bytes for rank in range(ranks)):
                best = min(best, simulated(division, schedule, replicas=1).step_s)
    return best


@pytest.mark.parametrize("name", ["1F1B", "GPipe", "ZB-H1"])
@pytest.mark.parametrize("seed", range(8))
def test_no_partition_and_nothing_computed_again_is_quicker(name, seed):
    dice = random.Random(seed)
    ranks = dice.choice([2, 3])
    activations = [dice.randint(5, 60) for _ in range(dice.randint(ranks + 2, 6))]
    forward_s = [dice.uniform(0.5, 2) for _ in activations]
    job = spec(pipeline=ranks, num_layers=len(activations), name=name)
    free = plan_of(job, profile(activations, None, forward_s=forward_s))
    whole = plan_of(
        spec(pipeline=ranks, num_layers=len(activations), name=name, schedule={"recompute": True}),
        profile(activations, None, forward_s=forward_s),
    )
    most, least = (max(stage.memory_bytes for stage in each.stages) for each in (free, whole))
    costs = profile(activations, round(least + dice.uniform(0.1, 0.9) * (most - least)), forward_s=forward_s)

    planned = plan_of(job, costs)

    assert all(stage.memory_bytes <= costs.device_memory_bytes for stage in planned.stages)
    assert planned.prediction.step_s <= best_of_all(job, costs) * (1 + 1e-9)


def test_where_all_fits_nothing_is_computed_again():
    planned = plan_of(spec(pipeline=4, num_layers=8), profile([10] * 8, 2**20))

    assert [stage.recomputing for stage in planned.stages] == [Recomputing.NONE] * 4
    assert planned.schedule.recompute is None


def test_stages_that_hold_more_compute_more_again():
    """2 layers a stage: 800 bytes, 20 a micro-batch in flight, of which 4, 3, 2, 1 are; what comes ahead, 6 to 12."""
    job = spec(pipeline=4, num_layers=8, partition={"layers": [2, 2, 2, 2]})

    planned = plan_of(job, profile([10] * 8, 800 + 12 + 55))

    assert [stage.recompute_text for stage in planned.stages] == ["selective, 1 of 2 layers"] * 2 + ["none"] * 2
    assert [stage.num_recomputed for stage in planned.stages] == [1, 1, 0, 0]
    assert planned.schedule.recompute_layers == (1, 1, 0, 0)
    assert Plan.from_json(planned.to_json()).stages == planned.stages


def test_what_does_not_fit_with_all_computed_again_is_refused():
    with pytest.raises(TooLargeError, match="no split of the layers over 2 stages fits"):
        plan_of(spec(pipeline=2, num_layers=4), profile([10] * 4, 700))


def test_a_manifest_that_forbids_it_is_planned_without():
    job = spec(pipeline=2, num_layers=4, schedule={"recompute": False})

    with pytest.raises(TooLargeError):
        plan_of(job, profile([100] * 4, 800 + 250))
    assert plan_of(spec(pipeline=2, num_layers=4), profile([100] * 4, 800 + 250)).schedule.recompute_layers


def test_layers_are_counted_from_the_first_stretch_on():
    assert spread(((0, 2), (6, 9)), 3) == (2, 1)
    assert spread(((6, 9), (0, 2)), 3) == (1, 2)
    assert spread(((0, 2), (6, 9)), None) == (2, 3)
    assert spread(((0, 2),), 7) == (2,)


def test_a_choice_layer_by_layer_is_made_anew_for_the_devices_of_its_place():
    job = spec(pipeline=2, num_layers=4)
    chosen = {"pipeline": 2, "data": 1, "tensor": 1, "schedule": "1F1B", "micro_batches": 6, "micro_batch_size": 1}

    some = resolved(job, Chosen(**chosen, recompute=True, recompute_layers=(1, 0)))
    none = resolved(job, Chosen(**chosen))

    assert some.schedule.leaves_recomputing_open
    assert none.schedule.recompute is False
