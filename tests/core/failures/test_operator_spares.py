"""Warm spares on a cluster: when they get room, whose place they take, and what becomes of those that fail."""

from dataclasses import replace

import pytest

from pipelinejob.base import names
from pipelinejob.contract.progress import Phase, Progress
from pipelinejob_operator.cluster import ForbiddenError
from pipelinejob_operator.objects.making.tokens import authorization
from support.clusters.fakecluster import pinned_node
from support.clusters.operatorworld import SETTINGS, Mortal, World
from support.clusters.played_kueue import Kueue, queued
from support.clusters.priorities import HIGH, submit
from support.clusters.recoveringworld import SPREAD, all_train, all_wait, fail, incarnations, lose_node, says, submitted
from support.manifests.jobs import nodes, priority_class

ONE = {"recovery": {"inPlace": True, "waitSeconds": 120, "spares": 1}}
_STAGES_AND_ONE = 4  # nodes that take a stage each


def spared(count=_STAGES_AND_ONE, **changes):
    """Return a world of so many nodes that take a stage each, and a job of three that trains there, with a spare."""
    world = World(nodes(count))
    key = submitted(world, **(SPREAD | ONE | changes))
    return world, key


def warm(world, number=0, attempt=1):
    """Let a spare come up and say so."""
    world.settle()
    world.cluster.bind()
    world.cluster.start()
    world.cluster.answers[f"gpt-spare-{number}"] = Progress(
        replica=-1, stage=number, attempt=attempt, phase=Phase.SPARE, step=0
    )
    world.settle()


def become(world, number, stage, **account):
    """Let a spare that was told answer as the stage whose place it takes."""
    name = f"gpt-r0-s{stage}"
    says(world, stage, **account)
    world.cluster.answers[f"gpt-spare-{number}"] = world.cluster.answers.pop(name)


def pod_names(world):
    return [pod["metadata"]["name"] for pod in world.cluster.all_pods()]


def spares(world, key):
    return [(each["number"], each["node"], each.get("ready", False)) for each in recovery(world, key).get("spares", [])]


def recovery(world, key):
    return world.status(key)["recovery"]


def test_a_gang_that_trains_gets_a_spare_on_a_node_of_its_own_made_like_a_stage_but_for_its_rank():
    world, key = spared()

    warm(world)

    stage, spare = world.cluster.pod("gpt-r0-s0"), world.cluster.pod("gpt-spare-0")
    assert pinned_node(spare) not in {pinned_node(world.cluster.pod(f"gpt-r0-s{n}")) for n in range(3)}
    assert spares(world, key) == [(0, pinned_node(spare), True)]
    labels = spare["metadata"]["labels"]
    assert labels[names.LABEL_SPARE] == "0"
    assert not labels.keys() & {names.LABEL_STAGE, names.LABEL_REPLICA}
    (own,), (like,) = spare["spec"]["containers"], stage["spec"]["containers"]
    assert own["resources"] == like["resources"]
    variables = {each["name"] for each in like["env"]} ^ {each["name"] for each in own["env"]}
    assert variables == {names.ENV_STAGE, names.ENV_REPLICA, names.ENV_SPARE}
    assert authorization(spare)
    assert authorization(spare) != authorization(stage)
    assert world.status(key)["state"] == "Training"


def test_a_spare_takes_a_lost_stages_place_at_once_and_another_spare_is_made_where_that_was():
    world, key = spared()
    warm(world)
    before, there = pod_names(world), pinned_node(world.cluster.pod("gpt-r0-s1"))
    told = len(world.cluster.told)

    fail(world, 1, 137)
    world.reconcile(key)

    stage = world.status(key)["stages"][1]
    assert (stage["pod"], stage["spare"]) == ("gpt-spare-0", 0)
    assert world.cluster.given[0] == ("gpt-spare-0", (0, 1, 1))
    assert world.cluster.pod("gpt-spare-0")["metadata"]["labels"][names.LABEL_STAGE] == "1"
    assert "only gpt-r0-s1 is replaced, by gpt-spare-0" in world.condition(key, "Ready")["message"]
    assert set(before) - set(pod_names(world)) == {"gpt-r0-s1"}

    become(world, 0, 1)
    world.reconcile(key)
    assert incarnations(world)[told:] == [("gpt-r0-s0", 2, 3), ("gpt-r0-s2", 2, 3), ("gpt-spare-0", 2, 3)]
    all_train(world, heard=2)
    become(world, 0, 1, waits=False, step=7, heard=2)
    world.settle()

    status = world.status(key)
    assert (status["state"], status["attempt"], status["restarts"]) == ("Training", 1, 0)
    assert (recovery(world, key)["replacements"], recovery(world, key)["sparesUsed"]) == (1, 1)
    assert spares(world, key) == [(1, there, False)]
    assert pod_names(world) == ["gpt-r0-s0", "gpt-r0-s2", "gpt-spare-0", "gpt-spare-1"]


def test_a_spare_never_keeps_a_gang_waiting_and_the_status_says_why_there_is_none():
    world, key = spared(3)
    world.settle()

    assert world.status(key)["state"] == "Training"
    assert recovery(world, key)["fewerSpares"] == "no node has room for it now"
    (told,) = [event.message for event in world.cluster.events if event.reason == "NoSpares"]
    assert told == (
        "Fewer spares are kept than spec.recovery.spares: no node has room for it now; a replacement starts cold until"
        " then"
    )


def test_a_lost_stage_without_a_spare_is_replaced_as_ever():
    world, key = spared(3)
    fail(world, 1, 137)
    world.settle()
    world.cluster.finish_deletions()
    world.settle()

    assert world.status(key)["stages"][1]["pod"] == "gpt-r0-s1"
    assert pod_names(world) == ["gpt-r0-s0", "gpt-r0-s1", "gpt-r0-s2"]


def test_a_spare_holds_its_node_as_a_stage_does():
    world, key = spared()
    warm(world)

    waits = submit(world, "one", stages=1, device="cpu", template=SPREAD["template"])

    assert world.status(waits)["state"] == "Waiting"
    assert [number for number, _, _ in spares(world, key)] == [0]


def test_a_job_that_stands_ahead_in_line_has_the_room_before_a_spare():
    world = World(nodes(_STAGES_AND_ONE))
    world.cluster._put(priority_class(HIGH, 1000, policy="Never"))
    key = submitted(world, **SPREAD)
    ahead = submit(world, "two", stages=2, priority=HIGH, device="cpu", template=SPREAD["template"])
    assert world.status(ahead)["state"] == "Waiting"

    world.cluster.edit(key, **ONE)
    world.settle()

    assert spares(world, key) == []
    assert recovery(world, key)["fewerSpares"] == ("default/two, which has priority 1000 over 0, waits for room itself")


def test_a_spare_that_dies_is_made_anew_after_a_pause():
    world, key = spared()
    warm(world)
    world.cluster.set_pod(world.cluster.pod("gpt-spare-0"), phase="Failed", code=1, message="no module named torch")
    world.cluster.answers.pop("gpt-spare-0")
    world.settle()

    assert spares(world, key) == []
    assert "gpt-spare-0" not in pod_names(world)
    (told,) = [event.message for event in world.cluster.events if event.reason == "SpareFailed"]
    assert told == "gpt-spare-0 ended: no module named torch; another is made after 60 s"
    assert world.status(key)["state"] == "Training"

    world.cluster.pass_time(61)
    world.settle()
    assert [number for number, _, _ in spares(world, key)] == [0]
    assert "gpt-spare-0" in pod_names(world)


def test_a_spare_that_takes_a_place_and_dies_is_replaced_under_the_stages_own_name():
    world, key = spared()
    warm(world)
    fail(world, 1, 137)
    world.settle()
    become(world, 0, 1)
    world.cluster.set_pod(world.cluster.pod("gpt-spare-0"), phase="Failed", code=137)
    world.cluster.answers.pop("gpt-spare-0")
    world.settle()
    world.cluster.finish_deletions()
    world.settle()

    assert world.status(key)["stages"][1]["pod"] == "gpt-r0-s1"
    assert "spare" not in world.status(key)["stages"][1]
    assert "gpt-spare-0" not in pod_names(world)
    assert "gpt-r0-s1" in pod_names(world)


def test_a_spare_that_vanishes_while_it_takes_a_place_is_replaced():
    world, key = spared()
    warm(world)
    fail(world, 1, 137)
    world.settle()
    world.cluster.objects.pop(("Pod", "default", "gpt-spare-0"))
    world.cluster.answers.pop("gpt-spare-0")
    world.settle()
    world.cluster.pass_time(10)
    world.settle()

    assert world.status(key)["stages"][1]["pod"] == "gpt-r0-s1"
    assert pod_names(world) == ["gpt-r0-s0", "gpt-r0-s1", "gpt-r0-s2"]


@pytest.mark.parametrize("is_gone", [True, False])
def test_a_spare_whose_node_is_lost_takes_nobodys_place(is_gone):
    world, key = spared(5)
    warm(world)
    node = pinned_node(world.cluster.pod("gpt-spare-0"))
    if not is_gone:
        world.cluster.answers.pop("gpt-spare-0")
    lose_node(world, node, is_gone=is_gone)
    fail(world, 1, 137)
    world.reconcile(key)

    assert world.status(key)["stages"][1]["pod"] == "gpt-r0-s1"
    assert not world.cluster.given


def test_a_spare_that_does_not_answer_takes_nobodys_place():
    world, key = spared()
    warm(world)
    world.cluster.answers.pop("gpt-spare-0")
    fail(world, 1, 137)
    world.reconcile(key)

    assert world.status(key)["stages"][1]["pod"] == "gpt-r0-s1"


def test_where_the_cluster_refuses_a_spare_the_gang_trains_on():
    world = World(nodes(_STAGES_AND_ONE))
    refusal = ForbiddenError("exceeded quota: pods=3")
    world.cluster.refuse = lambda verb, item: (
        refusal if verb == "apply" and item["metadata"]["name"] == "gpt-spare-0" else None
    )
    key = submitted(world, **(SPREAD | ONE))
    world.settle()

    assert world.status(key)["state"] == "Training"
    assert recovery(world, key)["fewerSpares"] == "the cluster refused a spare: exceeded quota: pods=3"
    assert spares(world, key) == []


def test_fewer_are_kept_once_fewer_are_asked_for_and_none_once_the_job_ends_or_is_suspended():
    world, key = spared(5, recovery={"inPlace": True, "spares": 2})
    warm(world, 0)
    warm(world, 1)
    assert [number for number, _, _ in spares(world, key)] == [0, 1]

    world.cluster.edit(key, recovery={"inPlace": True, "spares": 1})
    world.settle()
    world.cluster.finish_deletions()
    assert [number for number, _, _ in spares(world, key)] == [0]
    assert "gpt-spare-1" not in pod_names(world)

    world.cluster.edit(key, suspend=True)
    world.settle()
    world.cluster.finish_deletions()
    world.settle()
    assert spares(world, key) == []
    assert pod_names(world) == []


def test_spares_are_like_the_stages_that_most_are_like_and_take_only_their_places():
    large = {"spec": {"containers": [{"name": "trainer", "resources": {"requests": {"cpu": "12"}}}]}}
    world, key = spared(stageTemplates=[{"stage": 0, "template": large}])
    warm(world)
    (own,) = world.cluster.pod("gpt-spare-0")["spec"]["containers"]
    assert own["resources"]["requests"]["cpu"] == "10"

    fail(world, 0, 137)
    world.reconcile(key)

    assert world.status(key)["stages"][0]["pod"] == "gpt-r0-s0"
    assert [number for number, _, _ in spares(world, key)] == [0]


def test_what_a_new_operator_finds_half_done_it_finishes():
    world, key = spared()
    warm(world)
    fail(world, 1, 137)
    world.cluster.refuse = lambda verb, item: RuntimeError("killed") if verb == "delete" else None
    with pytest.raises(RuntimeError):
        world.reconcile(key)
    world.cluster.refuse = lambda verb, item: None
    world.restart()
    assert not world.cluster.given

    world.settle()

    assert world.cluster.given[0] == ("gpt-spare-0", (0, 1, 1))
    assert "gpt-r0-s1" not in pod_names(world)


def live(*, verb=None, deadly=0):
    """Lose a stage whose place a spare takes; the operator dies at its n-th write. Return also how many it made."""
    world, key = spared()
    warm(world)
    mortal = Mortal.__new__(Mortal)
    mortal.__dict__ = world.__dict__
    mortal.deadly = deadly
    setattr(world.cluster, verb or "refuse", mortal.judge)
    fail(mortal, 1, 137)
    mortal.settle()
    become(mortal, 0, 1)
    mortal.settle()
    all_train(mortal, heard=2)
    become(mortal, 0, 1, waits=False, step=7, heard=2)
    mortal.settle()
    return world, key, deadly - mortal.deadly


@pytest.mark.parametrize("verb", ["refuse", "lose_answer"])
def test_an_operator_that_dies_at_any_write_ends_with_the_spare_in_the_lost_stages_place(verb, capsys):
    *_, positions = live()
    assert positions >= 6

    for deadly in range(1, positions + 1):
        world, key, _ = live(verb=verb, deadly=deadly)

        status = world.status(key)
        assert (status["state"], status["attempt"]) == ("Training", 1), f"killed at write {deadly}"
        assert [each["pod"] for each in status["stages"]] == ["gpt-r0-s0", "gpt-spare-0", "gpt-r0-s2"]
        assert pod_names(world) == ["gpt-r0-s0", "gpt-r0-s2", "gpt-spare-0", "gpt-spare-1"], f"killed at {deadly}"
        told = [(pod, number) for pod, number, _ in incarnations(world)]
        assert len(told) == len(set(told)), "a number was told twice"

    with capsys.disabled():
        print(f"\na spare: killed at each of {positions} writes ({verb}), no breach of an invariant")


def test_where_the_machine_keeps_spares_of_its_own_no_pods_are_made():
    world = World(nodes(_STAGES_AND_ONE), settings=replace(SETTINGS, keeps_spares=True))
    key = submitted(world, **(SPREAD | ONE))
    world.settle()

    assert pod_names(world) == ["gpt-r0-s0", "gpt-r0-s1", "gpt-r0-s2"]
    assert "fewerSpares" not in recovery(world, key)


def test_kueue_counts_spares_with_the_stages_and_no_more_are_kept_than_it_admitted():
    world = World(nodes(5))
    kueue = Kueue(world)
    key = world.submit(queued(**(SPREAD | ONE)))
    world.settle()
    assert [each["count"] for each in kueue.workload["spec"]["podSets"]] == [4]
    kueue.admit()
    world.train()
    all_wait(world)
    world.settle()
    all_train(world, heard=1)
    warm(world)
    assert [number for number, _, _ in spares(world, key)] == [0]

    world.cluster.edit(key, recovery={"inPlace": True, "spares": 2})
    world.settle()

    assert [number for number, _, _ in spares(world, key)] == [0]
    assert recovery(world, key)["fewerSpares"] == (
        "Kueue's queue team-a admitted the job with 1; set suspend to true, and to false again"
    )


def test_where_the_cluster_forbids_the_labels_the_spare_becomes_the_stage_all_the_same():
    world, key = spared()
    warm(world)
    world.cluster.refuse = lambda verb, item: ForbiddenError("no labels may change") if verb == "change" else None
    fail(world, 1, 137)
    world.reconcile(key)
    become(world, 0, 1)
    world.reconcile(key)
    all_train(world, heard=2)
    become(world, 0, 1, waits=False, step=7, heard=2)
    for _ in range(5):
        world.reconcile(key)

    status = world.status(key)
    assert (status["state"], status["attempt"]) == ("Training", 1)
    assert [each["pod"] for each in status["stages"]] == ["gpt-r0-s0", "gpt-spare-0", "gpt-r0-s2"]
    assert pod_names(world) == ["gpt-r0-s0", "gpt-r0-s2", "gpt-spare-0", "gpt-spare-1"]
