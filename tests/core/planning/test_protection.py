"""How often states are copied: as few steps apart as cost at most 2 % of the time, and said with what would be lost."""

import pytest

from pipelinejob.contract.plan import LinkPlan, Plan
from pipelinejob.planning.planner import make_plan
from pipelinejob.planning.protection import MOST_COST, protection, state_bytes
from pipelinejob.spec.job import (
    Data,
    Device,
    GptModel,
    Model,
    Parallelism,
    PipelineJobSpec,
    Recovery,
    ScheduleSpec,
    Training,
)


def planned(
    *,
    hidden: int = 1024,
    micro_batches: int = 64,
    replicas: int = 1,
    interval_steps: int | None = None,
    in_place: bool = True,
) -> Plan:
    spec = PipelineJobSpec(
        model=Model(gpt=GptModel(num_layers=6, hidden_size=hidden, num_heads=4)),
        data=Data(corpus="python-stdlib", sequence_length=256),
        parallelism=Parallelism(pipeline=4, data=replicas),
        schedule=ScheduleSpec(micro_batches=micro_batches, micro_batch_size=4),
        training=Training(steps=100),
        device=Device.CPU,
        recovery=Recovery(in_place=in_place, interval_steps=interval_steps),
    )
    return make_plan(namespace="default", name="job", spec=spec)


def test_long_steps_are_each_kept_and_cost_little() -> None:
    plan = planned()

    found = protection(plan)
    assert found is not None
    assert plan.recovery is not None
    assert plan.recovery.interval_steps == found.interval_steps == 1
    assert found.cost < MOST_COST
    assert found.lost_s == plan.prediction.step_s


@pytest.mark.parametrize("hidden", [32, 128, 512])
@pytest.mark.parametrize("replicas", [1, 2])
def test_of_short_steps_as_few_are_lost_as_cost_at_most_two_percent(hidden: int, replicas: int) -> None:
    plan = planned(hidden=hidden, micro_batches=4, replicas=replicas)

    chosen = protection(plan)
    assert chosen is not None
    assert chosen.cost <= MOST_COST
    if chosen.interval_steps > 1:
        more_often = protection(
            planned(hidden=hidden, micro_batches=4, replicas=replicas, interval_steps=chosen.interval_steps - 1)
        )
        assert more_often is not None
        assert more_often.cost > MOST_COST


def test_what_a_user_says_holds_and_its_cost_is_said() -> None:
    plan = planned(hidden=32, micro_batches=4, interval_steps=1)

    found = protection(plan)
    assert found is not None
    assert (found.interval_steps, found.cost > MOST_COST) == (1, True)
    assert found.text.startswith("a copy of each stage's state every step costs ")
    assert found.text.endswith(" is done again (predicted)")


def test_a_link_on_which_a_copy_takes_longer_than_a_step_makes_copies_rarer() -> None:
    plan = planned(interval_steps=1)
    size = max(map(state_bytes, plan.stages))
    slow = LinkPlan(between=(0, 1), kind="slow", latency_s=0.0, bytes_per_s=size / (3 * plan.prediction.step_s))

    found = protection(plan.model_copy(update={"links": (slow,)}))

    assert found is not None
    assert found.cost == pytest.approx(2.0, abs=0.1)  # of three steps, two are waited for


def test_where_recovery_in_place_is_off_nothing_is_protected() -> None:
    plan = planned(in_place=False)

    assert plan.recovery is None
    assert protection(plan) is None
