"""Topology: which labels are read, in which order, and what a missing one means."""

import pytest

from pipelinejob.base.errors import SpecError
from pipelinejob.fabric.topology import PROFILES, NodeInfo, Topology, detect
from pipelinejob.spec.network.topology_profile import Link, MissingLabels, TopologyProfileSpec


def labelled(name, labels):
    return NodeInfo(name=name, labels=labels)


EKS = "topology.k8s.aws/network-node-layer-"
TIER = "fabric.topograph.run/tier-"
V0 = "network.topology.nvidia.com/"
OCI = "oci.oraclecloud.com/"
KUEUE = "cloud.provider.com/topology-"
V01 = "network.topology.kubernetes.io/"
DOMAIN = "accelerator.topograph.run/domain"
SUB_DOMAIN = "accelerator.topograph.run/sub-domain"
VOLCANO = "volcano.sh/"
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
        ({V01 + "block": "l", V01 + "spine": "s", V01 + "datacenter": "c"}, "topograph-v0", ("c", "s", "l", "n")),
        (
            {TIER + "0": "near", TIER + "1": "mid", DOMAIN: "nvl-1", SUB_DOMAIN: "nvl-1.2"},
            "topograph",
            ("mid", "near", "nvl-1", "nvl-1.2", "n"),
        ),
        ({VOLCANO + "hypercluster": "hc", VOLCANO + "hypernode": "hn"}, "volcano", ("hc", "hn", "n")),
        ({VOLCANO + "tor": "t", CLIQUE: "u.1"}, "volcano", ("t", "u.1", "n")),
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


RACKED = [labelled("a", {"rack": "1"}), labelled("b", {}), labelled("c", {"rack": ""})]


def test_nodes_without_a_label_stand_together_if_so_asked():
    topology = Topology.of(RACKED, levels=["rack"], missing=MissingLabels.TOGETHER)

    assert topology.paths == {"a": ("1", "a"), "b": ("no rack", "b"), "c": ("no rack", "c")}
    assert topology.notes == ("b, c: no label rack, so they count as one rack",)


def test_nodes_without_a_label_take_no_stage_if_so_asked():
    topology = Topology.of(RACKED, levels=["rack"], missing=MissingLabels.EXCLUDE)

    assert topology.paths == {"a": ("1", "a")}
    assert [node.unusable for node in topology.usable(RACKED)] == [None, "has no label rack", "has no label rack"]
    assert topology.notes == ("b, c: no label rack, so they take no stage",)


def test_a_node_that_is_unusable_anyhow_keeps_its_reason():
    cordoned = NodeInfo(name="d", unusable="is cordoned")
    topology = Topology.of([*RACKED, cordoned], levels=["rack"], missing=MissingLabels.EXCLUDE)

    assert topology.usable([cordoned])[0].unusable == "is cordoned"


@pytest.mark.parametrize("missing", MissingLabels)
def test_of_an_optional_level_a_node_may_lack_the_label_whatever_is_asked(missing):
    nodes = [labelled("a", {ZONE: "z", CLIQUE: "u.1"}), labelled("b", {ZONE: "z"})]

    topology = Topology.of(nodes, missing=missing)

    assert topology.paths["b"] == ("z", "only b", "b")
    assert topology.notes == ()


PROFILE = TopologyProfileSpec.model_validate({
    "levels": [{"name": "row", "keys": ["x/row"], "link": {"kind": "roce-400"}}, {"name": "rack", "keys": ["x/rack"]}],
    "missingLabels": "Exclude",
    "clusterLink": {"bytesPerSecond": 1e9},
})  # fmt: skip


def test_a_clusters_own_profile_brings_its_levels_links_and_answer_to_missing_labels():
    nodes = [labelled("a", {"x/row": "1", "x/rack": "2"}), labelled("b", {"x/row": "1"})]

    topology = Topology.of(nodes, "ours", profiles={"ours": PROFILE})

    assert topology.paths == {"a": ("1", "2", "a")}
    assert [level.link for level in topology.levels] == [Link(kind="roce-400"), None, None]
    assert topology.link == Link(bytes_per_second=1e9)
    assert Topology.of(nodes, "ours", missing=MissingLabels.TOGETHER, profiles={"ours": PROFILE}).excluded == {}


def test_a_clusters_own_profile_is_detected_before_presets_if_a_node_carries_its_labels():
    theirs = [labelled(name, {V0 + "leaf": "l"}) for name in "abc"]

    assert Topology.of([*theirs, labelled("d", {"x/rack": "2"})], profiles={"ours": PROFILE}).profile == "ours"
    assert Topology.of(theirs, profiles={"ours": PROFILE}).profile == "topograph-v0"


def test_a_clusters_own_profile_replaces_the_preset_of_its_name():
    node = labelled("a", {"x/row": "1", "topology.k8s.aws/network-node-layer-1": "s"})

    assert Topology.of([node], "eks", profiles={"eks": PROFILE}).levels[0].name == "row"


def test_a_profile_that_does_not_exist_is_refused_with_the_clusters_own_among_those_that_do():
    with pytest.raises(SpecError, match="there is no profile 'our'; use auto, or one of ours, gke, eks"):
        Topology.of([], "our", profiles={"ours": PROFILE})


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
