"""What the scheduler refuses for the sake of other pods, known beforehand: ports, affinity, spread, resizes."""

from fractions import Fraction

import pytest

from pipelinejob.base import names
from pipelinejob_operator.kube.caching import projection
from pipelinejob_operator.objects.requests import host_ports, pod_requests
from support.clusters.operatorworld import World
from support.manifests.jobs import job, node, nodes

HOSTNAME, ZONE = "kubernetes.io/hostname", "topology.kubernetes.io/zone"
OWN = {"matchLabels": {names.LABEL_JOB: "gpt"}}


def term(selector, key=HOSTNAME, **more):
    return {"labelSelector": selector, "topologyKey": key} | more


def apart(*terms):
    return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": list(terms)}}


def together(*terms):
    return {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": list(terms)}}


def templated(**spec):
    return {"template": {"spec": spec}}


def stranger(world, name, place, *, labels=None, namespace="default", **spec):
    """Put a pod there that is nobody's, as the informer keeps it."""
    spec = {"nodeName": place, "containers": [{"name": "x"}]} | spec
    metadata = {"namespace": namespace, "name": name, "labels": labels or {}}
    kept = projection.pod({"kind": "Pod", "metadata": metadata, "spec": spec, "status": {"phase": "Running"}})
    world.cluster._put(kept)


def placed_on(world, key):
    return sorted(stage.get("node") or "" for stage in world.status(key)["stages"])


def three_zones(gpus=2):
    return [node(f"{zone}{n}", gpus=gpus, labels={ZONE: zone}) for zone in "abc" for n in range(2)]


# The gang's own pods


@pytest.mark.parametrize(
    "template",
    [
        templated(hostNetwork=True, dnsPolicy="ClusterFirstWithHostNet"),
        templated(affinity=apart(term(OWN))),
        templated(containers=[{"name": "trainer", "ports": [{"containerPort": 5000, "hostPort": 5000}]}]),
        templated(
            topologySpreadConstraints=[
                {"maxSkew": 1, "topologyKey": HOSTNAME, "whenUnsatisfiable": "DoNotSchedule", "labelSelector": OWN}
            ]
        ),
    ],
    ids=["host network", "anti-affinity", "host port", "spread"],
)
def test_stages_that_may_not_stand_together_do_not(template):
    world = World(nodes(2, gpus=8))
    key = world.submit(job(**template))
    world.train()

    assert (world.status(key)["state"], placed_on(world, key)) == ("Training", ["n0", "n1"])


def test_where_no_node_is_left_for_a_stage_that_has_to_stand_alone_that_is_said():
    world = World(nodes(1, gpus=8))
    key = world.submit(job(**templated(affinity=apart(term(OWN)))))
    world.settle()

    assert world.condition(key, "Placed")["reason"] == "NeverFits"
    assert "place in a kubernetes.io/hostname of its own" in world.condition(key, "Placed")["message"]


def test_stages_kept_apart_by_zone_go_one_to_a_zone():
    world = World(three_zones())
    key = world.submit(job(parallelism={"pipeline": 3}, **templated(affinity=apart(term(OWN, ZONE)))))
    world.train()

    assert sorted(place[0] for place in placed_on(world, key)) == ["a", "b", "c"]


def test_replicas_kept_apart_stage_by_stage_share_nodes_with_other_stages():
    first = {"matchLabels": {names.LABEL_JOB: "gpt", names.LABEL_STAGE: "0"}}
    world = World(nodes(2, gpus=2))
    key = world.submit(
        job(parallelism={"pipeline": 2, "data": 2}, stageTemplates=[
            {"stage": 0, "template": {"spec": {"affinity": apart(term(first))}}}
        ])
    )  # fmt: skip
    world.train()

    firsts = {stage["node"] for stage in world.status(key)["stages"] if stage["stage"] == 0}
    assert firsts == {"n0", "n1"}


def test_stages_that_have_to_stand_together_stand_in_one_zone():
    world = World([*three_zones(gpus=1), node("d0", gpus=1, labels={ZONE: "d"})])
    stranger(world, "busy", "a0", containers=[{"name": "x", "resources": {"requests": {"nvidia.com/gpu": "1"}}}])
    key = world.submit(job(**templated(affinity=together(term(OWN, ZONE)))))
    world.train()

    assert len({place[0] for place in placed_on(world, key)}) == 1
    assert "a1" not in placed_on(world, key)


def test_a_spread_over_zones_is_as_even_as_the_room_allows():
    spread = {"maxSkew": 1, "topologyKey": ZONE, "whenUnsatisfiable": "DoNotSchedule", "labelSelector": OWN}
    world = World(three_zones(gpus=4))
    key = world.submit(job(parallelism={"pipeline": 6}, **templated(topologySpreadConstraints=[spread])))
    world.train()

    assert sorted(place[0] for place in placed_on(world, key)) == ["a", "a", "b", "b", "c", "c"]


def test_a_spread_that_is_only_a_wish_holds_nothing_up():
    spread = {"maxSkew": 1, "topologyKey": ZONE, "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": OWN}
    world = World([node("a0", gpus=2, labels={ZONE: "a"}), node("b0", gpus=0, labels={ZONE: "b"})])
    key = world.submit(job(**templated(topologySpreadConstraints=[spread])))
    world.train()

    assert placed_on(world, key) == ["a0", "a0"]


# Pods of others


def test_a_port_that_another_pod_has_is_left_to_it():
    world = World(nodes(2, gpus=8))
    port = {"hostPort": names.PORT_METRICS, "containerPort": 1}
    stranger(world, "exporter", "n0", containers=[{"name": "x", "ports": [port]}])
    key = world.submit(job(parallelism={"pipeline": 1}, **templated(hostNetwork=True)))
    world.train()

    assert placed_on(world, key) == ["n1"]


def test_a_job_on_the_hosts_network_waits_for_another_that_has_its_ports():
    world = World(nodes(1, gpus=8))
    first = world.submit(job("first", parallelism={"pipeline": 1}, **templated(hostNetwork=True)))
    world.train()
    world.cluster.pass_time(1)
    second = world.submit(job("second", parallelism={"pipeline": 1}, **templated(hostNetwork=True)))
    world.settle()

    assert world.condition(second, "Placed")["reason"] == "NoRoom"
    assert world.status(second)["waitsFor"] == ["default/first"]
    for pod in world.cluster.pods(first):
        world.cluster.set_pod(pod, phase="Succeeded", code=0)
    world.train()
    assert world.status(second)["state"] == "Training"


@pytest.mark.parametrize("key", [HOSTNAME, ZONE])
def test_a_job_keeps_away_from_pods_that_it_may_not_stand_beside(key):
    world = World([node(f"{zone}0", labels={ZONE: zone}) for zone in "ab"])
    stranger(world, "noisy", "a0", labels={"app": "noisy"})
    affinity = apart(term({"matchExpressions": [{"key": "app", "operator": "In", "values": ["noisy"]}]}, key))
    submitted = world.submit(job(parallelism={"pipeline": 1}, **templated(affinity=affinity)))
    world.train()

    assert placed_on(world, submitted) == ["b0"]


def test_a_job_keeps_away_from_pods_that_want_none_like_it_beside_them():
    world = World(nodes(2))
    everyone = term({}, namespaceSelector={})
    stranger(world, "shy", "n0", namespace="other", affinity=apart(everyone))
    key = world.submit(job(parallelism={"pipeline": 1}))
    world.train()

    assert placed_on(world, key) == ["n1"]


def test_an_affinity_means_its_own_namespace_unless_it_says_another():
    world = World(nodes(2))
    stranger(world, "shy", "n0", namespace="other", affinity=apart(term({})))
    stranger(world, "elsewhere", "n0", namespace="other", labels={"app": "noisy"})
    affinity = apart(term({"matchLabels": {"app": "noisy"}}))
    key = world.submit(job(**templated(affinity=affinity)))
    world.train()

    assert placed_on(world, key) == ["n0", "n1"]


def test_a_job_that_has_to_stand_beside_others_goes_there_or_waits():
    world = World(nodes(3))
    affinity = together(term({"matchLabels": {"app": "cache"}}))
    key = world.submit(job(parallelism={"pipeline": 1}, **templated(affinity=affinity)))
    world.settle()
    assert world.status(key)["state"] == "Waiting"

    stranger(world, "cache", "n2", labels={"app": "cache"})
    world.train()
    assert placed_on(world, key) == ["n2"]


def test_what_only_pods_of_others_keep_away_keeps_no_nodes_from_those_behind():
    world = World(nodes(1))
    stranger(world, "noisy", "n0", labels={"app": "noisy"})
    kept_away = world.submit(
        job(
            "kept-away",
            parallelism={"pipeline": 1},
            **templated(affinity=apart(term({"matchLabels": {"app": "noisy"}}))),
        )
    )
    world.settle()
    world.cluster.pass_time(1)
    other = world.submit(job("other", parallelism={"pipeline": 1}))
    world.train()

    assert [world.status(key)["state"] for key in (kept_away, other)] == ["Waiting", "Training"]


# What is held is not always what is asked


def resized(asked, held, **more):
    container = {"name": "x", "resources": {"requests": {"cpu": asked}}}
    status = {"name": "x", "allocatedResources": {"cpu": held}, "resources": {"requests": {"cpu": held}}}
    return {
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": "default"},
        "spec": {"nodeName": "n0", "containers": [container]},
        "status": {"phase": "Running", "containerStatuses": [status]} | more,
    }


@pytest.mark.parametrize(("asked", "held", "counts"), [("1", "3", 3), ("3", "1", 3), ("2", "2", 2)])
def test_of_a_resize_that_is_not_done_the_larger_counts(asked, held, counts):
    pod = resized(asked, held)

    assert pod_requests(pod)["cpu"] == counts
    assert pod_requests(projection.pod(pod))["cpu"] == counts


def test_of_a_pod_that_was_not_resized_no_status_is_kept():
    assert projection.pod(resized("2", "2"))["status"] == {"phase": "Running"}


def test_a_pod_that_is_about_to_get_a_node_holds_its_room_there():
    world = World(nodes(1))
    waiting = resized("15900m", "15900m", nominatedNodeName="n0", phase="Pending")
    del waiting["spec"]["nodeName"]
    world.cluster._put(projection.pod(waiting))
    key = world.submit(job(parallelism={"pipeline": 1}))
    world.settle()

    assert world.condition(key, "Placed")["reason"] == "NoRoom"


def test_ports_of_the_host_are_those_of_containers_and_of_sidecars_on_the_hosts_network():
    spec = {
        "hostNetwork": True,
        "initContainers": [
            {"name": "mesh", "restartPolicy": "Always", "ports": [{"containerPort": 1}]},
            {"name": "before", "ports": [{"containerPort": 2}]},
        ],
        "containers": [{"name": "x", "ports": [{"containerPort": 3, "hostPort": 3, "protocol": "UDP"}]}],
    }

    assert list(host_ports({"spec": spec})) == ["host port 1/TCP", "host port 3/UDP"]
    assert pod_requests({"spec": spec})["host port 1/TCP"] == Fraction(1)
