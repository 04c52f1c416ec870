"""`pipelinejob plan --kubeconfig`: a live cluster is read, with what is taken on it now, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelinejob_operator.cli import main
from support.api_server.apiserver import ApiServer
from support.api_server.fakenodes import add_nodes, node
from support.local.processes import Process, wait_until

_EXAMPLE = Path(__file__).parents[3] / "examples" / "stdlib-gpt.yaml"


@pytest.fixture
def two_nodes(api_server: ApiServer, kwok: Process, namespace: str):
    names = [f"{letter}-{namespace[-6:]}" for letter in "ab"]
    labels = {"test.pipelinejob.io/plan": namespace[-6:], "topology.kubernetes.io/zone": "a"}
    add_nodes(api_server, [node(name, gpus=4, labels=labels) for name in names])
    yield names
    for name in names:
        api_server.kubectl("delete", "node", name)


@pytest.fixture
def manifest(namespace: str, tmp_path: Path) -> Path:
    """Four stages of a GPU each, on the nodes of this test alone: others come and go beside it."""
    job = yaml.safe_load(_EXAMPLE.read_text())
    job["metadata"]["namespace"] = namespace
    job["spec"]["device"] = "gpu"
    job["spec"]["template"] = {"spec": {"nodeSelector": {"test.pipelinejob.io/plan": namespace[-6:]}}}
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(job))  # in YAML a selector such as 0e1234 would be a number
    return file


def _plan(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any], str]:
    with pytest.raises(SystemExit) as ended:
        main(["plan", *map(str, arguments), "-o", "json"])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), json.loads(captured.out or "{}"), captured.err


def _occupy(server: ApiServer, namespace: str, on: str, gpus: int) -> None:
    security = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    limits = {"nvidia.com/gpu": gpus}
    container = {"name": "c", "image": "none", "securityContext": security, "resources": {"limits": limits}}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace, "name": f"on-{on}"}}
    server.apply({**pod, "spec": {"containers": [container], "nodeName": on}})


def test_a_live_clusters_free_gpus_are_planned_with(
    api_server: ApiServer,
    namespace: str,
    two_nodes: list[str],
    manifest: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, second = two_nodes
    _occupy(api_server, namespace, first, 2)
    wait_until(lambda: api_server.get("pods", "-n", namespace)["items"][0]["spec"].get("nodeName"), "the pod is bound")

    code, now, error = _plan(capsys, manifest, "--kubeconfig", api_server.kubeconfig)

    assert (code, error) == (0, "")
    assert {rank["node"] for rank in now["stages"]} == {second}

    _occupy(api_server, namespace, second, 1)
    code, now, error = _plan(capsys, manifest, "--kubeconfig", api_server.kubeconfig)
    assert {rank["node"] for rank in now["stages"]} == {first, second}

    code, empty, error = _plan(capsys, manifest, "--kubeconfig", api_server.kubeconfig, "--empty")
    assert (code, error) == (0, "")
    assert len({rank["node"] for rank in empty["stages"]}) == 1
    assert api_server.get("pipelinejobs.pipelinejob.io", "-n", namespace)["items"] == []


def test_a_cluster_that_cannot_be_reached_is_said_in_one_sentence(
    api_server: ApiServer, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load(Path(api_server.kubeconfig).read_text())
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    elsewhere = tmp_path / "kubeconfig"
    elsewhere.write_text(yaml.safe_dump(config))

    code, _, error = _plan(capsys, manifest, "--kubeconfig", elsewhere)

    assert code == 2
    assert error.startswith(f"error: --kubeconfig {elsewhere}: GET /api/v1/nodes: ")
    assert "Traceback" not in error


def test_a_context_that_does_not_exist_is_named(
    api_server: ApiServer, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, error = _plan(capsys, manifest, "--kubeconfig", api_server.kubeconfig, "--context", "nowhere")

    assert code == 2
    assert "nowhere" in error
