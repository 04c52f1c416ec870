"""A stage that serves and ends again and again: told with its own words, then judged by the failure policy."""

from typing import Any

import pytest

from pipelinejob.base import names
from pipelinejob.contract.progress import Termination
from pipelinejob_operator.cluster import Key
from pipelinejob_operator.local.node.kubelet import ends_before, pause_s
from pipelinejob_operator.validation.validate import defaulted
from support.clusters.operatorworld import World
from support.manifests.jobs import nodes, serving

KILLED = {"exitCode": 137, "reason": "Error"}
POD = "m-r0-s1"


@pytest.fixture
def world() -> World:
    """One chain of three stages that serves."""
    world = World(nodes(1, gpus=3))
    manifest = serving(failurePolicy={"maxRestarts": 2})
    manifest["metadata"]["labels"] = {names.LABEL_SERVICE: "m"}
    world.submit(defaulted(manifest))
    world.train()
    return world


KEY = Key("default", "m")


def ends(world: World, times: int, ended: dict[str, Any], *, ready: bool = False, up_s: int = 0) -> None:
    """Let stage 1's container have been started again so often, and be up since so long."""
    world.cluster.pass_time(up_s)
    own = {
        "name": "trainer",
        "ready": ready,
        "restartCount": times,
        "state": {"running": {"startedAt": "2026-01-01T00:00:00Z" if up_s else world.cluster._time()}},
        "lastState": {"terminated": ended},
    }
    world.cluster.set_pod(world.cluster.pod(POD), phase="Running", ready=ready, containerStatuses=[own])
    world.settle()


def words(code: int = 1) -> dict[str, Any]:
    said = Termination(exit_code=code, reason="Bug", message="x is 0", step=0).model_dump_json(by_alias=True)
    return {"exitCode": code, "reason": "Error", "message": said}


def test_each_end_is_told_in_the_stages_own_words_and_too_many_in_a_row_end_the_chain(world: World) -> None:
    for times in (1, 2):
        ends(world, times, words())
        said = world.condition(KEY, "Degraded")
        assert (said["status"], said["reason"]) == ("True", "StageCrashes")
        assert "Stage 1 of replica 0 (pod m-r0-s1) failed with exit code 1: x is 0" in said["message"]
        assert f"restart {times} of at most 2 in a row" in said["message"]
        assert world.condition(KEY, "Ready")["status"] == "False"
    assert world.told().count("StageCrashes") == 2

    ends(world, 3, words())
    assert world.status(KEY)["state"] == "Failed"
    assert world.condition(KEY, "Succeeded")["reason"] == "RestartsExhausted"
    assert "x is 0; it ended 3 times in a row" in world.condition(KEY, "Succeeded")["message"]


def test_a_stage_that_was_well_for_a_minute_begins_to_count_anew(world: World) -> None:
    ends(world, 2, words())
    ends(world, 2, words(), ready=True, up_s=61)
    assert world.condition(KEY, "Degraded")["status"] == "False"
    assert world.status(KEY)["state"] == "Serving"

    ends(world, 3, words())
    assert "restart 1 of at most 2 in a row" in world.condition(KEY, "Degraded")["message"]


def test_a_stage_that_comes_back_after_it_was_killed_has_not_crashed(world: World) -> None:
    for times in range(1, 6):
        ends(world, times, KILLED, ready=True)

    assert world.status(KEY)["state"] == "Serving"
    assert "StageCrashes" not in world.told()


def test_a_stage_that_only_followed_another_is_not_blamed(world: World) -> None:
    for times in range(1, 6):
        ends(world, times, words(75))

    assert world.condition(KEY, "Degraded")["status"] == "False"
    assert world.status(KEY)["state"] == "Starting"


def test_a_rule_of_the_policy_may_make_it_final(world: World) -> None:
    world.cluster.edit(KEY, failurePolicy={"maxRestarts": 6, "rules": [{"onExitCodes": [3], "action": "Fail"}]})
    ends(world, 1, words(3))

    assert world.status(KEY)["state"] == "Failed"
    assert "exit code 3: x is 0" in world.condition(KEY, "Succeeded")["message"]


def test_on_this_machine_a_process_begins_again_later_and_later_until_it_was_well_for_a_minute() -> None:
    assert [pause_s(ends) for ends in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert [ends_before(5, ran_s=seconds) for seconds in (0, 59, 60)] == [5, 5, 0]
