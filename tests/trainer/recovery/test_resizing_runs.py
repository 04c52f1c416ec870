"""Replicas come and go while a gang trains, from memory: real processes, and what is equal to a run without that."""

import signal
from collections.abc import Callable

import pytest
import torch

from pipelinejob.contract.plan import Plan
from pipelinejob.contract.progress import ExitCode
from pipelinejob.spec.job import GptModel, Model, ScheduleName, ScheduleSpec
from support.training.gangs import Gang
from support.training.recovering import Operator, recovering_plan, state

STEPS = 120
# Dropout: random state that a new replica must have as the others do.
MODEL = Model(gpt=GptModel(num_layers=2, hidden_size=16, num_heads=2, dropout=0.1))

pytestmark = pytest.mark.xdist_group("gangs")  # one gang at a time is load enough


def shared(*layers: int, replicas: int, micro_batches: int, optimizer: str = "AdamW") -> Plan:
    """Return a plan of which a step has so many micro-batches of two sequences, over all replicas."""
    return recovering_plan(
        *layers,
        model=MODEL,
        replicas=replicas,
        schedule=ScheduleSpec(
            name=ScheduleName.ONE_F_ONE_B, micro_batches=micro_batches // replicas, micro_batch_size=2
        ),
        training={"steps": STEPS, "optimizer": optimizer},
        checkpoint={"interval_steps": 50, "asynchronous": True, "keep": 100},
    )


def test_two_replicas_and_one_again_end_bit_for_bit_as_one_does_where_sums_have_two_terms(
    run: Callable[..., tuple[Gang, Operator]],
) -> None:
    one, two = (shared(3, 1, replicas=replicas, micro_batches=2) for replicas in (1, 2))
    undisturbed = run(one)[0].finish()

    gang, operator = run(one, waiting=1)
    before = dict(gang.processes)
    for plan in (two, one):
        gang.train_on()
        operator.resize(plan)
    gang.finish()

    assert len(gang.steps()) == STEPS, "a step was done again"
    mine, others = state(gang, STEPS), state(undisturbed, STEPS)
    assert mine.keys() == others.keys()
    assert all(torch.equal(mine[name], others[name]) for name in mine)
    norms = [[record.gradient_norm for record in each.steps()] for each in (gang, undisturbed)]
    assert norms[0] == norms[1]
    assert gang.losses() == pytest.approx(undisturbed.losses(), rel=1e-6)  # told in fp32 by each replica
    assert {pod: gang.processes[pod] for pod in before} == before, "a process restarted"
    assert gang.logs().count("from memory") == 2
    left = gang.termination("job-r1-s0")
    assert (left.exit_code, left.reason) == (ExitCode.OK, "NotNeeded")


def test_one_two_four_and_one_replicas_differ_from_one_by_the_order_of_sums_alone(
    run: Callable[..., tuple[Gang, Operator]],
) -> None:
    # By SGD, which makes of a difference in the last bits no larger one.
    plans = [shared(4, replicas=replicas, micro_batches=4, optimizer="SGD") for replicas in (1, 2, 4, 1)]
    undisturbed = run(plans[0])[0].finish()

    gang, operator = run(plans[0], waiting=3)
    for plan in plans[1:]:
        gang.train_on()
        operator.resize(plan)
    stall_s = gang.progress("job-r0-s0").stall_s
    gang.finish()

    assert stall_s is not None
    assert stall_s < 5
    assert gang.losses() == pytest.approx(undisturbed.losses(), rel=1e-6)
    mine, others = state(gang, STEPS), state(undisturbed, STEPS)
    assert mine.keys() == others.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, others[name], rtol=1e-5, atol=1e-6, msg=name)


def test_a_rank_that_is_lost_after_a_change_of_replicas_is_replaced_as_ever(
    run: Callable[..., tuple[Gang, Operator]],
) -> None:
    one, two = (shared(3, 1, replicas=replicas, micro_batches=2) for replicas in (1, 2))
    gang, operator = run(one, waiting=1)
    gang.train_on()
    operator.resize(two)
    gang.signal("job-r0-s1", signal.SIGKILL)
    gang.finish()

    assert operator.replaced == ["job-r0-s1"]
    assert len(gang.losses()) == STEPS
    assert len(gang.steps()) <= STEPS + 1
    assert "all 4 ranks go on after step" in gang.logs()
    assert "go back to the last checkpoint" not in gang.logs()
