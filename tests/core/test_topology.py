"""Topology: which labels are read, in which order, and what a missing one means."""

import pytest

from pipelinejob.errors import SpecError
from pipelinejob.topology import PROFILES, NodeInfo, Topology, detect


def labelled(name, labels):
    return NodeInfo(name=name, labels=labels)


EKS = "topology.k8s.aws/network-node-layer-"
TIER = "fabric.topograph.run/tier-"
V0 = "network.topology.nvidia.com/"
OCI = "oci.oraclecloud.com/"
KUEUE = "cloud.provider.com/topology-"
CLIQUE = "nvidia.com/gpu.clique"
ZONE = "topology.kubernetes.io/zone"


@pytest.mark.parametrize(
    ("labels", "profile", "path"),
    [
        ({EKS + "1": "nn-a", EKS + "2": "nn-b", EKS + "3": "nn-c"}, "eks", ("nn-a", "nn-b", "nn-c", "n")),
        ({TIER + "0": "near", TIER + "1": "mid", TIER + "2": "far"}, "topograph", ("far", "mid", "near", "n")),
        ({V0 + "leaf": "l", V0 + "spine": "s", V0 + "core": "c"}, "topograph-v0", ("c", "s", "l", "n")),
        ({V0 + "block": "l", V0 + "spine": "s", V0 + "datacenter": "c"}, "topograph-v0", ("c", "s", "l", "n")),
        (
            {"cloud.google.com/gce-topology-host": "h", "cloud.google.com/gce-topology-block": "b", ZONE: "z"},
            "gke",
            ("z", "b", "h", "n"),
        ),
        ({OCI + "host.rack_id": "r", OCI + "host.network_block_id": "b"}, "oci", ("b", "r", "n")),
        (
            {
                "backend.coreweave.cloud/leafgroup": "l",
                "backend.coreweave.cloud/superpod": "s",
                "ds.coreweave.com/nvlink.domain": "nv",
            },
            "coreweave",
            ("s", "l", "nv", "n"),
        ),
        ({"alibabacloud.com/asw-id": "a", "alibabacloud.com/point-of-delivery": "p"}, "alibaba", ("p", "a", "n")),
        ({KUEUE + "rack": "r", KUEUE + "block": "b"}, "kueue-docs", ("b", "r", "n")),
        ({ZONE: "z", "topology.kubernetes.io/region": "r", CLIQUE: "u.1"}, "kubernetes", ("r", "z", "u.1", "n")),
        ({}, "kubernetes", ("n",)),
    ],
)  # fmt: skip
def test_a_providers_labels_are_detected_and_read_from_coarse_to_fine(labels, profile, path):
    topology = Topology.of([labelled("n", labels)])

    assert topology.profile == profile
    assert topology.paths["n"] == path


def test_the_profile_that_most_nodes_carry_is_taken():
    nodes = [labelled("a", {EKS + "1": "x"}), labelled("b", {V0 + "leaf": "x"}), labelled("c", {V0 + "leaf": "x"})]

    assert detect(nodes) == "topograph-v0"


def test_every_profile_names_each_level_and_each_key_once():
    for levels in PROFILES.values():
        keys = [key for level in levels for key in level.keys]
        assert len(keys) == len(set(keys))
        assert len({level.name for level in levels}) == len(levels)


def test_levels_that_no_node_carries_are_left_out():
    topology = Topology.of([labelled("n", {"backend.coreweave.cloud/superpod": "A"})])

    assert [level.name for level in topology.levels] == ["superpod", "node"]
    assert [level.name for level in topology.absent] == ["zone", "fabric", "leaf", "nvlink"]


def test_domains_of_one_name_in_different_parents_are_different_domains():
    nodes = [labelled("a", {"big": "1", "small": "1"}), labelled("b", {"big": "2", "small": "1"})]

    topology = Topology.of(nodes, levels=["big", "small"])

    assert [domain.path for domain in topology.root.at_depth(2)] == [("1", "1"), ("2", "1")]


def test_a_node_without_a_label_stands_alone_and_a_note_says_so():
    nodes = [
        labelled("a", {"rack": "1"}),
        *(labelled(name, {}) for name in ("e", "d", "c", "b")),
        labelled("f", {"rack": ""}),
    ]

    topology = Topology.of(nodes, levels=["rack"])

    assert topology.paths["b"] == ("only b", "b")
    assert len(list(topology.root.at_depth(1))) == 6
    assert topology.notes == ("b, c, d and 2 more: no label rack, so each counts as a rack of its own",)


def test_nodes_outside_any_nvlink_domain_need_no_note():
    topology = Topology.of([labelled("a", {ZONE: "z", CLIQUE: "u.1"}), labelled("b", {ZONE: "z"})])

    assert topology.notes == ()
    assert topology.paths["b"] == ("z", "only b", "b")


def test_a_level_answers_to_its_name_and_to_its_labels():
    topology = Topology.of([labelled("n", {V0 + "leaf": "l", V0 + "spine": "s"})])

    assert topology.depth_of("leaf", path="p") == 2
    assert topology.depth_of(V0 + "block", path="p") == 2
    assert topology.depth_of("node", path="p") == 3
    assert topology.depth_of("kubernetes.io/hostname", path="p") == 3
    assert topology.depth_of("core", path="p") is None


@pytest.mark.parametrize(
    ("ask", "problem"),
    [
        (
            lambda: Topology.of([], profile="gkee"),
            (
                "spec.topology.profile: there is no profile 'gkee'; use auto, or one of gke, eks, oci, coreweave, "
                "alibaba, topograph, topograph-v0, kueue-docs, volcano, kubernetes"
            ),
        ),
        (
            lambda: Topology.of([labelled("n", {ZONE: "z"})]).depth_of("leaf", path="spec.topology.pipeline.required"),
            ("spec.topology.pipeline.required: there is no level 'leaf' in profile kubernetes; use one of zone, node"),
        ),
    ],
)
def test_a_name_that_does_not_exist_is_refused_with_those_that_do(ask, problem):
    with pytest.raises(SpecError) as error:
        ask()

    assert str(error.value) == problem
