"""Plans: what is decided, what is promised, what is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelinejob.base.errors import SpecError
from pipelinejob.base.timeline import SpanKind, bubble_ratio
from pipelinejob.contract.plan import CostSource, Plan
from pipelinejob.costs.layers import LayerCost, Profile
from pipelinejob.planning.planner import make_plan, predicted_timeline
from pipelinejob.spec.job import PipelineJobSpec
from support.examples import examples

GPT = {"gpt": {"numLayers": 6, "hiddenSize": 128, "numHeads": 4}}
GPT3 = {"gpt": {"numLayers": 96, "hiddenSize": 12288, "numHeads": 96, "vocabularySize": 50257}}


def spec(*, pipeline=4, micro_batches=8, micro_batch_size=2, schedule="1F1B", **others):
    manifest = {
        "model": GPT,
        "data": {"corpus": "python-stdlib"},
        "parallelism": {"pipeline": pipeline},
        "schedule": {"name": schedule, "microBatches": micro_batches, "microBatchSize": micro_batch_size},
        "training": {"steps": 10},
        "device": "cpu",
    }
    return PipelineJobSpec.model_validate(manifest | others)


def layer(*, forward_s=1.0, backward_s=2.0, **others):
    sizes = {"parameter_bytes": 100, "activation_bytes": 10, "output_bytes": 1}
    halves = {"backward_input_s": backward_s / 2, "backward_weight_s": backward_s / 2}
    return LayerCost(name="x", forward_s=forward_s, **(halves | sizes | others))


def profile(*layers, **others):
    return Profile(source=CostSource.PROFILED, layers=layers, **others)


def plan_of(spec, profile=None):
    return make_plan(namespace="team", name="job", spec=spec, profile=profile)


def cuts(plan):
    assert [stage.chunks for stage in plan.stages] == [(cut,) for cut in plan.cuts]
    return list(plan.cuts)


EIGHT_LAYERS = [layer()] * 8


def sharded(sharding, *layers, schedule="1F1B", **others):
    degrees = {"parallelism": {"pipeline": 2, "data": 2, "sharding": sharding}}
    return plan_of(spec(micro_batches=4, schedule=schedule, **degrees), profile(*layers, **others))


def test_of_parameters_that_replicas_share_a_plan_holds_half_and_two_layers():
    layers = [layer(), layer(parameter_bytes=300), *EIGHT_LAYERS[2:]]

    alone, shared = (sharded(each, *layers).stages[0] for each in ("optimizer", "full"))

    assert (alone.weight_bytes, shared.weight_bytes) == (None, 300)
    assert shared.parameter_bytes == alone.parameter_bytes == 600
    assert shared.memory_bytes - alone.memory_bytes == 300 + 400 - 600


@pytest.mark.parametrize(
    ("schedule", "later_s"),
    [
        ("1F1B", 4 * (9 + 2)),  # a whole pass back works 2 s a layer, which hides all but the first
        ("ZB-H1", 4 * (9 + 8 + 9)),  # the first half goes back to the output of the model's first layer
    ],
)
def test_passes_wait_for_layers_that_are_gathered(schedule, later_s):
    """Of 100 bytes of a layer 50 are on their way for 2 s, from when the layer before begins, which works for 1 s."""
    degrees = {"pipeline": 1, "data": 2}
    slow = profile(*EIGHT_LAYERS, link_bytes_per_s=25.0)

    none, full = (
        plan_of(spec(micro_batches=4, schedule=schedule, parallelism=degrees | {"sharding": each}), slow)
        for each in ("none", "full")
    )

    only_scattered_s = 800 / 25 / 2  # what else were gathered behind the update is gathered by passes
    assert full.prediction.step_s == pytest.approx(none.prediction.step_s + later_s - only_scattered_s)


def test_what_full_does_not_go_with_is_not_planned():
    with pytest.raises(SpecError, match="on two ranks of a pipeline"):
        sharded("full", *EIGHT_LAYERS, schedule="DualPipe")


def test_a_balanced_plan_promises_what_can_be_worked_out_by_hand():
    plan = plan_of(spec(), profile(*EIGHT_LAYERS))

    assert cuts(plan) == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert plan.prediction.step_s == 6 * (8 + 3)
    assert plan.prediction.bubble_ratio == pytest.approx(3 / 11)
    assert plan.prediction.tokens_per_s == pytest.approx(8 * 2 * 128 / 66)
    assert plan.prediction.source is CostSource.PROFILED
    # 2 layers of (parameter, gradient, two moments of 100 bytes) and, per micro-batch in flight, 2
    # x 10 bytes; messages of a byte are received ahead, 8 from each neighbour
    assert [stage.memory_bytes for stage in plan.stages] == [880 + 8, 860 + 16, 840 + 16, 820 + 8]
    assert [stage.output_bytes for stage in plan.stages] == [1, 1, 1, 0]


def test_what_a_step_does_outside_its_schedule_is_part_of_the_step():
    plan = plan_of(spec(), profile(*[layer(optimizer_s=0.25)] * 8, step_overhead_s=0.125))

    assert plan.prediction.step_s == 66 + 0.5 + 0.125
    assert plan.prediction.bubble_ratio == pytest.approx(3 / 11)


def test_stages_that_share_two_cores_also_share_them_for_the_optimiser():
    alone = profile(*[layer(optimizer_s=1.0)] * 8)
    shared = alone.model_copy(update={"concurrency": 2})

    assert plan_of(spec(), alone).prediction.step_s == 66 + 2
    assert plan_of(spec(), shared).prediction.step_s == pytest.approx(102 + 4)


def test_what_stages_wait_for_a_shared_core_is_part_of_their_bubble():
    shared = profile(*EIGHT_LAYERS, concurrency=2)

    prediction = plan_of(spec(), shared).prediction

    assert prediction.step_s == pytest.approx(102)
    assert prediction.bubble_ratio == pytest.approx(1 - 48 / 102)  # each computes for 48 s


def test_replicas_share_the_cores_of_their_machine_too():
    shared = profile(*EIGHT_LAYERS, concurrency=2)

    plan = plan_of(spec(parallelism={"pipeline": 4, "data": 2}), shared)

    assert plan.prediction.step_s == pytest.approx(4 * 48)  # eight ranks, never fewer than two of them computing


def test_a_slow_link_makes_the_step_longer():
    fast, slow = profile(*EIGHT_LAYERS), profile(*EIGHT_LAYERS, link_s=0.5, link_bytes_per_s=2.0)

    assert plan_of(spec(), slow).prediction.step_s > plan_of(spec(), fast).prediction.step_s + 6 * 1.0


def test_replicas_multiply_the_tokens_and_sum_their_gradients():
    parallelism = {"pipeline": 4, "data": 4}
    plan = plan_of(spec(parallelism=parallelism), profile(*EIGHT_LAYERS, link_bytes_per_s=1e9))

    assert plan.prediction.step_s == pytest.approx(66 + 2 * 3 / 4 * 200 / 1e9, rel=1e-6)
    assert plan.prediction.tokens_per_s == pytest.approx(4 * 8 * 2 * 128 / plan.prediction.step_s)


HEAVY_HEAD = [*[layer()] * 95, layer(forward_s=5.0, backward_s=10.0)]  # a head worth four layers beside the last one


@pytest.mark.parametrize(
    ("layers", "speeds", "even_s", "planned_s"),
    [
        (HEAVY_HEAD, None, 1404, 1185),  # + 18.5 % over the even split
        ([layer()] * 96, (1.0, 1.0, 1.0, 0.6, 1.0, 1.0, 1.0, 1.0), 1612, 1193),  # + 35.1 %
    ],
)
def test_unequal_layers_and_devices_are_split_to_the_shortest_step(layers, speeds, even_s, planned_s):
    """1F1B of 24 micro-batches on 8 stages; published splits of the same two cases reach 1185 and 1214."""
    measured = profile(*layers, stage_speeds=speeds)
    job = {"pipeline": 8, "micro_batches": 24, "model": {"entrypoint": "a:b", "numLayers": 96}}

    even = plan_of(spec(**job, partition={"layers": [12] * 8}), measured)

    assert even.prediction.step_s == pytest.approx(even_s)
    assert plan_of(spec(**job), measured).prediction.step_s == pytest.approx(planned_s)


def test_the_first_stage_has_no_input_gradient_to_give():
    """What layer 0 says of one is done with its weights, so that the second layer's alone is left."""
    plan = plan_of(spec(), profile(*EIGHT_LAYERS))

    assert [(s.backward_input_s, s.backward_weight_s) for s in plan.stages] == [(1, 3), (2, 2), (2, 2), (2, 2)]
    assert [s.backward_s for s in plan.stages] == [4, 4, 4, 4]


def test_a_given_partition_is_kept():
    plan = plan_of(spec(partition={"layers": [1, 1, 1, 5]}), profile(*EIGHT_LAYERS))

    assert cuts(plan) == [(0, 1), (1, 2), (2, 3), (3, 8)]


def test_a_slow_device_gets_fewer_layers():
    plan = plan_of(spec(), profile(*EIGHT_LAYERS, stage_speeds=(1.0, 1.0, 1.0, 0.5)))

    assert cuts(plan)[-1] == (7, 8)
    assert plan.stages[-1].forward_s == 2.0


def test_layers_move_to_where_memory_is():
    # Unbounded, the heavy first layer would share its stage; 4 x 700 bytes of state leave no room
    # beside it.
    layers = [layer(parameter_bytes=700), *[layer()] * 7]

    assert cuts(plan_of(spec(), profile(*layers)))[0] == (0, 2)
    assert cuts(plan_of(spec(), profile(*layers, device_memory_bytes=3000)))[0] == (0, 1)


@pytest.mark.parametrize(
    ("given", "costs", "problem"),
    [
        (
            {"pipeline": 9},
            None,
            "spec.parallelism.pipeline: 9 stages cannot share 8 layers; use at most 8",
        ),
        (
            {"partition": {"layers": [2, 2, 2]}},
            None,
            (
                "spec.partition.layers: has 3 entries but the schedule has 4 stages; "
                "give 4, or leave partition out to have it chosen"
            ),
        ),
        (
            {"partition": {"layers": [2, 2, 2, 3]}},
            None,
            "spec.partition.layers: the stages hold 9 layers together but the model has 8; make the sum 8",
        ),
        ({}, profile(layer()), "spec.model: has 8 layers but the profile measured 1; profile this model again"),
        (
            {},
            profile(*EIGHT_LAYERS, stage_speeds=(1.0,)),
            "spec.parallelism.pipeline: 4 stages but the profile gives the speeds of 1; profile again",
        ),
        (
            {},
            profile(*EIGHT_LAYERS, device_memory_bytes=500),
            (
                "spec.parallelism.pipeline: no split of the layers over 4 stages fits into 0.0 GiB a stage; "
                "use more stages or smaller micro-batches"
            ),
        ),
    ],
)
def test_what_cannot_be_planned_is_refused_with_the_way_out(given, costs, problem):
    with pytest.raises(SpecError) as error:
        plan_of(spec(**given), costs)

    assert str(error.value) == problem


times = st.floats(0.001, 5)


@settings(max_examples=examples(25), deadline=None)
@given(
    costs=st.lists(st.builds(layer, forward_s=times, backward_s=times, optimizer_s=times), min_size=8, max_size=8),
    schedule=st.sampled_from(["GPipe", "1F1B"]),
    concurrency=st.sampled_from([None, 2]),
    link_s=st.floats(0, 3),
)
def test_a_plan_reads_back_equal_and_its_timeline_keeps_its_promises(costs, schedule, concurrency, link_s):
    measured = profile(*costs, concurrency=concurrency, link_s=link_s, step_overhead_s=0.5)
    plan = plan_of(spec(schedule=schedule), measured)
    timeline = predicted_timeline(plan, measured)

    assert Plan.from_json(plan.to_json()) == plan
    assert [bubble_ratio(stage.spans) for stage in timeline.stages] == pytest.approx(
        [stage.bubble_ratio for stage in plan.stages], abs=1e-9
    )
    ends = [[span.kind for span in stage.spans[-2:]] for stage in timeline.stages]
    assert all(SpanKind.OPTIMIZER in kinds for kinds in ends)  # who is done sooner waits for the others
    assert max(stage.spans[-1].end_s for stage in timeline.stages) + 0.5 == pytest.approx(plan.prediction.step_s)


@settings(max_examples=examples(10), deadline=None)
@given(
    costs=st.lists(st.builds(layer, forward_s=times, backward_s=times), min_size=8, max_size=8),
    schedule=st.sampled_from(["GPipe", "1F1B"]),
    concurrency=st.sampled_from([None, 2]),
)
def test_a_long_step_is_predicted_from_its_ends(costs, schedule, concurrency):
    """Beyond 256 micro-batches the rest is extrapolated; here it is worked out in full."""
    measured = profile(*costs, concurrency=concurrency)
    plan = plan_of(spec(schedule=schedule, micro_batches=400), measured)

    spans = [stage.spans for stage in predicted_timeline(plan, measured).stages]
    assert plan.prediction.step_s == pytest.approx(max(each[-1].end_s for each in spans), rel=2e-3)
    assert [stage.bubble_ratio for stage in plan.stages] == pytest.approx(list(map(bubble_ratio, spans)), abs=2e-3)


def test_a_plan_stays_far_below_a_config_map_whatever_its_size():
    large = spec(
        pipeline=98,
        micro_batches=4096,
        model=GPT3,
        data={"corpus": "python-stdlib", "sequenceLength": 2048},
        parallelism={"pipeline": 98, "data": 16},
    )

    assert len(plan_of(large).to_json()) < 64 * 1024


def test_a_users_own_layers_count_as_equal_and_say_so():
    plan = plan_of(spec(model={"entrypoint": "a:b", "numLayers": 12}))

    assert cuts(plan) == [(0, 3), (3, 6), (6, 9), (9, 12)]
    assert plan.prediction.source is CostSource.EQUAL
    assert plan.prediction.bubble_ratio == pytest.approx(3 / 11)
