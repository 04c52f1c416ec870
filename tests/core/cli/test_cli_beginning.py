"""How a local run begins, given what an earlier one left: a pure decision."""

from typing import Any

import pytest

from pipelinejob.base.errors import SpecError
from pipelinejob_operator.local.beginning import Beginning, Way, begin

CHANGE = SpecError("spec.model", "model cannot change: the checkpoints hold this one")


def job(*, steps: int = 100, **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "job", "uid": "of-old", "creationTimestamp": "2026-11-21T00:00:00Z", "generation": 1},
        "spec": {"training": {"steps": steps}},
        "status": status,
    }


def began(
    previous: dict[str, Any] | None, *, fresh: bool = False, steps: int = 100, checkpoints: bool = True, changes=()
) -> Beginning:
    wanted = {"metadata": {"name": "job"}, "spec": {"training": {"steps": steps}}}
    return begin(wanted, previous, is_fresh=fresh, has_checkpoints=checkpoints, changes=changes, folder="runs/job")


def test_an_empty_folder_is_a_new_run() -> None:
    assert began(None, checkpoints=False).way is Way.NEW


def test_checkpoints_of_a_job_that_nobody_remembers_are_not_deleted_unasked() -> None:
    beginning = began(None)

    assert beginning.way is Way.REFUSED
    assert "holds checkpoints, but not the job that wrote them" in beginning.message
    assert began(None, fresh=True).way is Way.NEW


@pytest.mark.parametrize("state", ["Training", "Suspended", "Failed", "Restarting"])
def test_an_unfinished_or_failed_run_goes_on_as_the_same_job(state: str) -> None:
    beginning = began(job(state=state, attempt=3))

    assert beginning.way is Way.CONTINUE
    assert beginning.job["metadata"]["uid"] == "of-old"


@pytest.mark.parametrize(("state", "attempt"), [("Training", 4), ("Failed", 4), ("Suspended", 3)])
def test_a_new_attempt_fences_off_the_old_one_unless_the_suspension_has(state: str, attempt: int) -> None:
    assert began(job(state=state, attempt=3)).job["status"] == {"attempt": attempt}


def test_a_finished_run_is_left_alone_and_the_ways_on_are_named() -> None:
    beginning = began(job(state="Succeeded", attempt=1))

    assert beginning.way is Way.FINISHED
    assert all(option in beginning.message for option in ("--steps 200", "--fresh", "--output"))


def test_more_steps_make_a_finished_run_go_on() -> None:
    assert began(job(state="Succeeded", attempt=1), steps=150).way is Way.CONTINUE


def test_a_change_that_checkpoints_cannot_follow_is_refused_by_name() -> None:
    beginning = began(job(state="Training"), changes=(CHANGE,))

    assert beginning.way is Way.REFUSED
    assert "spec.model: model cannot change" in beginning.message


def test_without_a_checkpoint_any_change_is_a_new_run() -> None:
    assert began(job(state="Failed"), checkpoints=False, changes=(CHANGE,)).way is Way.NEW


def test_a_run_without_a_checkpoint_says_that_it_begins_at_the_beginning() -> None:
    assert "there is no checkpoint yet" in began(job(state="Training"), checkpoints=False).message
