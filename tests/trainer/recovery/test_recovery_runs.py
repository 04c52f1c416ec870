"""Stages die or are stopped, each in turn, and the gang goes on in place: bit for bit as if nothing had happened."""

import signal
from collections.abc import Callable, Sequence

import pytest

from pipelinejob.base import names
from pipelinejob.contract.plan import Plan
from pipelinejob.contract.progress import ExitCode
from pipelinejob.spec.job import GptModel, Model, ScheduleName, ScheduleSpec
from pipelinejob_trainer.checkpoint.folder import CheckpointFolder
from support.training.gangs import Gang
from support.training.recovering import Operator, assert_same_end, recovering_plan

STEPS = 60
# Dropout in every layer: random state that a rank that goes back must find again. Batch norms keep
# buffers.
DROPOUT = Model(entrypoint="layers.user_models:dropout_in_each_layer", num_layers=4)
TIED = Model(gpt=GptModel(num_layers=2, hidden_size=16, num_heads=2, dropout=0.1, tie_embeddings=True))

pytestmark = pytest.mark.xdist_group("gangs")  # one gang at a time is load enough


def wanted(
    *layers: int, schedule: ScheduleName, model: Model = DROPOUT, replicas: int = 1, asynchronous: int = 0
) -> Plan:
    """Return a plan; `asynchronous` is the interval of checkpoints that are written beside training, 0 for none."""
    return recovering_plan(
        *layers,
        model=model,
        replicas=replicas,
        schedule=ScheduleSpec(name=schedule, micro_batches=4, micro_batch_size=2),
        training={"steps": STEPS},
        checkpoint={"interval_steps": asynchronous or STEPS, "asynchronous": asynchronous > 0, "keep": STEPS},
    )


@pytest.fixture(scope="module")
def ended() -> dict[str, Gang]:
    return {}


@pytest.fixture
def undisturbed(run: Callable[..., tuple[Gang, Operator]], ended: dict[str, Gang]) -> Callable[[Plan], Gang]:
    """Return the run of a plan in which nothing happens; it is made once."""

    def end(plan: Plan) -> Gang:
        if plan.to_json() not in ended:
            ended[plan.to_json()] = run(plan)[0].finish()
        return ended[plan.to_json()]

    return end


def disturb(gang: Gang, operator: Operator, failures: Sequence[tuple[str, signal.Signals]]) -> None:
    """Let ranks fail one after the other, each once the gang trains again."""
    for number, (pod, how) in enumerate(failures, start=1):
        gang.until(lambda number=number: operator.number == number, f"incarnation {number}")
        gang.train_on()
        gang.signal(pod, how)


@pytest.mark.parametrize(
    ("plan", "failures"),
    [
        pytest.param(
            wanted(1, 2, 1, schedule=ScheduleName.ONE_F_ONE_B),
            [("job-r0-s0", signal.SIGKILL), ("job-r0-s1", signal.SIGSTOP), ("job-r0-s2", signal.SIGKILL)],
            id="1F1B",
        ),
        pytest.param(
            wanted(1, 2, 1, schedule=ScheduleName.ZB_H1, model=TIED),
            [("job-r0-s0", signal.SIGSTOP), ("job-r0-s1", signal.SIGKILL), ("job-r0-s2", signal.SIGSTOP)],
            id="split-backward-tied",
        ),
        pytest.param(
            wanted(2, 2, schedule=ScheduleName.ONE_F_ONE_B, replicas=2, asynchronous=7),
            [("job-r1-s0", signal.SIGKILL), ("job-r0-s1", signal.SIGSTOP)],
            id="two-replicas-checkpoints-beside",
        ),
    ],
)
def test_whoever_fails_the_end_is_the_undisturbed_runs_and_no_other_process_restarts(
    run: Callable[..., tuple[Gang, Operator]],
    undisturbed: Callable[[Plan], Gang],
    plan: Plan,
    failures: list[tuple[str, signal.Signals]],
) -> None:
    written = CheckpointFolder(undisturbed(plan).checkpoints)
    assert written.steps() == sorted({STEPS, *range(0, STEPS, plan.checkpoint.interval_steps)} - {0}, reverse=True)
    for step in written.steps():
        written.open(step).verify()

    gang, operator = run(plan)
    disturb(gang, operator, failures)
    gang.finish()

    assert_same_end(gang, undisturbed(plan), steps=STEPS)
    assert operator.replaced == [pod for pod, _ in failures]
    repeated = len(gang.steps()) - STEPS
    assert repeated <= len(failures)  # at most one step's work is lost each time
    assert gang.logs().count("from memory") == len(failures)


def test_whoever_is_told_to_stop_hands_over_and_leaves_alone_and_no_step_is_repeated(
    run: Callable[..., tuple[Gang, Operator]], undisturbed: Callable[[Plan], Gang]
) -> None:
    plan = wanted(1, 2, 1, schedule=ScheduleName.ONE_F_ONE_B)
    expected = undisturbed(plan)

    gang, operator = run(plan)
    told = [("job-r0-s0",), ("job-r0-s1", "job-r0-s2")]  # the buddy of stage 1 is stage 2
    for number, pods in enumerate(told, start=1):
        gang.until(lambda number=number: operator.number == number, f"incarnation {number}")
        gang.train_on()
        for pod in pods:
            gang.signal(pod, signal.SIGTERM)
    gang.until(lambda: operator.number == len(told) + 1, "all meet again")
    gang.finish()

    assert_same_end(gang, expected, steps=STEPS)
    assert len(gang.steps()) == STEPS  # none is there twice
    assert sorted(operator.replaced) == [pod for pods in told for pod in pods]
    assert operator.codes == {ExitCode.LEFT}
    assert gang.logs().count("HandedOver: asked to stop; step") == len(operator.replaced)
    assert gang.logs().count("from memory") == len(told)


def test_a_grace_that_is_too_short_is_a_kill_and_says_so(
    run: Callable[..., tuple[Gang, Operator]], undisturbed: Callable[[Plan], Gang]
) -> None:
    plan = wanted(1, 2, 1, schedule=ScheduleName.ONE_F_ONE_B)
    expected = undisturbed(plan)

    gang, operator = run(plan, **{names.ENV_GRACE_S: "3"})  # all of it is kept for the last words
    gang.wait_for_step(3)
    gang.signal("job-r0-s1", signal.SIGTERM)
    gang.finish()

    assert_same_end(gang, expected, steps=STEPS)
    assert operator.replaced == ["job-r0-s1"]
    assert operator.codes == {ExitCode.LEFT}
    assert "GraceTooShort: asked to stop; no step ended within the 3 s of grace" in gang.logs()


def test_stage_and_buddy_lost_at_once_go_back_to_the_checkpoint_and_a_stopped_one_that_wakes_up_joins_nothing(
    run: Callable[..., tuple[Gang, Operator]], undisturbed: Callable[[Plan], Gang]
) -> None:
    plan = wanted(1, 2, 1, schedule=ScheduleName.ONE_F_ONE_B)
    expected = undisturbed(plan)  # checkpoints change nothing
    plan = plan.model_copy(
        update={
            "checkpoint": plan.checkpoint.model_copy(update={"interval_steps": 10}),
            "recovery": plan.recovery and plan.recovery.model_copy(update={"wait_seconds": 60}),
        }
    )
    gang, operator = run(plan)
    operator.leaves_stopped = True
    gang.wait_for_step(12)
    gang.signal("job-r0-s1", signal.SIGSTOP)  # its buddy is stage 2
    gang.signal("job-r0-s2", signal.SIGKILL)
    gang.until(lambda: operator.number == 2, "incarnation 2")
    (stale,) = operator.stale
    stale.send_signal(signal.SIGCONT)
    gang.finish()

    assert_same_end(gang, expected, steps=STEPS)
    assert "not every rank's state is left in memory at one step" in gang.logs()
    assert "resumed from the checkpoint of step 10" in gang.logs()
    assert sorted(operator.replaced) == ["job-r0-s1", "job-r0-s2"]
    stale.kill()
    assert stale.wait() in {-signal.SIGKILL, ExitCode.PEER_LOST}
