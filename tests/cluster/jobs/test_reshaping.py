"""Stages join and leave, and the schedule changes, over the real API server and scheduler, while a job trains.

The tests write what a kubelet would, and answer as the trainers would; kwok only takes deleted
pods away.
"""

from __future__ import annotations

import pytest

from pipelinejob.contract.plan import Plan
from support.api_server.apiserver import ApiServer
from support.api_server.operatorprocess import OperatorProcess, condition
from support.api_server.recovering_gang import Gang, gang_in_training
from support.local.processes import Process, wait_until

pytestmark = pytest.mark.xdist_group("life")  # one operator at a time
SCHEDULE = {"name": "1F1B", "globalBatchSize": 4, "microBatchSize": 1}


@pytest.fixture
def gang(api_server: ApiServer, kwok: Process, operator: OperatorProcess, namespace: str):
    """A job of two stages that trains on two of three nodes, each of which has room for one."""
    model = {"gpt": {"numLayers": 4, "hiddenSize": 64, "numHeads": 4}}
    spec = {"model": model, "schedule": SCHEDULE, "parallelism": {"pipeline": 2, "data": 1}}
    with gang_in_training(api_server, namespace, num_nodes=3, stages=2, **spec) as gang:
        yield gang


def is_bound(gang: Gang, stage: int) -> bool:
    pod = gang.pod(stage)
    return pod is not None and bool(pod["spec"].get("nodeName"))


def resized(gang: Gang, what: str) -> None:
    """Wait until the job trains with this."""
    wait_until(lambda: any(f"Trains with {what}" in each for each in gang.events("Resized")), what)
    reason = condition(gang.server, gang.namespace, "gpt", "Resized")["reason"]
    assert reason == "AsWanted"


def test_stages_join_and_leave_and_the_schedule_changes_though_the_operator_is_killed_in_between(
    gang: Gang, operator: OperatorProcess
) -> None:
    before = gang.uids()
    with pytest.raises(RuntimeError, match="schedule cannot change while stages run by it, but for name"):
        gang.ask({"schedule": {"globalBatchSize": 8}})

    gang.ask({"parallelism": {"pipeline": 3}})
    wait_until(lambda: gang.pod(2) is not None, "a further stage is made")
    operator.process.stop(9)
    operator.start()
    wait_until(lambda: is_bound(gang, 2), "the further stage has a node")
    assert gang.status()["state"] == "Training"
    assert gang.node_of(2) not in {gang.node_of(0), gang.node_of(1)}
    gang.come_up(2)
    resized(gang, "3 stages of 2/2/2 layers, 1F1B,")
    told = gang.stages[2].heard[-1]
    assert [member.stage for member in told.members] == [0, 1, 2]
    assert Plan.from_json(told.plan).parallelism.pipeline == 3
    assert {stage: uid for stage, uid in gang.uids().items() if stage in before} == before

    gang.ask({"schedule": {"name": "ZB-H1"}, "partition": {"layers": [1, 2, 3]}})
    resized(gang, "3 stages of 1/2/3 layers, ZB-H1,")

    gang.ask({"parallelism": {"pipeline": 2}, "partition": {"layers": [2, 4]}})
    assert gang.stages[2].has_left.wait(60)
    gang.succeed(2)
    resized(gang, "2 stages of 2/4 layers, ZB-H1,")
    wait_until(lambda: gang.uids() == before, "the pod of the stage that left is taken away")
    status = gang.status()
    assert (status["attempt"], status["restarts"], status["recovery"]["replacements"]) == (1, 0, 0)
    assert status["recovery"]["resizes"] == 3
    assert float(status["recovery"]["stallSeconds"]) < 5
