"""The chart, rendered by the real helm: valid for every Kubernetes it admits, least rights, Pod Security restricted."""

import itertools
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

import toolchain
from pipelinejob.hardware import parse

pytestmark = pytest.mark.nodes

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "pipelinejob-operator"
MONITORING = ("monitoring.coreos.com/v1/PodMonitor", "monitoring.coreos.com/v1/PrometheusRule")
OWN_KINDS = {"CustomResourceDefinition", "PodMonitor", "PrometheusRule"}
VALUES = {
    "defaults": {},
    "two replicas": {"replicas": "2", "podDisruptionBudget.enabled": "true", "networkPolicy.enabled": "true"},
    "digests": {"image.digest": "sha256:" + "a" * 64, "trainer.image.digest": "sha256:" + "b" * 64},
    "no extras": {"crds.install": "false", "metrics.service.enabled": "false", "grafana.dashboards.enabled": "false"},
    "kueue": {"kueue.enabled": "true"},
    "own hardware": {"hardware.toml": "[levels]\nrack = 'roce-100'", "podAnnotations.team": "platform"},
    "own account": {"serviceAccount.create": "false", "serviceAccount.name": "mine"},
}


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(toolchain.find("helm")), *arguments], capture_output=True, text=True, check=False)


def render(values: dict[str, str], *, version: str = "1.36.3", apis: tuple[str, ...] = ()) -> list[dict]:
    settings = [f"--set={name}={value}" for name, value in values.items()]
    served = [f"--api-versions={api}" for api in apis]
    result = helm(
        "template", "pj", str(CHART), "--namespace=pj-system", f"--kube-version={version}", *settings, *served
    )
    assert result.returncode == 0, result.stderr
    return [item for item in yaml.safe_load_all(result.stdout) if item]


@pytest.mark.parametrize(("name", "version"), list(itertools.product(VALUES, ["1.33.0", "1.35.0", "1.37.0"])))
def test_everything_rendered_is_valid(name, version):
    items = render(VALUES[name], version=version)

    assert items
    for item in items:
        if item["kind"] not in OWN_KINDS:
            kubernetes_validate.validate(item, version.rsplit(".", 1)[0], strict=True)


def test_lint_finds_nothing():
    result = helm("lint", "--strict", str(CHART), "--kube-version=1.36.3")

    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("image.tagg=1", "tagg"),
        ("replicas=two", "replicas"),
        ("replicas=9", "replicas"),
        ("image.digest=latest", "digest"),
        ("operator.logLevel=loud", "logLevel"),
        ("metrics.podMonitor.enabled=maybe", "enabled"),
        ("metrics.podMonitor.interval=15", "interval"),
        ("kueue.enabled=perhaps", "enabled"),
        ("hardware.file=mine", "file"),
        ("nonsense.at=all", "nonsense"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(setting, said):
    result = helm("template", "pj", str(CHART), "--kube-version=1.36.3", f"--set={setting}")

    assert result.returncode != 0
    assert said in result.stderr


def test_the_chart_carries_the_generated_crds():
    ours = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "crds").glob("*.yaml")}
    kept = crds_in(render({}))
    dropped = crds_in(render({"crds.keep": "false"}))

    assert set(ours) == set(kept) == set(dropped) == {"pipelinejobs", "topologyprofiles"}
    for name, crd in ours.items():
        assert kept[name]["spec"] == crd["spec"]
        assert kept[name]["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
        assert "helm.sh/resource-policy" not in dropped[name]["metadata"].get("annotations", {})


def crds_in(items):
    return {item["spec"]["names"]["plural"]: item for item in items if item["kind"] == "CustomResourceDefinition"}


def test_the_operator_may_do_little():
    roles = [
        item
        for item in render({})
        if item["kind"] in {"ClusterRole", "Role"} and "aggregate" not in str(item["metadata"])
    ]
    granted = {
        (resource, verb)
        for role in roles
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }

    assert not [pair for pair in granted if "*" in pair]
    assert not {resource for resource, _ in granted} & {
        "secrets",
        "pods/exec",
        "serviceaccounts",
        "roles",
        "clusterroles",
    }
    assert {verb for resource, verb in granted if resource == "nodes"} == {"list", "watch"}


def test_rights_on_kueues_objects_come_only_with_kueue():
    def rights(values):
        rules = [rule for item in render(values) if item["kind"] == "ClusterRole" for rule in item["rules"]]
        return {r for rule in rules if "kueue.x-k8s.io" in rule["apiGroups"] for r in rule["resources"]}

    assert rights({}) == set()
    assert rights({"kueue.enabled": "true"}) == {
        "workloads",
        "workloads/status",
        "resourceflavors",
        "workloadpriorityclasses",
    }


def test_own_hardware_reaches_the_operator_and_a_change_of_it_restarts_it():
    def objects(toml):
        items = {item["kind"]: item for item in render({"hardware.toml": toml, "grafana.dashboards.enabled": "false"})}
        return items["ConfigMap"], items["Deployment"]["spec"]["template"]

    config_map, pod = objects("[levels]\nrack = 'roce-100'")
    container = pod["spec"]["containers"][0]
    env = {each["name"]: each.get("value") for each in container["env"]}

    mount = next(each for each in container["volumeMounts"] if each["name"] == "hardware")
    assert parse(config_map["data"]["hardware.toml"]).levels == {"rack": "roce-100"}
    assert env["PIPELINEJOB_OPERATOR_HARDWARE"] == f"{mount['mountPath']}/hardware.toml"
    assert pod["spec"]["volumes"][-1]["configMap"]["name"] == config_map["metadata"]["name"]
    assert pod["metadata"]["annotations"] != objects("[levels]\nrack = 'roce-200'")[1]["metadata"]["annotations"]


def test_every_pod_passes_pod_security_restricted():
    items = render({})
    pods = [item["spec"]["template"]["spec"] for item in items if item["kind"] == "Deployment"]
    pods += [item["spec"] for item in items if item["kind"] == "Pod"]

    assert len(pods) == 2
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_monitoring_objects_appear_only_where_their_api_is_served():
    def kinds(items):
        return {item["kind"] for item in items}

    assert not kinds(render({})) & {"PodMonitor", "PrometheusRule"}
    assert kinds(render({}, apis=MONITORING)) >= {"PodMonitor", "PrometheusRule"}
    off = {"metrics.podMonitor.enabled": "false", "metrics.prometheusRule.enabled": "false"}
    assert not kinds(render(off, apis=MONITORING)) & {"PodMonitor", "PrometheusRule"}


def test_dashboards_are_found_by_the_grafana_sidecar():
    maps = [item for item in render({"grafana.dashboards.folder": "Training"}) if item["kind"] == "ConfigMap"]

    assert {name for item in maps for name in item["data"]} == {"pipelinejob.json", "operator.json"}
    for item in maps:
        assert item["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert item["metadata"]["annotations"]["grafana_folder"] == "Training"


def test_every_alert_fires_when_it_should_and_is_silent_when_it_should():
    result = subprocess.run(
        ["promtool", "test", "rules", str(ROOT / "tests" / "e2e" / "alerts.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stdout + result.stderr
