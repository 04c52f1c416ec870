"""Where nothing goes on any more: each stage says for whom it waits, and writes its stacks to its log."""

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelinejob.contract.plan import Plan
from pipelinejob.spec.job import Model
from pipelinejob_trainer.base import waiting
from pipelinejob_trainer.base.errors import PeerLostError
from pipelinejob_trainer.base.waiting import Awaiting, waits_for
from pipelinejob_trainer.process.hang import HangWatch
from support.training.gangs import Gang, plan

pytestmark = pytest.mark.xdist_group("gangs")  # one gang at a time is load enough


def test_a_stage_that_hangs_waits_for_nobody_the_other_for_it_and_both_write_their_stacks(
    make: Callable[[Plan], Gang],
) -> None:
    model = Model(entrypoint="layers.faulty_models:hanging", num_layers=4)
    gang = make(plan(2, 2, model=model, training={"steps": 100}).model_copy(update={"hang_timeout_seconds": 10}))

    gang.until(lambda: gang.progress("job-r0-s1").stuck and gang.progress("job-r0-s0").stuck, "both are stuck")
    first, second = (gang.progress(f"job-r0-s{stage}") for stage in range(2))

    assert first.stuck == f"no progress for 10 s after step {first.step}"
    assert first.waits is not None
    assert (first.waits.replica, first.waits.stage) == (0, 1)
    assert first.waits.seconds > 5
    assert second.waits is None
    logs = {stage: gang.folder / f"job-r0-s{stage}.log" for stage in range(2)}
    gang.until(lambda: all("Thread" in log.read_text() for log in logs.values()), "stacks are written")
    assert "this process has waited for stage 1 of replica 0 for" in logs[0].read_text()
    assert "in receive" in logs[0].read_text()
    assert "this process waits for nobody" in logs[1].read_text()
    assert "in never_comes_back" in logs[1].read_text()


def test_stacks_are_written_once_for_each_time_that_nothing_goes_on(tmp_path: Path) -> None:
    said: list[str | None] = []
    told: list[str | None] = []
    with (tmp_path / "log").open("w+") as log:
        watch = HangWatch(lambda: said[-1], lambda: "waits for nobody", tell=lambda: told.append(said[-1]), log=log)
        for reason in (None, "no progress for 9 s", "no progress for 9 s", None, "no progress for 9 s"):
            said.append(reason)
            watch.look()
        log.seek(0)
        written = log.read()

    assert written.count("no progress for 9 s; this process waits for nobody") == 2
    assert written.count("most recent call first") >= 2
    assert len(told) == 2


@pytest.fixture
def _nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out threads that stand for ranks of other tests, and wait for ever for one that failed."""
    monkeypatch.setattr(waiting, "_innermost", {})


@pytest.mark.usefixtures("_nobody_waits")
def test_a_wait_within_a_wait_is_the_one_that_counts_and_the_outer_comes_back() -> None:
    assert waits_for() is None
    with Awaiting(None), Awaiting(3):
        inner = waits_for()
    assert inner is not None
    assert inner.peer == 3
    with Awaiting(1):
        with contextlib.suppress(PeerLostError), Awaiting(2):
            raise PeerLostError("rank 2 went away")
        outer = waits_for()
    assert outer is not None
    assert outer.peer == 1
    assert waits_for() is None


@pytest.mark.usefixtures("_nobody_waits")
def test_waits_of_several_threads_are_kept_apart_and_the_longest_is_told() -> None:
    entered, may_leave = threading.Event(), threading.Event()

    def wait_for_rank_5() -> None:
        with Awaiting(5):
            entered.set()
            may_leave.wait()

    with Awaiting(4):
        other = threading.Thread(target=wait_for_rank_5)
        other.start()
        entered.wait()
        both = waits_for()
    one = waits_for()
    may_leave.set()
    other.join()

    assert both is not None
    assert both.peer == 4
    assert one is not None
    assert one.peer == 5
    assert waits_for() is None
