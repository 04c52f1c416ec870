"""The chart, rendered by the real helm: valid for every Kubernetes it admits, least rights, Pod Security restricted."""

import itertools
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

import toolchain
from pipelinejob.fabric.hardware import parse
from pipelinejob_operator.validation import manifest_files

pytestmark = pytest.mark.nodes

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "pipelinejob-operator"
MONITORING = ("monitoring.coreos.com/v1/PodMonitor", "monitoring.coreos.com/v1/PrometheusRule")
OWN_KINDS = {"CustomResourceDefinition", "PodMonitor", "ServiceMonitor", "PrometheusRule"}
VALUES = {
    "defaults": {},
    "two replicas": {"replicas": "2", "podDisruptionBudget.enabled": "true", "networkPolicy.enabled": "true"},
    "digests": {"image.digest": "sha256:" + "a" * 64, "trainer.image.digest": "sha256:" + "b" * 64},
    "no extras": {"crds.install": "false", "metrics.service.enabled": "false", "grafana.dashboards.enabled": "false"},
    "kueue": {"kueue.enabled": "true"},
    "own hardware": {"hardware.toml": "[levels]\nrack = 'roce-100'", "podAnnotations.team": "platform"},
    "some namespaces": {"watchNamespaces": "{team-a,team-b}", "kueue.enabled": "true", "provisioning.enabled": "true"},
    "few rights": {"watchNamespaces": "{team-a}", "rbac.clusterScoped": "false", "rbac.aggregate": "false"},
    "company": {
        "global.imageRegistry": "registry.example.org:5000",
        "global.imagePullSecrets": "{pull}",
        "commonLabels.team": "platform",
        "extraEnv[0].name": "HTTPS_PROXY",
        "extraEnv[0].value": "http://proxy:3128",
        "topologySpreadConstraints[0].maxSkew": "1",
        "topologySpreadConstraints[0].topologyKey": "topology.kubernetes.io/zone",
        "topologySpreadConstraints[0].whenUnsatisfiable": "DoNotSchedule",
        "metrics.serviceMonitor.enabled": "true",
    },
    "own account": {"serviceAccount.create": "false", "serviceAccount.name": "mine"},
}


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(toolchain.find("helm")), *arguments], capture_output=True, text=True, check=False)


def render(
    values: dict[str, str], *, version: str = "1.36.3", apis: tuple[str, ...] = (), release: str = "pj"
) -> list[dict]:
    settings = [f"--set={name}={value}" for name, value in values.items()]
    served = [f"--api-versions={api}" for api in apis]
    result = helm(
        "template", release, str(CHART), "--namespace=pj-system", f"--kube-version={version}", *settings, *served
    )
    assert result.returncode == 0, result.stderr
    # As the API server reads it: to PyYAML's own loader 1e-05 is a text.
    return [item for item in yaml.load_all(result.stdout, Loader=manifest_files._Loader) if item]


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
        ("watchNamespaces=team-a", "watchNamespaces"),
        ("watchNamespaces={Team_A}", "watchNamespaces"),
        ("nameOverride=Not_A_Name", "nameOverride"),
        ("extraEnv[0].value=nameless", "name"),
        ("topologySpreadConstraints[0].maxSkew=1", "topologyKey"),
        ("enabled=maybe", "enabled"),
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


@pytest.mark.parametrize("release", ["a" * 37, "b" * 53, "pipelinejob-operator-of-" + "c" * 29])
def test_the_longest_names_of_releases_fit_and_keep_apart(release):
    values = {"metrics.serviceMonitor.enabled": "true", "watchNamespaces": "{team-a}", "hardware.toml": "[levels]"}
    items = render(values, release=release)

    for item in items:
        name = item["metadata"]["name"]
        assert len(name) <= (63 if item["kind"] in {"Service", "Pod", "Deployment"} else 253), name
        assert item["kind"] == "CustomResourceDefinition" or release in name
    for item in (each for each in items if each["kind"] not in OWN_KINDS):
        kubernetes_validate.validate(item, "1.36", strict=True)


def test_every_image_comes_from_the_registry_that_is_named_once():
    items = render({"global.imageRegistry": "registry.example.org:5000/", "trainer.image.registry": "elsewhere"})
    pods = [item["spec"]["template"]["spec"] for item in items if item["kind"] == "Deployment"]
    pods += [item["spec"] for item in items if item["kind"] == "Pod"]
    (trainer,) = {
        each["value"]
        for pod in pods
        for each in pod["containers"][0].get("env", ())
        if each["name"] == "PIPELINEJOB_OPERATOR_TRAINER_IMAGE"
    }

    images = {pod["containers"][0]["image"] for pod in pods} | {trainer}
    assert images == {
        "registry.example.org:5000/pipelinejob/operator:0.1.0",
        "registry.example.org:5000/pipelinejob/trainer:0.1.0",
    }


def test_an_umbrella_chart_turns_it_off_whole():
    assert render({"enabled": "false"}) == []


def test_everything_carries_the_common_labels_and_selectors_do_not():
    for item in render({"commonLabels.team": "platform", "networkPolicy.enabled": "true"}):
        assert item["metadata"]["labels"]["team"] == "platform"
        if item["kind"] == "Deployment":
            assert item["spec"]["template"]["metadata"]["labels"]["team"] == "platform"
            assert "team" not in item["spec"]["selector"]["matchLabels"]


def test_another_name_takes_the_charts_place():
    (deployment,) = (item for item in render({"nameOverride": "gangs"}) if item["kind"] == "Deployment")
    (other,) = (item for item in render({"fullnameOverride": "mine"}) if item["kind"] == "Deployment")

    assert deployment["metadata"]["name"] == "pj-gangs"
    assert deployment["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"] == "gangs"
    assert other["metadata"]["name"] == "mine"


def test_a_pods_environment_and_spread_are_the_users():
    (deployment,) = (item for item in render(VALUES["company"]) if item["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]

    assert {"name": "HTTPS_PROXY", "value": "http://proxy:3128"} in pod["containers"][0]["env"]
    (spread,) = pod["topologySpreadConstraints"]
    assert spread["topologyKey"] == "topology.kubernetes.io/zone"
    assert spread["labelSelector"]["matchLabels"] == deployment["spec"]["selector"]["matchLabels"]
    assert pod["imagePullSecrets"] == [{"name": "pull"}]


def test_in_some_namespaces_its_rights_on_namespaced_kinds_stand_there_alone():
    items = render({"watchNamespaces": "{team-a,team-b}", "kueue.enabled": "true", "provisioning.enabled": "true"})
    own = [item for item in items if item["kind"] == "ClusterRole" and "aggregate" not in str(item["metadata"])]
    resources = {name for item in own for rule in item["rules"] for name in rule["resources"]}
    env = {
        each["name"]: each.get("value")
        for item in items
        if item["kind"] == "Deployment"
        for each in item["spec"]["template"]["spec"]["containers"][0]["env"]
    }

    assert resources == {
        "nodes",
        "persistentvolumes",
        "priorityclasses",
        "topologyprofiles",
        "resourceflavors",
        "workloadpriorityclasses",
    }
    roles = {item["metadata"]["namespace"] for item in items if item["kind"] == "Role"}
    assert roles == {"pj-system", "team-a", "team-b"}
    assert env["PIPELINEJOB_OPERATOR_WATCH_NAMESPACES"] == "team-a,team-b"


def test_rights_to_ask_an_autoscaler_come_only_with_provisioning():
    def rights(values):
        rules = [rule for item in render(values) if item["kind"] == "ClusterRole" for rule in item["rules"]]
        return {name for rule in rules for name in rule["resources"]} & {"provisioningrequests", "podtemplates"}

    assert rights({}) == set()
    assert rights({"provisioning.enabled": "true"}) == {"provisioningrequests", "podtemplates"}


def test_service_monitors_take_the_place_of_pod_monitors():
    def monitors(values):
        found = render(values, apis=MONITORING)
        return sorted(item["kind"] for item in found if item["kind"] in {"PodMonitor", "ServiceMonitor"})

    assert monitors({}) == ["PodMonitor", "PodMonitor"]
    assert monitors({"metrics.serviceMonitor.enabled": "true"}) == ["ServiceMonitor", "ServiceMonitor"]
    both = {"metrics.serviceMonitor.enabled": "true", "metrics.podMonitor.enabled": "true"}
    assert len(monitors(both)) == 4
    refused = helm(
        "template", "pj", str(CHART), "--kube-version=1.36.3",
        "--set=metrics.serviceMonitor.enabled=true,metrics.service.enabled=false",
    )  # fmt: skip
    assert "set metrics.service.enabled to true" in refused.stderr


def test_the_readme_names_every_value():
    readme = (CHART / "README.md").read_text()

    def names(values, prefix=""):
        for name, value in values.items():
            nested = isinstance(value, dict) and value and name not in {"requests", "limits", "resources"}
            yield from names(value, f"{prefix}{name}.") if nested else [f"{prefix}{name}"]

    missing = [name for name in names(yaml.safe_load((CHART / "values.yaml").read_text())) if f"`{name}`" not in readme]
    assert missing == []


def test_monitoring_objects_appear_only_where_their_api_is_served():
    def kinds(items):
        return {item["kind"] for item in items}

    assert not kinds(render({})) & {"PodMonitor", "PrometheusRule"}
    assert kinds(render({}, apis=MONITORING)) >= {"PodMonitor", "PrometheusRule"}
    off = {"metrics.podMonitor.enabled": "false", "metrics.prometheusRule.enabled": "false"}
    assert not kinds(render(off, apis=MONITORING)) & {"PodMonitor", "PrometheusRule"}


def test_every_alert_names_a_runbook_that_a_browser_finds():
    def runbooks(values):
        rules = next(item for item in render(values, apis=MONITORING) if item["kind"] == "PrometheusRule")
        alerts = [rule for group in rules["spec"]["groups"] for rule in group["rules"]]
        return {alert["alert"]: alert["annotations"].get("runbook_url") for alert in alerts}

    own = runbooks({"metrics.prometheusRule.runbooks": "https://wiki.example.com/runbooks"})
    assert own["PipelineStageStalled"] == "https://wiki.example.com/runbooks#pipelinestagestalled"
    assert all(url == f"https://wiki.example.com/runbooks#{alert.lower()}" for alert, url in own.items())
    assert all(url.startswith("https://") for url in runbooks({}).values())
    assert {*runbooks({"metrics.prometheusRule.runbooks": ""}).values()} == {None}


def test_dashboards_are_found_by_the_grafana_sidecar():
    maps = [item for item in render({"grafana.dashboards.folder": "Training"}) if item["kind"] == "ConfigMap"]

    assert {name for item in maps for name in item["data"]} == {"pipelinejob.json", "serving.json", "operator.json"}
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
