"""An operator of some namespaces, with the rights that the chart gives it there, over the real API server's RBAC."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

import toolchain
from support.api_server.apiserver import ApiServer
from support.api_server.fakenodes import add_nodes, node
from support.api_server.operatorprocess import OperatorProcess, is_placed, job
from support.local.processes import Process, wait_until

# One worker, with the others whose operators would fight over its processor.
pytestmark = pytest.mark.xdist_group("life")

CHART = Path(__file__).parents[3] / "charts" / "pipelinejob-operator"
RIGHTS = {"ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}
RELEASE = "team"
NAME = f"{RELEASE}-pipelinejob-operator"


def rights(watched: str, system: str, **values: str) -> list[dict]:
    """Render what the chart installs of accounts and rights."""
    settings = {"watchNamespaces": f"{{{watched}}}", "rbac.aggregate": "false", **values}
    command = [toolchain.find("helm"), "template", RELEASE, CHART, f"--namespace={system}", "--kube-version=1.36.3"]
    result = subprocess.run(
        [*map(str, command), *(f"--set={key}={value}" for key, value in settings.items())],
        capture_output=True,
        text=True,
        check=True,
    )
    return [item for item in yaml.safe_load_all(result.stdout) if item and item["kind"] in RIGHTS]


def kubeconfig(server: ApiServer, system: str, file: Path, *, name: str = NAME) -> Path:
    """Write the kubeconfig of the operator's account."""
    token = server.kubectl("create", "token", "-n", system, name).strip()
    cluster = {"server": server.url, "certificate-authority": str(server.ca)}
    file.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "test", "cluster": cluster}],
                "users": [{"name": "operator", "user": {"token": token}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "operator"}}],
                "current-context": "test",
            }
        )
    )
    return file


@pytest.fixture
def room(api_server: ApiServer, kwok: Process, namespace: str):
    name = f"node-{namespace[-6:]}"
    add_nodes(api_server, [node(name, gpus=4)])
    yield name
    api_server.kubectl("delete", "node", "--ignore-not-found", name)


@pytest.fixture
def other(api_server: ApiServer, namespace: str):
    """A namespace that is nobody's, where the operator itself stands, too."""
    name = f"other-{namespace[-6:]}"
    api_server.kubectl("create", "namespace", name)
    yield name
    api_server.kubectl("delete", "namespace", name, "--wait=false")


def running(server: ApiServer, namespace: str, other: str, folder: Path) -> OperatorProcess:
    account = kubeconfig(server, other, folder / "kubeconfig")
    flags = (f"--watch-namespaces={namespace}", f"--namespace={other}", f"--lease-name={NAME}")
    return OperatorProcess(account, folder, *flags)


def runs_its_jobs_and_no_others(server: ApiServer, namespace: str, other: str) -> None:
    server.apply(job(other, "gpt", stages=2), job(namespace, "gpt", stages=2))
    wait_until(lambda: is_placed(server, namespace, "gpt", ranks=2), "the job of its namespace runs")
    wait_until(
        lambda: {event["reason"] for event in server.get("events", "-n", namespace)["items"]} >= {"Placed"},
        "its events are written",
    )
    assert "status" not in server.get("pipelinejob", "-n", other, "gpt")
    assert server.get("pods", "-n", other)["items"] == []


def test_it_runs_the_jobs_of_its_namespaces_and_no_others(api_server, namespace, other, room, tmp_path):
    api_server.apply(*rights(namespace, other))

    with running(api_server, namespace, other, tmp_path) as operator:
        runs_its_jobs_and_no_others(api_server, namespace, other)
        lease = api_server.get("lease", "-n", other, NAME)
        assert lease["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "pipelinejob-operator"
        assert operator.alive


def test_of_the_whole_cluster_it_needs_to_read_nodes_alone(api_server, namespace, other, room, tmp_path):
    api_server.apply(*rights(namespace, other, **{"rbac.clusterScoped": "false"}))
    name = f"nodes-{namespace[-6:]}"
    api_server.kubectl("create", "clusterrole", name, "--verb=list,watch", "--resource=nodes")
    api_server.kubectl(
        "create", "clusterrolebinding", name, f"--clusterrole={name}", f"--serviceaccount={other}:{NAME}"
    )

    with running(api_server, namespace, other, tmp_path):
        runs_its_jobs_and_no_others(api_server, namespace, other)
    api_server.kubectl("delete", "clusterrole,clusterrolebinding", name)


def test_a_release_of_a_long_name_installs_and_its_notes_give_a_job_that_runs(
    api_server, namespace, other, room, tmp_path
):
    release, name = "t" * 37, f"{'t' * 37}-pipelinejob-opera"  # as much as its Service leaves
    values = ("crds.install=false", "rbac.aggregate=false", f"watchNamespaces={{{namespace}}}")
    helm = [toolchain.find("helm"), f"--kubeconfig={api_server.kubeconfig}", f"--namespace={other}"]
    settings = [f"--set={value}" for value in values]
    result = subprocess.run(
        [*map(str, helm), "install", release, str(CHART), *settings], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    notes = result.stdout.split("NOTES:")[1]
    assert "examples/" not in notes
    assert api_server.get("services", "-n", other)["items"][0]["metadata"]["name"] == f"{name}-metrics"

    api_server.kubectl("apply", "-f", "-", stdin=notes.split("<<'END'\n")[1].split("END\n")[0])
    account = kubeconfig(api_server, other, tmp_path / "kubeconfig", name=name)
    flags = (f"--watch-namespaces={namespace}", f"--namespace={other}", f"--lease-name={name}")
    with OperatorProcess(account, tmp_path, *flags):
        wait_until(lambda: is_placed(api_server, namespace, "first", ranks=2), "the first pipeline runs")
    subprocess.run([*map(str, helm), "uninstall", release], capture_output=True, check=True)
