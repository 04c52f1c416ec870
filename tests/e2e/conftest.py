"""Real nodes for the tests of this folder, with the images built from the tree as it stands and the chart installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import images
import nodes
import toolchain
from support.real_nodes.helm import helm
from support.real_nodes.team_jobs import NAMESPACE

CHART = Path(__file__).parents[2] / "charts" / "pipelinejob-operator"
SYSTEM = "pipelinejob-system"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


@pytest.fixture(scope="session")
def cluster() -> Iterator[nodes.Cluster]:
    """Two real nodes that hold the images; nothing is left of them afterwards."""
    toolchain.provide(toolchain.NODES_TIER)
    with nodes.only_one():
        nodes.build_images()
        images.build_trainer()
        images.build_operator()
        with nodes.Cluster(nodes.home()) as cluster:
            cluster.load_images(images.TRAINER, images.OPERATOR)
            yield cluster


@pytest.fixture(scope="session")
def operator(cluster: nodes.Cluster) -> str:
    """The chart, installed by the real helm into a namespace under Pod Security `restricted`; gives the namespace."""
    cluster.server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM, "labels": RESTRICTED}})
    values = []
    for key, image in (("image", images.OPERATOR), ("trainer.image", images.TRAINER)):
        repository, tag = image.rsplit(":", 1)
        values += [f"--set={key}.repository={repository}", f"--set={key}.tag={tag}"]
    values.append("--set=operator.progressIntervalSeconds=1")
    helm(cluster, "install", "pj", CHART, f"--namespace={SYSTEM}", *values, "--wait", "--timeout=300s")
    return SYSTEM


@pytest.fixture(scope="session")
def team(cluster: nodes.Cluster, operator: str) -> str:
    """A namespace under Pod Security `restricted`, with a claim on a volume that both nodes share."""
    volume = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "",
        "hostPath": {"path": str(cluster.shared_folder("checkpoints"))},
        "claimRef": {"namespace": NAMESPACE, "name": "checkpoints"},
    }
    claim = {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "",
        "volumeName": "checkpoints",
        "resources": {"requests": {"storage": "1Gi"}},
    }
    cluster.server.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": RESTRICTED}},
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "checkpoints"}, "spec": volume},
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"namespace": NAMESPACE, "name": "checkpoints"},
            "spec": claim,
        },
    )
    return NAMESPACE
