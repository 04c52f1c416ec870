"""Stages come and go, layers move, and the schedule changes while a gang trains, from memory: real processes.

How long a further stage takes to come up nobody knows, so a gang trains until it was seen to train
by the last plan; then an undisturbed one trains as far, and both are compared at the same
checkpoint.
"""

import signal
from collections.abc import Callable

import pytest
import torch

from pipelinejob.contract.plan import Plan
from pipelinejob.contract.progress import ExitCode
from pipelinejob.spec.job import GptModel, Model, ScheduleName, ScheduleSpec
from support.training.gangs import Gang
from support.training.recovering import Operator, recovering_plan, state

STEPS = 100_000  # none comes so far
INTERVAL = 50
# Dropout: random state that a layer must have wherever it is.
MODEL = Model(gpt=GptModel(num_layers=4, hidden_size=16, num_heads=2, dropout=0.1))
UNCLIPPED = {"clip_norm": 1e6}  # else the order in which the parts of its norm are added decides on last bits

pytestmark = pytest.mark.xdist_group("gangs")  # one gang at a time is load enough


def divided(
    *layers: int,
    ranks: int | None = None,
    replicas: int = 1,
    name: ScheduleName = ScheduleName.ONE_F_ONE_B,
    model: Model = MODEL,
) -> Plan:
    """Return a plan of which a step has four micro-batches of two sequences, over all replicas."""
    return recovering_plan(
        *layers,
        ranks=ranks,
        model=model,
        replicas=replicas,
        schedule=ScheduleSpec(name=name, micro_batches=4 // replicas, micro_batch_size=2),
        training={"steps": STEPS, **UNCLIPPED},
        checkpoint={"interval_steps": INTERVAL, "asynchronous": True, "keep": 1000},
    )


def go_over(gang: Gang, operator: Operator, plan: Plan) -> None:
    """Have further stages come up beside the gang, and all go over to a plan."""
    gang.train_on()
    have = {pod for pod, each in gang.processes.items() if each.poll() is None}
    for stage in range(plan.parallelism.pipeline):
        if f"job-r0-s{stage}" not in have:
            gang.join_stage(stage)
    operator.resize(plan)
    stages = [f"job-r0-s{stage}" for stage in range(plan.parallelism.pipeline)]
    gang.until(lambda: not any(gang.progress(pod).stands_still for pod in stages), "all train on")


def reach(gang: Gang, operator: Operator, step: int) -> None:
    """Let a gang train on to a checkpoint, and end it there."""
    gang.until((gang.checkpoints / f"step-{step:08d}").exists, f"the checkpoint of step {step}")
    operator.stop()
    gang.kill()


def assert_as_undisturbed(
    gang: Gang, operator: Operator, undisturbed: Callable[[], tuple[Gang, Operator]], *, repeated: int = 0
) -> None:
    """See that a gang has the losses and weights of one that nothing happened to, bit for bit."""
    step = (max(record.step for record in gang.steps()) // INTERVAL + 1) * INTERVAL
    reach(gang, operator, step)
    other, its_operator = undisturbed()
    reach(other, its_operator, step)
    mine, others = state(gang, step), state(other, step)
    assert mine.keys() == others.keys()
    differing = [name for name in mine if not torch.equal(mine[name], others[name])]
    assert not differing
    assert gang.losses()[:step] == other.losses()[:step]
    done = [record.step for record in gang.steps() if record.step <= step]
    assert len(done) <= step + repeated, "a step was done again"


def test_four_stages_two_three_and_four_end_bit_for_bit_as_four_do(run: Callable[..., tuple[Gang, Operator]]) -> None:
    four = divided(2, 1, 1, 2)
    gang, operator = run(four)
    kept = gang.processes["job-r0-s0"], gang.processes["job-r0-s1"]
    stalls = []
    for plan in (divided(3, 3), divided(1, 3, 2), divided(1, 2, 2, 1)):
        go_over(gang, operator, plan)
        stalls.append(max(gang.progress(f"job-r0-s{stage}").stall_s or 0 for stage in range(plan.parallelism.pipeline)))
    assert (gang.processes["job-r0-s0"], gang.processes["job-r0-s1"]) == kept, "a process restarted"
    assert_as_undisturbed(gang, operator, lambda: run(four))
    assert gang.logs().count("with the layers divided anew") == 3
    assert 0 < max(stalls) < 5
    print(f"stalls {stalls}")


def test_another_partition_and_another_schedule_end_bit_for_bit_the_same(
    run: Callable[..., tuple[Gang, Operator]],
) -> None:
    gang, operator = run(divided(3, 3))
    before = dict(gang.processes)
    for plan in (
        divided(4, 2),
        divided(1, 2, 2, 1, ranks=2, name=ScheduleName.ZB_V),
        divided(2, 1, 2, 1, ranks=2, name=ScheduleName.INTERLEAVED),
        divided(2, 4, name=ScheduleName.GPIPE),
    ):
        go_over(gang, operator, plan)
    assert gang.processes == before, "a process restarted"
    assert_as_undisturbed(gang, operator, lambda: run(divided(3, 3)))


@pytest.mark.parametrize("lost", ["job-r0-s0", "job-r0-s1", "job-r0-s2"])
def test_a_rank_that_is_lost_in_the_middle_of_the_move_is_replaced_and_the_layers_are_still_there(
    run: Callable[..., tuple[Gang, Operator]], lost: str
) -> None:
    two, three = divided(3, 3), divided(2, 2, 2)
    gang, operator = run(two)
    gang.train_on()
    gang.join_stage(2)
    operator.begin(three)
    gang.until(lambda: "all go over to incarnation 2" in gang.logs(), "the border")
    gang.signal(lost, signal.SIGKILL)
    gang.until(lambda: operator.replaced == [lost], "it is replaced")
    gang.until(lambda: "rank 2 takes over" in gang.logs(), "the layers are there")
    gang.train_on()
    assert_as_undisturbed(gang, operator, lambda: run(two), repeated=1)  # its last border may not have been copied yet
    assert "with the layers divided anew" in gang.logs()
    assert "go back to the last checkpoint" not in gang.logs()


def test_stages_that_leave_are_lost_right_after_the_border_and_nothing_is_lost_with_them(
    run: Callable[..., tuple[Gang, Operator]],
) -> None:
    four, two = divided(2, 1, 1, 2), divided(3, 3)
    gang, operator = run(four)
    gang.train_on()
    operator.resize(two)
    gang.signal("job-r0-s1", signal.SIGKILL)
    gang.until(lambda: "incarnation 3: all met" in gang.logs(), "they meet again")
    gang.train_on()

    assert [gang.termination(f"job-r0-s{stage}").reason for stage in (2, 3)] == ["NotNeeded", "NotNeeded"]
    assert gang.termination("job-r0-s3").exit_code == ExitCode.OK
    assert operator.replaced == ["job-r0-s1"]
    assert_as_undisturbed(gang, operator, lambda: run(four), repeated=1)


def test_a_head_that_is_tied_to_the_embedding_moves_with_what_it_shares(
    run: Callable[..., tuple[Gang, Operator]],
) -> None:
    tied = Model(gpt=GptModel(num_layers=4, hidden_size=16, num_heads=2, tie_embeddings=True))
    two, three = divided(3, 3, model=tied), divided(2, 2, 2, model=tied)
    gang, operator = run(two)
    for plan in (three, divided(5, 1, model=tied)):
        go_over(gang, operator, plan)
    assert_as_undisturbed(gang, operator, lambda: run(two))


def test_with_replicas_the_layers_move_in_each_of_them(run: Callable[..., tuple[Gang, Operator]]) -> None:
    two, three = divided(3, 3, replicas=2), divided(2, 2, 2, replicas=2)
    gang, operator = run(two)
    go_over(gang, operator, three)
    gang.train_on()
    operator.resize(two)
    assert_as_undisturbed(gang, operator, lambda: run(two))
