"""Fabrics: a few lines of text give the nodes that a person meant, or a reason why not."""

from fractions import Fraction
from pathlib import Path

import pytest
import yaml

from pipelinejob.base.errors import InvalidManifestError
from pipelinejob.fabric import synthetic as fabric
from pipelinejob.spec.network.topology_profile import Link

EXAMPLES = Path(__file__).parents[3] / "examples" / "fabrics"


def free_nodes(cluster):
    return [node.name for node in cluster.nodes if node.free["pods"]]


def test_512_nodes_take_ten_lines():
    text = """
levels: [superpod, leaf]
node: {product: NVIDIA-H100-80GB-HBM3, gpus: 8, cpu: 192, memory: 2Ti}
links: {cluster: roce-400, superpod: infiniband-ndr}
groups:
- {superpod: [A, B, C], leaf: 8, nodes: 16}
- {superpod: D, leaf: [64, 32, 16, 16]}
busy:
- {in: A, nodes: 40, seed: 1}
- B-leaf-2
"""

    cluster = fabric.read(yaml.safe_load(text))

    assert len(text.strip().splitlines()) == 9
    assert len(cluster.nodes) == 512
    assert len(free_nodes(cluster)) == 512 - 40 - 16
    assert [len(list(cluster.topology.root.at_depth(depth))) for depth in range(4)] == [1, 4, 28, 512]
    assert [level.name for level in cluster.topology.levels] == ["superpod", "leaf", "node"]
    assert cluster.topology.link == Link(kind="roce-400")
    assert cluster.topology.levels[0].link == Link(kind="infiniband-ndr")


def test_a_node_has_what_the_description_gives_it():
    (node,) = fabric.read({
        "levels": ["zone"],
        "node": {"product": "NVIDIA-L4", "gpus": 2, "cpu": "500m", "memory": "1Gi", "resources": {"rdma/hca": 1}},
        "groups": [{"zone": "z", "node": {"gpus": 4, "labels": {"team": "a"}}}],
    }).nodes  # fmt: skip

    assert node.name == "z-n0"
    assert node.labels == {
        "topology.kubernetes.io/zone": "z",
        "kubernetes.io/hostname": "z-n0",
        "nvidia.com/gpu.product": "NVIDIA-L4",
        "nvidia.com/gpu.count": "4",
        "team": "a",
    }
    assert node.free == {
        "cpu": Fraction(1, 2), "memory": 2**30, "pods": 110, "rdma/hca": 1, "nvidia.com/gpu": 4,
    }  # fmt: skip


def test_domains_are_numbered_on_over_groups_and_named_ones_are_joined():
    nodes = fabric.read({
        "levels": ["superpod", "leaf"],
        "groups": [
            {"superpod": "A", "leaf": 1, "nodes": 2},
            {"superpod": "A", "leaf": [1]},
            {"superpod": 1, "leaf": 1},
        ],
    }).nodes  # fmt: skip

    assert [node.name for node in nodes] == ["a-leaf-0-n0", "a-leaf-0-n1", "a-leaf-1-n0", "superpod-0-leaf-0-n0"]


def test_a_level_that_a_group_leaves_out_is_a_label_that_its_nodes_lack():
    cluster = fabric.read({"levels": ["rack", "nvlink"], "groups": [{"rack": 1, "nvlink": 1}, {"rack": 1}]})

    assert "nvidia.com/gpu.clique" in cluster.nodes[0].labels
    assert "nvidia.com/gpu.clique" not in cluster.nodes[1].labels
    assert cluster.topology.notes == ()  # an NVLink domain is optional


def test_a_presets_levels_carry_its_keys_and_are_detected():
    nodes = fabric.read({"profile": "eks", "levels": ["spine", "leaf"], "groups": [{"spine": 1, "leaf": 2}]}).nodes

    assert nodes[0].labels["topology.k8s.aws/network-node-layer-1"] == "spine-0"
    assert nodes[0].labels["topology.k8s.aws/network-node-layer-3"] == "spine-0-leaf-0"


def test_what_is_scattered_depends_on_the_seed_alone():
    def busy(seed):
        return free_nodes(fabric.read({"groups": [{"nodes": 20}], "busy": {"nodes": 5, "seed": seed}}))

    assert busy(1) == busy(1) != busy(2)
    assert len(busy(1)) == 15


def test_entries_of_busy_take_what_those_before_have_left():
    cluster = fabric.read({
        "levels": ["rack"],
        "groups": [{"rack": 2, "nodes": 3}],
        "busy": ["rack-0-n1", {"in": "rack-0", "nodes": 1}, {"in": "rack-1", "nodes": 2, "gpus": 6}],
    })  # fmt: skip

    assert free_nodes(cluster) == ["rack-0-n2", "rack-1-n0", "rack-1-n1", "rack-1-n2"]
    assert [node.free["nvidia.com/gpu"] for node in cluster.nodes] == [0, 0, 8, 2, 2, 8]
    assert all(node.free["nvidia.com/gpu"] == 8 for node in cluster.idle_nodes)


def test_nodes_with_a_nic_on_every_rail_are_not_parted_by_rails():
    cluster = fabric.read({"levels": ["block"], "node": {"rails": 8, "gpus": 8}, "groups": [{"block": 1, "nodes": 4}]})

    assert [level.name for level in cluster.topology.levels] == ["block", "node"]


def test_nodes_with_fewer_nics_stand_on_rails_in_turn():
    cluster = fabric.read({"levels": ["block"], "node": {"rails": 4, "gpus": 2}, "groups": [{"block": 1, "nodes": 4}]})

    assert [cluster.topology.paths[node.name][1] for node in cluster.nodes] == [
        "block-0-rail-0-1", "block-0-rail-2-3", "block-0-rail-0-1", "block-0-rail-2-3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "num_nodes", "num_free", "levels"),
    [
        ("nvl72", 288, 212, ["block", "nvlink", "node"]),
        ("rail-optimised", 512, 312, ["pod", "block", "rail", "node"]),
        ("two-providers", 31, 25, ["zone", "rack", "node"]),
        ("uneven-leaf-spine", 64, 40, ["superpod", "leaf", "node"]),
    ],
)
def test_the_examples_say_what_they_mean(name, num_nodes, num_free, levels):
    cluster = fabric.read(yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text()))

    assert (len(cluster.nodes), len(free_nodes(cluster))) == (num_nodes, num_free)
    assert [level.name for level in cluster.topology.levels] == levels
    assert cluster.topology.notes == ()


GOOD = {"levels": ["zone", "rack"], "groups": [{"zone": 1, "rack": [2, 3]}]}
EXTENT = "must be a domain's name, a number of domains, a list of names, or a list of sizes in nodes"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"groups": []}, "groups: tuple should have at least 1 item after validation, not 0"),
        ({"nodes": 3}, "nodes: extra inputs are not permitted"),
        ({"groups": [{"rak": 2}]}, "groups[0].rak: is not among levels; use zone, rack, nodes, node, or add it there"),
        ({"groups": [{"rack": []}]}, f"groups[0].rack: {EXTENT}"),
        ({"groups": [{"rack": [1, "a"]}]}, f"groups[0].rack: {EXTENT}"),
        ({"groups": [{"rack": -1}]}, f"groups[0].rack: {EXTENT}"),
        ({"groups": [{"rack": "no label!"}]}, f"groups[0].rack: {EXTENT}"),
        ({"groups": [{"rack": True}]}, f"groups[0].rack: {EXTENT}"),
        (
            {"groups": [{"rack": [2], "nodes": 3}]},
            "groups[0].rack: sizes are counts of nodes: they go with the finest level, rack, and without `nodes`",
        ),
        (
            {"groups": [{"zone": [2], "rack": 3}]},
            "groups[0].zone: sizes are counts of nodes: they go with the finest level, rack, and without `nodes`",
        ),
        ({"groups": [{"rack": 1, "node": {"gpu": 3}}]}, "groups[0].node.gpu: extra inputs are not permitted"),
        (
            {"node": {"memory": "much"}},
            "groups[0].node: 'much' is no quantity; write a number with or without a suffix, as in 250m, 4Gi or 8",
        ),
        ({"groups": [{"zone": ["a", "A"]}]}, "groups[0]: there is a second node a-n0, or more than 1000000 nodes"),
        ({"links": {"leaf": "wan"}}, "links.leaf: there is no such level; use cluster, zone, rack"),
        ({"links": {"zone": {}}}, "links.zone: give either the kind of a link or its bytesPerSecond"),
        ({"levels": ["zone", "zone"]}, "levels: each stands there once, and cluster and node are in every tree anyhow"),
        ({"profile": "eks"}, "levels: eks has no level 'rack'; use zone, spine, aggregation, leaf, nvlink"),
        (
            {"profile": "ibm"},
            (
                "profile: there is no preset 'ibm'; use one of gke, eks, oci, coreweave, alibaba, topograph, "
                "topograph-v0, kueue-docs, volcano, kubernetes"
            ),
        ),
        ({"busy": "rack-7"}, "busy[0]: there is no node or domain 'rack-7' with anything left"),
        ({"busy": {"nodes": 9}}, "busy[0].nodes: 9 are more than the 5 nodes that are still free there"),
        ({"busy": {"gpus": 9}}, "busy[0].gpus: 9 are more than a node there has left"),
        ({"busy": {"node": 9}}, "busy[0].node: extra inputs are not permitted"),
        (
            {"levels": ["rack", "nvlink"], "groups": [{"rack": 1, "node": {"rails": 8, "gpus": 4}}]},
            "node.rails: nodes that NVLink joins have a NIC on every rail; leave rails or nvlink out",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_place(change, problem):
    with pytest.raises(InvalidManifestError) as error:
        fabric.read({**GOOD, **change})

    assert str(error.value) == problem
