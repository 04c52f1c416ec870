"""Plans of every schedule: played as promised, long steps told from shorter ones, memory counted action by action."""

from contextlib import suppress

import pytest

from pipelinejob.base.errors import SpecError
from pipelinejob.base.timeline import bubble_ratio
from pipelinejob.contract.plan import CostSource, Plan
from pipelinejob.costs.layers import LayerCost, Profile
from pipelinejob.costs.stages import Division
from pipelinejob.planning import planner
from pipelinejob.planning.planner import make_plan, predicted_timeline
from pipelinejob.planning.playing import schedule_of
from pipelinejob.scheduler.catalogue import FAMILIES
from pipelinejob.schedules.families import ASYNCHRONOUS
from pipelinejob.schedules.memory import peak_activations
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.text import render
from pipelinejob.schedules.validate import validate
from pipelinejob.spec.job import PipelineJobSpec

NAMED = [name for name in FAMILIES if name not in {ScheduleName.AUTO, ScheduleName.FORWARD_ONLY}]


def spec(name, *, pipeline=4, micro_batches=8, num_layers=16, schedule=None, **others):
    manifest = {
        "model": {"entrypoint": "a:b", "numLayers": num_layers},
        "data": {"corpus": "python-stdlib"},
        "parallelism": {"pipeline": pipeline},
        "schedule": {"name": name, "microBatches": micro_batches} | (schedule or {}),
        "training": {"steps": 10, "clipNorm": 0 if name in ASYNCHRONOUS else 1},
        "device": "cpu",
    }
    return PipelineJobSpec.model_validate(manifest | others)


def profile(num_layers=16, **others):
    """Layers of 1 s forward and by input and by weight, 100 bytes of parameters, 10 of activations, 1 of output."""
    layer = LayerCost(
        name="x",
        forward_s=1,
        backward_input_s=1,
        backward_weight_s=1,
        parameter_bytes=100,
        activation_bytes=10,
        output_bytes=1,
    )
    return Profile(source=CostSource.PROFILED, layers=(layer,) * num_layers, **others)


def plan_of(spec, profile):
    return make_plan(namespace="team", name="job", spec=spec, profile=profile)


@pytest.mark.parametrize("name", NAMED)
def test_a_plan_of_any_schedule_is_played_as_it_was_promised(name):
    measured = profile(link_s=0.01, link_bytes_per_s=1000.0)
    plan = plan_of(spec(name), measured)

    schedule = schedule_of(Plan.from_json(plan.to_json()))

    validate(schedule)
    for rank, stage in enumerate(plan.stages):
        assert stage.chunks == tuple(dict.fromkeys(plan.cuts[held.stage] for held in schedule.held_by(rank)))
    assert sorted({chunk for stage in plan.stages for chunk in stage.chunks}) == list(plan.cuts)
    spans = [stage.spans for stage in predicted_timeline(plan, measured).stages]
    assert list(map(bubble_ratio, spans)) == pytest.approx([stage.bubble_ratio for stage in plan.stages])
    assert max(each[-1].end_s for each in spans) == pytest.approx(plan.prediction.step_s)


@pytest.mark.parametrize("name", [name for name in NAMED if not FAMILIES[name].looks_at_costs])
def test_a_long_step_of_any_schedule_is_told_from_shorter_ones(name):
    """401 micro-batches, of which fewer were simulated; here all of them are."""
    job, costs = spec(name, micro_batches=401), profile()
    plan = plan_of(job, costs)

    schedule = schedule_of(plan)
    spans = [stage.spans for stage in predicted_timeline(plan, costs).stages]
    division = Division(profile=costs, cuts=plan.cuts, routes=schedule.routes, schedule=job.schedule)

    assert plan.prediction.step_s == pytest.approx(max(each[-1].end_s for each in spans), rel=1e-6)
    assert [stage.memory_bytes for stage in plan.stages] == [division.memory_bytes(schedule, rank) for rank in range(4)]


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("slow_stage", [None, 2])
def test_no_plan_is_slower_than_the_even_split(name, slow_stage):
    speeds = None if slow_stage is None else tuple(0.6 if stage == slow_stage else 1.0 for stage in range(4))
    costs = profile(stage_speeds=speeds)
    heavy = costs.layers[-1].model_copy(update={"forward_s": 4, "backward_input_s": 4, "backward_weight_s": 4})
    costs = costs.model_copy(update={"layers": (*costs.layers[:-1], heavy)})
    planned = plan_of(spec(name), costs)
    even = {"partition": {"layers": [16 // len(planned.cuts)] * len(planned.cuts)}}

    assert planned.prediction.step_s <= plan_of(spec(name, **even), costs).prediction.step_s


AHEAD = [8, 16, 16, 8]  # all 8 messages of a byte each, received ahead from one neighbour or two


def memory(name, **others):
    return [stage.memory_bytes for stage in plan_of(spec(name, **others), profile()).stages]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # 4 layers a rank: 4 x 400 bytes of parameter, gradient and two moments, and 40 a
        # micro-batch in flight; there are gradients once the first backward is done, and one
        # micro-batch less is in flight
        ("GPipe", [1600 + 7 * 40] * 4),
        ("1F1B", [1600 + n * 40 for n in (4, 3, 2, 1)]),
        ("ZB-H1", [1600 + 4 * 40] * 4),
        ("ZB-H2", [1600 + 7 * 40] * 4),
        ("ZB-V", [1600 + 4 * 40] * 4),  # two chunks of two layers, 8 halves in flight
        ("Chimera", None),  # two copies: see below
        # each further weight version is 400 bytes; p-i of them
        ("PipeDream", [1600 + 400 * (n - 1) + 40 * n for n in (4, 3, 2, 1)]),
        ("PipeDream-2BW", [1600 + 400 + 40 * n for n in (4, 3, 2, 1)]),
    ],
)
def test_memory_is_state_and_versions_and_what_is_in_flight(name, expected):
    if expected is None:
        assert all(3200 < taken < 3200 + 5 * 40 for taken in memory(name))
    else:
        assert memory(name) == [taken + ahead for taken, ahead in zip(expected, AHEAD, strict=True)]


def test_recomputation_keeps_inputs_and_one_micro_batch_in_full():
    """Of 1F1B's 4, 3, 2, 1 micro-batches a byte each, the first stage's none; and 40 bytes while a backward runs.

    Beside it, what is received ahead.
    """
    assert memory("1F1B", schedule={"recompute": True}) == [1648, 1659, 1658, 1649]
    first = {"schedule": {"recompute": True, "recomputeStages": [0]}, "partition": {"layers": [4, 4, 4, 4]}}
    assert memory("1F1B", **first) == [1648, 1736, 1696, 1648]


def test_recomputation_costs_a_forward_pass_and_lengthens_no_bubble():
    """Layers are run again while their rank waits for the gradient, so that filling and draining take no longer."""
    plan = plan_of(spec("1F1B", schedule={"recompute": True}), profile())

    assert [stage.backward_s for stage in plan.stages] == [12] * 4
    assert [stage.recompute for stage in plan.stages] == [True] * 4
    assert plan.prediction.step_s == 16 * 8 + 12 * 3


def test_a_tied_table_counts_once_where_embedding_and_head_stand_together():
    gpt = {"gpt": {"numLayers": 14, "hiddenSize": 8, "numHeads": 1, "vocabularySize": 256, "tieEmbeddings": True}}
    parameters = {
        name: [stage.parameter_bytes for stage in plan_of(spec(name, model=gpt), None).stages]
        for name in ("1F1B", "ZB-V")
    }

    assert sum(parameters["1F1B"]) - sum(parameters["ZB-V"]) == 256 * 8 * 4


def test_copies_sum_their_gradients_even_without_replicas():
    slow, free = (
        plan_of(spec("Chimera"), costs).prediction.step_s for costs in (profile(link_bytes_per_s=10), profile())
    )

    assert slow > free + 40  # the last stage to be done: 2 (2-1)/2 of its 400 bytes over 10 bytes a second


V = "route 0 1 1 0\nF0 F1 F0.1 B0.1 F1.1 B1.1 B0 B1\nF0 F0.1 F1 F1.1 B0.1 B0 B1.1 B1\n"


def test_a_schedule_of_ones_own_travels_with_the_plan():
    job = spec("custom", pipeline=2, micro_batches=2, schedule={"actions": V})
    plan = plan_of(job, profile())

    assert render(schedule_of(Plan.from_json(plan.to_json()))) == V
    assert plan.schedule.actions is None
    assert [stage.chunks for stage in plan.stages] == [((0, 4), (12, 16)), ((4, 8), (8, 12))]


def test_a_partition_is_given_by_stages_of_the_route():
    given = {"partition": {"layers": [3, 4, 4, 5]}}

    plan = plan_of(spec("custom", pipeline=2, micro_batches=2, schedule={"actions": V}, **given), profile())

    assert [stage.chunks for stage in plan.stages] == [((0, 3), (11, 16)), ((3, 7), (7, 11))]


@pytest.mark.parametrize(
    ("job", "limit", "problem"),
    [
        (
            spec("1F1B"),
            2048,
            "spec.parallelism: the plan would take 3 KiB, but a config map holds 2; use fewer stages or replicas",
        ),
        (
            spec("custom", pipeline=2, micro_batches=2, schedule={"actions": V}),
            1024,
            (
                "spec.schedule: the plan would take 2 KiB, but a config map holds 1, and 0 are for the list of its "
                "actions; use fewer micro-batches, or a schedule that follows from its name alone, like 1F1B or ZB-H1"
            ),
        ),
    ],
)
def test_a_plan_that_no_config_map_holds_is_refused_with_the_way_out(job, limit, problem, monkeypatch):
    monkeypatch.setattr(planner, "MAX_PLAN_BYTES", limit)

    with pytest.raises(SpecError) as error:
        plan_of(job, profile())

    assert str(error.value) == problem


@pytest.mark.parametrize(
    ("num_layers", "head", "speeds"),
    [(16, 1.0, None), (17, 3.0, None), (16, 1.0, (1.0, 0.6, 1.0, 1.0)), (5, 2.0, None)],
)
def test_auto_loses_to_no_schedule_that_has_a_name(num_layers, head, speeds):
    costs = profile(num_layers, stage_speeds=speeds, link_s=0.1)
    last = costs.layers[-1].model_copy(update={"forward_s": head, "backward_input_s": head, "backward_weight_s": head})
    costs = costs.model_copy(update={"layers": (*costs.layers[:-1], last)})

    def step_s(name):
        return plan_of(spec(name, num_layers=num_layers), costs).prediction.step_s

    best = step_s("auto")

    for name in set(NAMED) - ASYNCHRONOUS:
        with suppress(SpecError):  # for so few layers there may be none
            assert best <= step_s(name) * (1 + 1e-9), name


@pytest.mark.parametrize("limit", [3424, 1880, 1700, 1656])
def test_auto_holds_no_more_than_there_is_memory(limit):
    plan = plan_of(spec("auto"), profile(device_memory_bytes=limit))

    validate(schedule_of(plan))
    assert max(stage.memory_bytes for stage in plan.stages) <= limit


def test_auto_is_refused_where_nothing_fits():
    with pytest.raises(SpecError, match="no split of the layers over 4 stages fits into"):
        plan_of(spec("auto"), profile(device_memory_bytes=1600))


def test_a_cap_bounds_what_auto_holds():
    plan = plan_of(spec("auto", schedule={"memoryCap": [3]}), profile())

    assert max(peak_activations(schedule_of(plan))) <= 3
