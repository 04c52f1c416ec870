"""What pods take of nodes, exactly as the scheduler reckons, and how templates are merged."""

from fractions import Fraction

import pytest

from pipelinejob.base.quantities import quantity
from pipelinejob_operator.admission.capacity import free_room
from pipelinejob_operator.objects.making.pod_template import merge
from pipelinejob_operator.objects.requests import pod_requests
from support.manifests.jobs import node


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("8", 8),
        (8, 8),
        ("250m", Fraction(1, 4)),
        ("1.5", Fraction(3, 2)),
        ("4Gi", 4 * 2**30),
        ("4G", 4 * 10**9),
        ("1e3", 1000),
        ("2E", 2 * 10**18),
        ("100n", Fraction(1, 10**7)),
        (".5", Fraction(1, 2)),
    ],
)
def test_quantities_are_exact(text, number):
    assert quantity(text) == number


@pytest.mark.parametrize("text", ["", "4 Gi", "Gi", "1e", "two"])
def test_what_is_no_quantity_is_named(text):
    with pytest.raises(ValueError, match="no quantity"):
        quantity(text)


def container(cpu, **more):
    return {"resources": {"requests": {"cpu": cpu}}} | more


@pytest.mark.parametrize(
    ("spec", "cpu"),
    [
        ({"containers": [container("1"), container("2")]}, 3),
        ({"containers": [container("1")], "initContainers": [container("4"), container("2")]}, 4),
        ({"containers": [container("1")], "initContainers": [container("2", restartPolicy="Always")]}, 3),
        (
            {
                "containers": [container("1")],
                "initContainers": [container("2", restartPolicy="Always"), container("3")],
            },
            5,
        ),
        ({"containers": [container("1")], "overhead": {"cpu": "500m"}}, Fraction(3, 2)),
        ({"containers": [{"resources": {"limits": {"cpu": "2"}}}]}, 2),
        ({"containers": [container("1")], "resources": {"requests": {"cpu": "4"}}}, 4),
    ],
    ids=["sum", "largest init", "sidecar", "init beside a sidecar", "overhead", "limits alone", "pod as a whole"],
)
def test_a_pod_takes_what_the_scheduler_reckons(spec, cpu):
    assert pod_requests({"spec": spec})["cpu"] == cpu


def test_a_pod_counts_as_one_pod():
    assert pod_requests({"spec": {"containers": []}}) == {"pods": 1}


@pytest.mark.parametrize(
    ("pod", "left"),
    [
        ({"spec": {"nodeName": "n0", "containers": [container("4")]}}, 12),
        ({"spec": {"nodeName": "n0", "containers": [container("4")]}, "status": {"phase": "Succeeded"}}, 16),
        ({"spec": {"containers": [container("4")]}}, 16),
        ({"spec": {"nodeName": "n1", "containers": [container("4")]}}, 16),
    ],
    ids=["bound", "ended", "unbound", "elsewhere"],
)
def test_only_live_pods_on_a_node_take_from_it(pod, left):
    assert free_room([node("n0")], [{"metadata": {}} | pod], ())["n0"]["cpu"] == left


@pytest.mark.parametrize(
    ("base", "overlay", "merged"),
    [
        ({"a": 1, "b": 2}, {"b": 3}, {"a": 1, "b": 3}),
        ({"labels": {"a": "1"}}, {"labels": {"b": "2"}}, {"labels": {"a": "1", "b": "2"}}),
        (
            {"containers": [{"name": "x", "image": "1"}]},
            {"containers": [{"name": "y"}, {"name": "x", "image": "2"}]},
            {"containers": [{"name": "x", "image": "2"}, {"name": "y"}]},
        ),
        ({"command": ["a", "b"]}, {"command": ["c"]}, {"command": ["c"]}),
        (
            {"volumes": [{"name": "v", "emptyDir": {}}]},
            {"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]},
            {"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]},
        ),
    ],
    ids=["scalars", "maps", "named lists", "other lists", "a volume has one source"],
)
def test_templates_merge_as_kubectl_users_expect(base, overlay, merged):
    assert merge(base, overlay) == merged
