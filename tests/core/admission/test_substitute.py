"""Where a lost stage goes while the others stay: the nearest node that takes it."""

import pytest

from pipelinejob.fabric.topology import NodeInfo, Topology
from pipelinejob.spec.network.topology import TopologyScope
from pipelinejob_operator.admission.capacity import free_room
from pipelinejob_operator.admission.pods.fitting import takers
from pipelinejob_operator.admission.pods.neighbours import NOBODY
from pipelinejob_operator.admission.pods.substitute import nearest
from support.manifests.jobs import node

# Two leaves of three nodes: a0, a1, a2 and b0, b1, b2.
NAMES = [f"{leaf}{number}" for leaf in "ab" for number in range(3)]
TOPOLOGY = Topology.of([NodeInfo(name=name, labels={"leaf": name[0]}) for name in NAMES], levels=["leaf"])


def near(*names):
    return [TOPOLOGY.paths[name] for name in names]


@pytest.mark.parametrize(
    ("free", "wanted"),
    [
        ("a0 a1 a2 b0 b1 b2", "a1"),  # where it was
        ("a0 a2 b0 b1", "a0"),  # in the same leaf, where its neighbour is
        ("a2 b0 b1", "a2"),
        ("b2 b1 b0", "b0"),
        ("", None),
    ],
)
def test_the_nearest_to_where_it_was_is_taken_then_to_its_neighbours(free, wanted):
    place = nearest(free.split(), TOPOLOGY, near("a1", "a0", "b0"), TopologyScope())
    assert (place and place.node) == wanted
    assert place is None or place.path == TOPOLOGY.paths[wanted]


@pytest.mark.parametrize(("free", "wanted"), [("b0 a2", "a2"), ("b0 b1", None)])
def test_a_domain_that_the_job_requires_is_not_left(free, wanted):
    place = nearest(free.split(), TOPOLOGY, near("a1", "a0", "a2"), TopologyScope(required="leaf"))
    assert (place and place.node) == wanted


def pod(name, on=None, **requests):
    spec = {"containers": [{"name": "trainer", "resources": {"requests": requests}}]}
    return {"metadata": {"name": name, "namespace": "default"}, "spec": spec | ({"nodeName": on} if on else {})}


def test_a_node_takes_a_pod_that_is_open_to_it_and_has_room_beside_the_gangs_others():
    cordoned, tainted, silent = node("cordoned"), node("tainted"), node("silent")
    cordoned["spec"]["unschedulable"] = True
    tainted["spec"]["taints"] = [{"key": "example.com/bad", "effect": "NoSchedule"}]
    silent["status"]["conditions"] = [{"type": "Ready", "status": "Unknown"}]
    nodes = [node("held"), node("open"), node("full"), cordoned, tainted, silent]
    free = free_room(nodes, [pod("another", on="full", cpu="8")], ())
    stays = [pod("stays", on="held", cpu="8")]

    assert takers(pod("lost", cpu="10"), nodes, free, stays, NOBODY) == ["open"]
    assert takers(pod("lost", cpu="6"), nodes, free, stays, NOBODY) == ["held", "open", "full"]
