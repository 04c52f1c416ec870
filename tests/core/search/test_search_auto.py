"""`auto` where configurations are searched: chosen where it pays, run as it was promised, left out with a reason."""

from dataclasses import replace
from fractions import Fraction

import pytest

from pipelinejob.contract.plan import Plan
from pipelinejob.fabric import hardware
from pipelinejob.fabric.pool import Pool, PoolGroup
from pipelinejob.fabric.topology import NodeInfo, Topology
from pipelinejob.placement.capacity import Demand
from pipelinejob.planning.planner import counted, make_plan, on_devices, predicted_timeline
from pipelinejob.planning.playing import schedule_of
from pipelinejob.schedules.memory import peak_activations
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.validate import validate
from pipelinejob.search.auto import leaders
from pipelinejob.search.best import search
from pipelinejob.search.found import rank
from pipelinejob.siting.door import plan_job
from pipelinejob.siting.request import Planned, Request
from pipelinejob.siting.site import PRODUCT, Site
from pipelinejob.spec.job import PipelineJobSpec

HARDWARE = hardware.default()
H100 = HARDWARE.devices["H100-SXM"]
SLOW = replace(H100, name="slow", attained=H100.attained / 3)
GPU = "nvidia.com/gpu"
FOUR = {"gpus": 4, "pipeline": 4, "data": 1, "tensor": 1}


def spec_of(schedule, *, parallelism=None, layers=6, width=2048, vocabulary=256):
    return PipelineJobSpec.model_validate({
        "model": {"gpt": {"numLayers": layers, "hiddenSize": width, "numHeads": 8, "vocabularySize": vocabulary}},
        "data": {"corpus": "python-stdlib", "sequenceLength": 512},
        "parallelism": parallelism or FOUR,
        "schedule": {"name": "auto", **schedule},
        "training": {"steps": 1, "precision": "bf16"},
    })  # fmt: skip


def pool_of(*devices):
    return Pool(groups=tuple(PoolGroup(device=each, gpus_per_node=1, num_nodes=count) for each, count in devices))


UNLIKE = pool_of((H100, 3), (SLOW, 1))
EIGHT = {"globalBatchSize": 8, "microBatchSize": 1}


def heavy_head(schedule, **others):
    """Eight layers of which the head takes as long as two to three of the others."""
    return spec_of(schedule, width=1024, vocabulary=16384, **others)


@pytest.mark.parametrize(
    ("spec", "pool"),
    [
        pytest.param(spec_of(EIGHT), UNLIKE, id="unlike devices"),
        pytest.param(heavy_head(EIGHT), Pool.alike(H100, 4), id="a heavy head"),
    ],
)
def test_over_unequal_stages_a_searched_schedule_wins_and_its_plan_takes_the_step_that_was_stated(spec, pool):
    found = search(spec, pool, hardware=HARDWARE)

    best = found.best
    assert best.chosen.schedule is ScheduleName.AUTO
    assert best.step_s < found.best_named.step_s * 0.995
    made = make_plan(namespace="n", name="j", spec=best.spec, devices=best.devices, links=best.links, hardware=HARDWARE)
    mounted = Plan.from_json(made.to_json())  # what a trainer reads
    assert mounted.schedule.name is ScheduleName.AUTO
    validate(schedule_of(mounted))
    assert schedule_of(mounted) == best.choice.schedule_for(best.chosen.micro_batches)
    costs = on_devices(counted(best.spec, best.devices, HARDWARE), best.spec, best.devices, HARDWARE)
    stages = predicted_timeline(mounted, costs).stages
    assert max(stage.spans[-1].end_s for stage in stages) + costs.step_overhead_s == pytest.approx(best.step_s)


def test_two_searches_choose_the_same_schedule():
    one, other = (search(spec_of(EIGHT), UNLIKE, hardware=HARDWARE).best for _ in range(2))

    assert one.choice.schedule_for(8) == other.choice.schedule_for(8)


def test_what_is_too_large_to_be_searched_for_says_so_and_how_to_have_it_all_the_same():
    found = search(spec_of(EIGHT), UNLIKE, hardware=HARDWARE, effort=10_000)

    assert found.num_searched == 0
    assert found.best is found.best_named
    (why,) = {each.why for each in found.rejected if each.what == "auto with 4 stages, micro-batches of 1"}
    assert why == (
        "not searched for: it would order 64 forwards, and a search of configurations takes on 62 at most;"
        " fix degrees and micro-batches beside auto to have it made all the same"
    )


def test_a_named_schedule_that_is_as_short_stays():
    found = search(
        heavy_head({"globalBatchSize": 8}, parallelism=FOUR | {"pipeline": 2, "gpus": 2}), Pool.alike(H100, 2)
    )

    named = found.best
    assert named.chosen.schedule is not ScheduleName.AUTO
    (why,) = {
        each.why
        for each in found.rejected
        if each.what == f"auto with 2 stages, micro-batches of {named.chosen.micro_batch_size}"
    }
    assert why.startswith(f"nothing was found that is shorter than {named.chosen.schedule}")


def test_what_a_searched_schedule_hardly_saves_does_not_put_it_before_a_named_one():
    found = search(spec_of(EIGHT), UNLIKE, hardware=HARDWARE)
    named = found.best_named

    hardly, clearly = (replace(found.best, step_s=named.step_s * share) for share in (0.996, 0.994))

    assert sorted([hardly, named, clearly], key=rank) == [clearly, named, hardly]


def test_of_each_layout_only_the_best_candidate_gets_a_schedule_of_its_own():
    found = search(spec_of({"globalBatchSize": 8}), UNLIKE, hardware=HARDWARE)

    first = leaders(found.candidates)

    layouts = [each.layout for each in first]
    assert len(set(layouts)) == len(layouts)
    assert all(each.step_s <= other.step_s for each in first[:1] for other in found.candidates)


def test_no_step_is_shorter_than_its_layouts_floor():
    found = search(heavy_head({"globalBatchSize": 8}, parallelism={"gpus": 4}), Pool.alike(H100, 4), hardware=HARDWARE)

    assert any(each.is_searched for each in found.candidates)
    assert all(each.floor_s <= each.step_s * (1 + 1e-9) for each in found.candidates)


def test_a_schedule_named_by_a_manifest_is_not_replaced_by_a_searched_one():
    found = search(spec_of({"name": "1F1B", **EIGHT}), UNLIKE, hardware=HARDWARE)

    assert {each.chosen.schedule for each in found.candidates} == {ScheduleName.ONE_F_ONE_B}
    assert found.num_searched == 0


def test_what_a_manifest_fixes_is_planned_by_the_schedule_that_will_be_run():
    spec = spec_of({"microBatches": 8, "microBatchSize": 1}, parallelism={"pipeline": 4})

    found = search(spec, Pool.alike(H100, 4), hardware=HARDWARE)

    assert {each.chosen.schedule for each in found.candidates} == {ScheduleName.AUTO}
    run = make_plan(
        namespace="n", name="j", spec=spec, devices=found.best.devices, links=found.best.links, hardware=HARDWARE
    )
    assert run.prediction.step_s == found.best.step_s


@pytest.mark.parametrize("name", ["1F1B", "ZB-V", "DualPipe", "DualPipeV"])
def test_the_step_of_a_searched_schedule_is_no_longer_than_a_named_ones(name):
    """Two copies of a stage shorten the list of actions; to sum their gradients would take three times as long."""
    fixed = {"microBatches": 8, "microBatchSize": 1}

    searched, named = (
        search(spec_of(fixed | {"name": each}, layers=18, parallelism={"pipeline": 4}), Pool.alike(H100, 4)).best
        for each in ("auto", name)
    )

    assert searched.step_s <= named.step_s * (1 + 1e-9)


def test_a_memory_cap_holds_for_named_schedules_too():
    found = search(spec_of(EIGHT | {"memoryCap": [3]}, layers=18), Pool.alike(H100, 4), hardware=HARDWARE)

    assert found.best_named is not None
    for each in found.candidates:
        assert max(peak_activations(each.choice.schedule_for(8))) <= 3


def test_under_a_cap_that_no_named_schedule_keeps_to_one_is_searched_for():
    found = search(spec_of(EIGHT | {"memoryCap": [2]}, layers=18), Pool.alike(H100, 4), hardware=HARDWARE)

    assert found.best.chosen.schedule is ScheduleName.AUTO
    assert found.best_named is None
    assert max(peak_activations(found.best.choice.schedule_for(8))) <= 2


def test_where_it_is_placed_a_chosen_schedule_is_searched_for_again_by_the_prices_there():
    """The draft stands on neighbours alike, its place on two kinds of devices: each plan carries its own actions."""
    nodes = [
        NodeInfo(name=name, labels={PRODUCT: product}, free={GPU: Fraction(2)})
        for name, product in (("fast", "NVIDIA-H100-80GB-HBM3"), ("slow", "NVIDIA-A100-SXM4-80GB"))
    ]

    def demands(spec):
        return [Demand(replica=0, stage=stage, requests={GPU: 1}) for stage in range(spec.parallelism.pipeline)]

    site = Site.of(nodes, Topology.of(nodes), demands, hardware=HARDWARE)

    spec = spec_of(EIGHT | {"memoryCap": [2]})  # which no named schedule keeps to

    answer = plan_job(Request(namespace="n", name="j", spec=spec, on=site, hardware=HARDWARE))

    assert isinstance(answer, Planned)
    assert answer.found is not None
    assert answer.chosen == answer.found.best.chosen
    assert answer.chosen.schedule is ScheduleName.AUTO
    plan = answer.plan
    assert len({stage.device for stage in plan.stages}) == 2
    stages = predicted_timeline(plan, answer.costs).stages
    stated_s = plan.prediction.step_s - answer.costs.step_overhead_s
    assert max(stage.spans[-1].end_s for stage in stages) == pytest.approx(stated_s)
