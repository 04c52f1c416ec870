"""Recovery in place: whom the operator replaces, whom it tells what, and when the whole gang restarts instead."""

import pytest

from pipelinejob.base.errors import InvalidManifestError
from pipelinejob_operator.controller import reconcile
from pipelinejob_operator.objects.making.tokens import authorization
from pipelinejob_operator.validation.validate import validate
from support.clusters.fakecluster import pinned_node
from support.clusters.operatorworld import World
from support.clusters.recoveringworld import (
    IN_PLACE,
    all_train,
    all_wait,
    changed,
    come_back,
    fail,
    hand_over,
    incarnations,
    says,
    spread,
    submitted,
    uids,
)
from support.manifests.jobs import job, nodes


@pytest.fixture
def world():
    return World(nodes(4, gpus=8))


def test_a_gang_is_told_who_meets_once_all_of_it_waits(world):
    world.submit(job(**IN_PLACE))
    world.train()
    says(world, 0)
    says(world, 1)
    world.settle()
    assert not world.cluster.told

    says(world, 2)
    world.settle()

    assert incarnations(world) == [(f"gpt-r0-s{stage}", 1, 3) for stage in range(3)]
    assert [member.address.rpartition(":")[2] for member in world.cluster.told[0][1].members] == [
        "5000",
        "5001",
        "5002",
    ]


def test_only_the_lost_stages_pod_is_replaced_under_its_name_on_its_node_and_all_meet_anew(world):
    key = submitted(world)
    before, node = uids(world), world.cluster.pod("gpt-r0-s1")["spec"]["nodeName"]
    fail(world, 1, 137)
    world.settle()
    told = len(world.cluster.told)
    assert "only gpt-r0-s1 is replaced" in world.condition(key, "Ready")["message"]

    come_back(world)
    world.settle()
    assert len(world.cluster.told) == told  # the replacement is not there yet
    says(world, 1)
    world.reconcile(key)

    assert changed(world, before) == {"s1"}
    assert world.cluster.pod("gpt-r0-s1")["spec"]["nodeName"] == node
    assert incarnations(world)[told:] == [(f"gpt-r0-s{stage}", 2, 3) for stage in range(3)]
    status = world.status(key)
    assert (status["attempt"], status["restarts"], status["recovery"]["replacements"]) == (1, 0, 1)
    assert [stage["restarts"] for stage in status["stages"]] == [0, 1, 0]
    assert [event for event in world.told() if event in {"Replacing", "Recovered"}] == ["Replacing", "Recovered"]

    all_train(world, heard=2)
    world.settle()
    assert world.status(key)["state"] == "Training"


def test_a_silent_stage_is_replaced_at_once_and_a_slow_one_is_left_alone(world):
    key = submitted(world)
    before = uids(world)
    for stage in (0, 2):
        says(world, stage, step=7, heard=1, lost=[1])
    world.settle()
    assert uids(world) == before  # the others lost it, but it answers: it waits like them, or will

    del world.cluster.answers["gpt-r0-s1"]
    deleted = []
    world.cluster.refuse = lambda verb, item: deleted.append(item) if verb == "delete" else None
    come_back(world)

    assert [(each.name, each.grace_s) for each in deleted] == [("gpt-r0-s1", 0)]
    assert uids(world)["s1"] != before["s1"]
    assert "no heartbeat for 2.1 s" in world.condition(key, "Ready")["message"]


@pytest.mark.parametrize(
    ("code", "state", "why"),
    [(64, "Failed", None), (75, "Restarting", "its peers stop as well")],
)
def test_a_users_error_ends_the_job_and_who_waited_in_vain_restarts_the_gang(world, code, state, why):
    key = submitted(world)
    fail(world, 1, code)
    world.cluster.pass_time(10)  # for another's end, that might explain it
    world.settle()

    assert world.status(key)["state"] == state
    if why:
        assert why in world.condition(key, "Ready")["message"]
        assert world.status(key)["recovery"]["incarnation"] == 0


@pytest.mark.parametrize("is_gone_first", [True, False])
def test_a_drain_stops_all_after_a_checkpoint_and_counts_against_no_limit(world, is_gone_first):
    key = submitted(world)
    drained = world.cluster.pod("gpt-r0-s1")
    world.cluster.remove(drained)
    world.settle()
    if is_gone_first:
        world.cluster.finish_deletions()
        world.settle()
    for stage in (0, 1, 2):
        pod = world.cluster.pod(f"gpt-r0-s{stage}")
        if not (stage == 1 and is_gone_first):
            world.cluster.set_pod(pod, phase="Failed", code=143)
        world.cluster.answers.pop(f"gpt-r0-s{stage}", None)
    world.settle()
    world.cluster.pass_time(10)
    world.settle()

    status = world.status(key)
    assert (status["attempt"], status["restarts"], status["disruptions"]) == (2, 0, 1)


@pytest.mark.parametrize("is_seen", [True, False])  # whether its deletion is seen before it has left
def test_a_stage_that_hands_over_is_replaced_alone_against_no_limit(world, is_seen):
    key = submitted(world, recovery={"inPlace": True, "maxReplacements": 1})
    before = uids(world)
    for number in (2, 3):  # more than maxReplacements
        if is_seen:
            world.cluster.remove(world.cluster.pod("gpt-r0-s1"))
            world.settle()
        hand_over(world, 1, step=7 + number)
        come_back(world)
        says(world, 1)
        world.settle()
        all_train(world, heard=number)
        world.settle()

    assert changed(world, before) == {"s1"}
    status = world.status(key)
    assert (status["attempt"], status["restarts"], status["disruptions"]) == (1, 0, 0)
    assert (status["recovery"]["replacements"], status["recovery"]["handedOver"]) == (2, 2)
    assert not status["recovery"].get("replacementTimes")
    said = [event.message for event in world.cluster.events if event.reason == "Recovered"]
    assert said[-1].endswith("; stage 1 of replica 0 had handed over after step 10, from where all go on")


def test_a_drained_stage_for_which_no_other_node_has_room_stops_all_while_they_can_save():
    world, key = spread(3)
    drained = world.cluster.pod("gpt-r0-s1")
    world.cluster.cordon(pinned_node(drained))
    world.cluster.remove(drained)
    world.settle()

    assert world.status(key)["attempt"] == 2
    assert all("deletionTimestamp" in pod["metadata"] for pod in world.cluster.all_pods())  # with their grace
    told = [event.message for event in world.cluster.events if event.reason == "StageFailed"]
    assert "no node has room for gpt-r0-s1 now" in told[0]


def test_a_replacement_that_does_not_come_in_time_restarts_the_whole_gang(world):
    key = submitted(world)
    fail(world, 1, 137)
    come_back(world)
    world.cluster.pass_time(121)
    world.settle()

    status = world.status(key)
    assert (status["state"], status["attempt"], status["restarts"]) == ("Restarting", 2, 1)
    assert "did not come within 120 s" in world.condition(key, "Ready")["message"]


def test_a_stage_that_fails_at_the_same_step_again_is_not_retried_in_place_for_ever(world):
    key = submitted(world)
    for _ in range(2):
        fail(world, 1, 1)
        come_back(world)
        all_wait(world, step=7, heard=1)
        world.settle()

    assert world.status(key)["attempt"] == 2
    assert world.status(key)["recovery"]["replacements"] == 1


def test_the_budget_counts_replacements_within_its_time(world):
    key = submitted(world, recovery={"inPlace": True, "maxReplacements": 1, "replacementWindowSeconds": 600})
    for pause_s in (601, 1, 1):
        fail(world, 1, 137)
        for stage in (0, 2):
            says(world, stage, step=world.status(key)["recovery"]["replacements"], heard=1)
        come_back(world)
        all_wait(world, step=7, heard=1)
        world.settle()
        all_train(world, heard=2)
        world.settle()
        world.cluster.pass_time(pause_s)

    assert world.status(key)["attempt"] == 2
    assert world.status(key)["recovery"]["replacements"] == 2


def test_two_at_once_and_a_replacement_that_dies_are_replaced_too(world):
    key = submitted(world)
    fail(world, 1, 137)
    fail(world, 2, 137)
    come_back(world)
    says(world, 2)
    world.cluster.answers.pop("gpt-r0-s1")
    world.cluster.remove(world.cluster.pod("gpt-r0-s1"))  # by somebody, or with its node's drain
    come_back(world)
    all_wait(world, heard=1)
    world.settle()

    status = world.status(key)
    assert (status["attempt"], status["recovery"]["replacements"], status["recovery"]["incarnation"]) == (1, 3, 2)


def test_each_pod_has_a_token_of_its_own_by_which_it_knows_the_operator(world):
    submitted(world)
    before = world.cluster.pod("gpt-r0-s1")
    tokens = {authorization(pod)["Authorization"] for pod in world.cluster.all_pods()}
    assert len(tokens) == 3
    assert {told.key for _, told in world.cluster.told} != {""}

    fail(world, 1, 137)
    come_back(world)
    assert authorization(world.cluster.pod("gpt-r0-s1"))["Authorization"] != authorization(before)["Authorization"]


def test_of_one_moment_the_same_is_decided_again_tokens_and_all(world, monkeypatch):
    def twice(decision):
        def decided(*arguments, **more):
            first = decision(*arguments, **more)
            assert decision(*arguments, **more) == first
            return first

        return decided

    for name in ("decide", "complete"):
        monkeypatch.setattr(reconcile, name, twice(getattr(reconcile, name)))
    submitted(world)
    fail(world, 1, 137)
    come_back(world)
    assert len({authorization(pod)["Authorization"] for pod in world.cluster.all_pods()}) == 3


def test_a_job_whose_gang_restarts_as_a_whole_has_no_tokens(world):
    world.submit(job(**(IN_PLACE | {"recovery": {}})))
    world.train()
    assert [authorization(pod) for pod in world.cluster.all_pods()] == [{}, {}, {}]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"device": "gpu"}, "works over gloo only"),
        ({"scheduling": {"binding": "Late"}}, "use binding: Early"),
        ({"recovery": {"spares": 1}}, "needs recovery.inPlace: true"),
    ],
)
def test_what_recovery_in_place_cannot_do_is_refused(changes, sentence):
    with pytest.raises(InvalidManifestError, match=sentence):
        validate(job(**(IN_PLACE | changes)))
