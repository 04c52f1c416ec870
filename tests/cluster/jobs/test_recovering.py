"""Recovery in place over the real API server and scheduler: who is replaced, where, and who is told of it.

The tests write what a kubelet would, and answer as the trainers would; kwok only takes deleted
pods away.
"""

from __future__ import annotations

import pytest

from pipelinejob.base import names
from support.api_server.apiserver import ApiServer
from support.api_server.operatorprocess import OperatorProcess
from support.api_server.recovering_gang import Gang, gang_in_training
from support.local.processes import Process, wait_until

pytestmark = pytest.mark.xdist_group("life")  # one operator at a time


@pytest.fixture
def gang(api_server: ApiServer, kwok: Process, operator: OperatorProcess, namespace: str):
    """A job of three stages that trains on three of four nodes, each of which has room for one."""
    with gang_in_training(api_server, namespace, num_nodes=4) as gang:
        yield gang


def changed(before: dict[int, str], after: dict[int, str]) -> set[int]:
    return {stage for stage, uid in before.items() if after.get(stage) != uid}


def test_a_killed_an_evicted_and_a_homeless_stage_are_replaced_alone_by_operators_that_die_in_between(
    gang: Gang, operator: OperatorProcess
) -> None:
    before, there = gang.uids(), gang.node_of(1)
    gang.fail(1, 137)
    gang.replaced(1, before[1])
    wait_until(lambda: gang.events("Replacing"), "it says so")
    assert gang.events("Replacing") == ["Only gpt-r0-s1 is replaced; 2 stages keep their processes"]
    gang.come_up(1)
    gang.meet(2)
    assert changed(before, gang.uids()) == {1}
    assert gang.node_of(1) == there

    before = gang.uids()
    operator.process.stop(9)
    evicted = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}
    gang.fail(0, 137, reason="Evicted", message="The node was low on resource: memory.", conditions=[evicted])
    operator.start()
    gang.replaced(0, before[0])
    operator.process.stop(9)
    gang.come_up(0)
    operator.start()
    gang.meet(3)
    assert changed(before, gang.uids()) == {0}

    before, lost = gang.uids(), gang.node_of(2)
    others = gang.others(2)
    gang.server.kubectl("delete", "node", lost)
    gang.lose(2, others)
    gang.replaced(2, before[2])
    assert {gang.node_of(2)} == set(gang.nodes) - {lost, gang.node_of(0), gang.node_of(1)}
    gang.come_up(2)
    gang.meet(4)
    assert changed(before, gang.uids()) == {2}

    status = gang.status()
    assert (status["attempt"], status["restarts"], status["recovery"]["replacements"]) == (1, 0, 3)
    assert [each["node"] for each in status["stages"]] == [gang.node_of(stage) for stage in range(3)]
    wait_until(lambda: len(gang.events("Replacing")) == 3, "three events")
    assert any(f"instead of {lost}" in each for each in gang.events("Replacing"))


def test_a_spare_takes_a_lost_stages_place_and_another_is_made_by_operators_that_die_in_between(
    api_server: ApiServer, kwok: Process, operator: OperatorProcess, namespace: str
) -> None:
    recovery = {"inPlace": True, "waitSeconds": 300, "spares": 1}
    with gang_in_training(api_server, namespace, num_nodes=4, processes=4, recovery=recovery) as gang:
        process, gang.stages = gang.stages[3], gang.stages[:3]
        before, there = gang.uids(), gang.node_of(1)
        gang.warm(0, process)
        spare = gang.spare(0)
        assert spare is not None
        assert spare["spec"]["nodeName"] not in {gang.node_of(stage) for stage in range(3)}

        gang.fail(1, 137)
        operator.process.stop(9)
        operator.start()
        gang.replaced_by(1, 0, process)
        operator.process.stop(9)
        operator.start()
        gang.meet(2)

        after = gang.uids()
        assert (after[0], after[1], after[2]) == (before[0], spare["metadata"]["uid"], before[2])
        of_stage = {names.LABEL_REPLICA: "0", names.LABEL_STAGE: "1"}
        wait_until(lambda: of_stage.items() <= (gang.pod(1) or {})["metadata"]["labels"].items(), "it has its labels")
        wait_until(lambda: gang.spare(1) is not None, "another spare is bound")
        assert (gang.spare(1) or {})["spec"]["nodeName"] == there
        status = gang.status()
        assert (status["attempt"], status["restarts"], status["recovery"]["sparesUsed"]) == (1, 0, 1)
        assert [each["pod"] for each in status["stages"]] == ["gpt-r0-s0", "gpt-spare-0", "gpt-r0-s2"]
        wait_until(lambda: "gpt-r0-s1" not in {each["metadata"]["name"] for each in gang.all()}, "the old pod is gone")
