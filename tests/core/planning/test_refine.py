"""What a run measured becomes the costs that the next plan is made from."""

import pytest

from pipelinejob.base.timeline import SpanKind, Timeline
from pipelinejob.contract.plan import CostSource
from pipelinejob.costs.layers import LayerCost, Profile
from pipelinejob.planning.planner import make_plan, predicted_timeline
from pipelinejob.planning.refine import refined
from pipelinejob.spec.job import Data, Model, Parallelism, Partition, PipelineJobSpec, ScheduleSpec, Training

# What the layers really take: forward, input gradient, weight gradient, update; in ms.
TRUTH = [(2, 0, 1, 4), (6, 7, 5, 2), (6, 7, 5, 2), (9, 11, 12, 8)]


def profile(costs=TRUTH, **others):
    layers = tuple(
        LayerCost(
            name=str(index),
            forward_s=forward / 1e3,
            backward_input_s=back / 1e3,
            backward_weight_s=aside / 1e3,
            optimizer_s=update / 1e3,
            parameter_bytes=1000,
            activation_bytes=100,
            output_bytes=1000,
        )
        for index, (forward, back, aside, update) in enumerate(costs)
    )
    fields = {"source": CostSource.ANALYTIC, "link_s": 1e-3, "link_bytes_per_s": 1e6, **others}
    return Profile(layers=layers, **fields)


def plan_of(costs, schedule="1F1B", **others):
    spec = PipelineJobSpec(
        model=Model(entrypoint="somebodys.layers:make", num_layers=4),
        data=Data(paths=("/data/*.txt",), sequence_length=16),
        parallelism=Parallelism(pipeline=2),
        schedule=ScheduleSpec(name=schedule, micro_batches=6, micro_batch_size=1, **others),
        partition=Partition(layers=(1, 1, 1, 1) if schedule == "ZB-V" else (2, 2)),
        training=Training(steps=1),
    )
    return make_plan(namespace="team", name="job", spec=spec, profile=costs)


def run_of(truth, plan, *, ahead_s=0.0):
    """Return what a run of the plan records if the costs are these, and one rank's clock is ahead of the other's."""
    predicted = predicted_timeline(plan, truth)
    steps = tuple(
        step.model_copy(update={"started": 1000.0 + ahead_s * step.stage, "step": 7}) for step in predicted.stages
    )
    return Timeline(source="measured", stages=steps)


GUESS = [(1, 0, 2, 1), (3, 7, 4, 1), (3, 7, 4, 1), (3, 4, 4, 1)]


@pytest.mark.parametrize("schedule", ["1F1B", "GPipe", "ZB-H1", "ZB-V"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("concurrency", [None, 1])
def test_a_plan_from_refined_costs_promises_what_was_measured(schedule, recompute, concurrency):
    plan = plan_of(profile(GUESS, concurrency=concurrency), schedule, recompute=recompute)
    run = run_of(profile(concurrency=concurrency), plan)

    found = refined(profile(GUESS, concurrency=concurrency), plan, [run])

    again = predicted_timeline(plan, found)
    assert [step.spans[-1].end_s for step in again.stages] == pytest.approx(
        [step.spans[-1].end_s for step in run.stages], rel=0.02
    )
    assert found.source is CostSource.PROFILED


def test_layers_of_a_stage_share_what_it_was_off_by():
    plan = plan_of(profile(GUESS))

    found = refined(profile(GUESS), plan, [run_of(profile(), plan)])

    # stage 0 took 8 ms forward where 4 were promised, stage 1 took 15 where 6 were
    assert [layer.forward_s for layer in found.layers] == pytest.approx([2e-3, 6e-3, 7.5e-3, 7.5e-3])
    # updates: 6 ms where 2 were promised, 10 where 2 were
    assert [layer.optimizer_s for layer in found.layers] == pytest.approx([3e-3, 3e-3, 5e-3, 5e-3])


def test_links_are_told_from_who_waited_whatever_the_clocks_say():
    plan = plan_of(profile(GUESS, link_s=1e-5))

    found = refined(profile(GUESS, link_s=1e-5), plan, [run_of(profile(link_s=4e-3), plan, ahead_s=0.5)])

    assert found.link_s == pytest.approx(4e-3, rel=0.01)


def test_messages_faster_than_the_bandwidth_allows_raise_the_bandwidth():
    slow = profile(GUESS, link_s=1e-3, link_bytes_per_s=1e5)
    plan = plan_of(slow)

    found = refined(slow, plan, [run_of(profile(link_s=0.0, link_bytes_per_s=1e6), plan)])

    assert found.link_s == 0.0
    assert found.link_bytes_per_s == pytest.approx(1e6, rel=0.01)


def test_the_book_keeping_of_an_action_is_not_taken_for_the_layers():
    """A run's spans of compute have no book-keeping in them; a prediction's have."""
    plan = plan_of(profile(action_s=1e-3))
    run = run_of(profile(), plan)

    found = refined(profile(action_s=1e-3), plan, [run])

    assert [layer.forward_s for layer in found.layers] == pytest.approx([2e-3, 6e-3, 6e-3, 9e-3])
    assert found.action_s == 1e-3


def test_text_and_the_end_of_a_step_are_its_overhead():
    plan = plan_of(profile())
    run = run_of(profile(), plan)
    first, second = run.stages
    data = first.spans[0].model_copy(
        update={"kind": SpanKind.DATA, "start_s": 0.0, "end_s": 0.003, "micro_batch": None}
    )
    with_text = run.model_copy(update={"stages": (first.model_copy(update={"spans": (data, *first.spans)}), second)})

    without, found = (refined(profile(), plan, [each]).step_overhead_s for each in (run, with_text))

    assert found - without == pytest.approx(0.003)


def test_layers_of_which_nothing_was_known_get_times_and_keep_their_source():
    equal = profile([(1, 1, 1, 0)] * 4, source=CostSource.EQUAL)
    plan = plan_of(equal)

    found = refined(equal, plan, [run_of(profile(), plan)])

    assert [layer.forward_s for layer in found.layers] == pytest.approx([4e-3, 4e-3, 7.5e-3, 7.5e-3])
    assert found.source is CostSource.EQUAL


def test_a_run_that_recorded_nothing_changes_nothing():
    plan = plan_of(profile())

    assert refined(profile(), plan, []) == profile()
    assert refined(profile(), plan, [Timeline(source="measured", stages=())]) == profile()
