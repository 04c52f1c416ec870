"""Replicas that divide experts: what is refused by name, and what a plan counts of them."""

import pytest

from pipelinejob.base.errors import SpecError
from pipelinejob.contract.plan import CostSource
from pipelinejob.costs.layers import LayerCost, Profile
from pipelinejob.planning.experts import undividable_experts, unrunnable_experts
from pipelinejob.planning.planner import counted as counts
from pipelinejob.planning.planner import make_plan
from pipelinejob.planning.playing import schedule_of
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.job import Parallelism, PipelineJobSpec, Training

SIZES = {"numLayers": 6, "hiddenSize": 64, "numHeads": 4, "feedForwardSize": 128}
EXPERTS = {"decoder": SIZES | {"experts": {"num": 4, "perToken": 2}}}

MIXTRAL = {
    "model_type": "mixtral",
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
FOLDER = {"huggingFace": {"path": "/model"}, "numLayers": 8, "config": MIXTRAL}


def spec(parallelism, *, model=EXPERTS, schedule="1F1B", **others):
    manifest = {
        "model": model,
        "data": {"corpus": "python-stdlib"},
        "parallelism": parallelism,
        "schedule": {"name": schedule, "microBatches": 4, "microBatchSize": 1},
        "training": {"steps": 10},
        "device": "cpu",
    }
    return PipelineJobSpec.model_validate(manifest | others)


def plan_of(spec, profile=None):
    return make_plan(namespace="team", name="job", spec=spec, profile=profile)


@pytest.mark.parametrize(
    ("degrees", "model", "words"),
    [
        ({"data": 6, "expert": 3}, EXPERTS, "3 replicas cannot share 4 experts equally; use a divisor of 4"),
        ({"data": 2, "expert": 4}, EXPERTS, "2 replicas make no whole groups of 4"),
        ({"data": 2, "expert": 2}, {"decoder": SIZES}, "has none"),
        ({"data": 2, "expert": 2}, {"entrypoint": "a:b", "numLayers": 8}, "hold all of theirs"),
        ({"data": 3, "expert": 3}, FOLDER, "3 replicas cannot share 8 experts equally; use a divisor of 8"),
        ({"data": 2, "expert": 2}, FOLDER | {"config": MIXTRAL | {"model_type": "llama"}}, "has none"),
    ],
)
def test_numbers_that_do_not_divide_are_refused(degrees, model, words):
    wanted = spec({"pipeline": 2} | degrees, model=model)

    assert [words in str(each) for each in undividable_experts(wanted.model, wanted.parallelism)] == [True]


@pytest.mark.parametrize(
    ("degrees", "training", "schedule", "words"),
    [
        ({}, {"lora": {"targets": ["all"]}}, "1F1B", "adapters"),
        ({}, {"compile": "Layers"}, "1F1B", "exchange tokens in their midst"),
        ({}, {"optimizer": "Muon"}, "1F1B", "use AdamW or SGD"),
        ({}, {}, "PipeDream-2BW", "updates within a step"),
        ({}, {}, "custom", "may update within a step"),
        ({}, {}, "DualPipe", "on two ranks of a pipeline"),
    ],
)
def test_what_divided_experts_do_not_go_with_is_refused(degrees, training, schedule, words):
    wanted = Parallelism.model_validate({"pipeline": 2, "data": 2, "expert": 2} | degrees)
    settings = Training.model_validate({"steps": 1} | training)

    model = spec({"pipeline": 1}).model

    found = [str(each) for each in unrunnable_experts(model, settings, ScheduleName(schedule), wanted)]

    assert [words in each for each in found] == [True]
    alike = wanted.model_copy(update={"expert": 1})
    assert list(unrunnable_experts(model, settings, ScheduleName(schedule), alike)) == []


def test_a_plan_holds_a_part_of_the_experts_and_their_moments_where_copies_are():
    alike, divided = (
        plan_of(spec({"pipeline": 2, "data": 4, "sharding": "optimizer", "expert": each})).stages[0] for each in (1, 2)
    )

    half = 3 * 4 * 3 * 64 * 128 * 4 // 2  # of three blocks' four experts, three matrices each
    assert alike.parameter_bytes - divided.parameter_bytes == half
    assert divided.optimizer_bytes == alike.optimizer_bytes  # two ranks share each expert's, four all else


def test_of_sharded_parameters_each_rank_has_as_much_of_its_experts_as_of_all_and_gathers_the_half_that_is_its():
    alike, divided = (
        plan_of(spec({"pipeline": 2, "data": 4, "sharding": "full", "expert": each})).stages[0] for each in (1, 2)
    )
    alone = plan_of(spec({"pipeline": 2, "data": 2, "sharding": "full", "expert": 2})).stages[0]

    of_a_block = 4 * 3 * 64 * 128 * 4
    assert divided.weight_bytes == alike.weight_bytes
    # What is gathered, of two blocks at a time, and the gradients of three, are of a half of the
    # experts.
    assert alike.memory_bytes - divided.memory_bytes == 2 * of_a_block // 2 + 3 * of_a_block // 2
    # Experts that one replica holds are whole, so of them nothing is gathered.
    assert 2 * alone.weight_bytes == alone.parameter_bytes + 3 * of_a_block // 2


def test_a_pass_takes_as_long_as_its_tokens_travel_and_only_copies_are_summed():
    block = LayerCost(
        name="x",
        forward_s=1.0,
        backward_input_s=1.0,
        backward_weight_s=1.0,
        parameter_bytes=100,
        expert_bytes=80,
        activation_bytes=10,
        output_bytes=0,
        exchanged_bytes=5,
        announced_bytes=2,
    )
    costs = Profile(source=CostSource.ANALYTIC, layers=(block,) * 8, link_bytes_per_s=10.0, expert=2)

    plans = [plan_of(spec({"pipeline": 1, "data": data, "expert": 2}), costs) for data in (2, 4)]

    assert plans[0].stages[0].exchanged_bytes == 8 * (4 * 5 + 2)
    passes_s = 4 * 8 * (3 + (4 * 5 + 2) / 10)
    summed_s = [8 * 20 / 10, 8 * (20 * 6 / 4 + 80) / 10]  # with two replicas nothing of the experts
    for plan, sum_s in zip(plans, summed_s, strict=True):
        assert plan.prediction.step_s == pytest.approx(passes_s + sum_s)


def test_of_a_folder_whose_config_is_known_a_plan_holds_a_part_of_the_experts():
    alike, divided = (
        plan_of(spec({"pipeline": 2, "tensor": 2, "data": 2, "expert": each}, model=FOLDER)).stages[0]
        for each in (1, 2)
    )

    half_of_halves = 3 * 8 * 3 * 64 * 128 * 4 // 2 // 2
    assert alike.parameter_bytes - divided.parameter_bytes == half_of_halves
    assert divided.exchanged_bytes


def test_a_folder_of_which_nothing_is_known_is_planned_with_divided_experts():
    unknown = {name: each for name, each in FOLDER.items() if name != "config"}

    plan = plan_of(spec({"pipeline": 2, "data": 2, "expert": 2}, model=unknown))

    assert plan.parallelism.expert == 2


def test_costs_are_of_experts_divided_as_they_are():
    alike, divided = (spec({"pipeline": 2, "data": 2, "expert": each}) for each in (1, 2))
    measured = [counts(each).model_copy(update={"source": CostSource.PROFILED}) for each in (alike, divided)]

    assert plan_of(divided, measured[1]).stages[0].exchanged_bytes
    with pytest.raises(SpecError, match="is 2, but the profile's layers hold experts that 1 replicas divide"):
        plan_of(divided, measured[0])
    with pytest.raises(SpecError, match="is 1, but"):
        plan_of(alike, measured[1])


def test_a_search_for_routes_takes_none_that_hold_a_stage_twice():
    plan = plan_of(spec({"pipeline": 2, "data": 2, "expert": 2}, schedule="auto"))

    assert len(schedule_of(plan).routes) == 1
