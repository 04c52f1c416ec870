"""Rendered manifests, whole, against golden files. PIPELINEJOB_WRITE_GOLDEN=1 writes them anew, to review a diff."""

import json
import os
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from pipelinejob.base import names
from pipelinejob_operator.objects.job import Rank, read_job
from pipelinejob_operator.objects.making.manifests import headless_service, let_go, stage_pod
from pipelinejob_operator.objects.making.pod_template import merge
from support.clusters.operatorworld import SETTINGS
from support.manifests.jobs import job

GOLDEN = Path(__file__).parent / "golden"

USER_TEMPLATE = {
    "metadata": {"labels": {"team": "x", names.LABEL_STAGE: "99"}, "annotations": {"a": "b"}},
    "spec": {
        "priorityClassName": "high",
        "terminationGracePeriodSeconds": 300,
        "nodeSelector": {"pool": "a100"},
        "securityContext": {"runAsUser": 1000},
        "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "tolerationSeconds": 5}],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [
                        {"matchExpressions": [{"key": "a", "operator": "Exists"}]},
                        {"matchExpressions": [{"key": "b", "operator": "Exists"}]},
                    ]
                }
            }
        },
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "texts"}}],
        "containers": [
            {
                "name": "trainer",
                "image": "mine:2",
                "env": [{"name": "HOME", "value": "/home/me"}, {"name": "MINE", "value": "1"}],
                "resources": {"limits": {"memory": "80Gi"}},
                "volumeMounts": [{"name": "data", "mountPath": "/data", "readOnly": True}],
            },
            {"name": "sidecar", "image": "logs:1", "resources": {"requests": {"cpu": "1"}}},
        ],
    },
}
STAGE_TEMPLATE = {
    "stage": 1,
    "template": {
        "spec": {"containers": [{"name": "trainer", "image": "mine:3", "env": [{"name": "MINE", "value": "2"}]}]}
    },
}


def render(stage=0, replica=0, node=None, **spec):
    manifest = job(**spec)
    manifest["metadata"]["uid"] = "0000-1111"
    read = read_job(manifest)
    return stage_pod(read, read.spec, Rank(replica, stage), attempt=3, settings=SETTINGS, node=node)


CASES = {
    "pod-gpu-gated": render,
    "pod-gpu-pinned": lambda: render(stage=1, node="node-7"),
    "pod-cpu-claim": lambda: render(device="cpu", checkpoint={"volume": {"claimName": "shared"}}),
    "pod-template": lambda: render(
        stage=1, replica=1, node="node-7", template=USER_TEMPLATE, stageTemplates=[STAGE_TEMPLATE]
    ),
    "service": lambda: headless_service(read_job(job() | {"metadata": job()["metadata"] | {"uid": "0000-1111"}})),
}


@pytest.mark.parametrize("name", CASES)
def test_manifests_are_what_was_reviewed(name):
    rendered = CASES[name]()
    file = GOLDEN / f"{name}.yaml"
    if os.environ.get("PIPELINEJOB_WRITE_GOLDEN"):
        file.write_text(yaml.safe_dump(json.loads(json.dumps(rendered)), sort_keys=True))

    assert rendered == yaml.safe_load(file.read_text())


@pytest.mark.parametrize("name", CASES)
def test_manifests_are_what_kubernetes_takes(name):
    kubernetes_validate.validate(CASES[name](), "1.37", strict=True)


def test_letting_a_pod_go_changes_nothing_but_gate_and_affinity():
    others = {"name": "quota.example.org/held"}
    gated = render(template={"spec": {"affinity": {"podAffinity": {}}, "schedulingGates": [others]}})
    gated["spec"]["containers"][0]["image"] = "mirror.corp/trainer:1"  # as admission changed it
    free = merge(gated, let_go(gated, "n0"))

    pin = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n0"]}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [pin]}}
    affinity = {"podAffinity": {}, "nodeAffinity": required}
    assert free == {**gated, "spec": {**gated["spec"], "schedulingGates": [others], "affinity": affinity}}
    assert set(let_go(gated, "n0")) == {"spec"}
    assert set(let_go(gated, "n0")["spec"]) == {"schedulingGates", "affinity"}


def test_a_node_is_added_to_every_term_of_a_users_affinity():
    terms = render(node="n0", template=USER_TEMPLATE)["spec"]["affinity"]["nodeAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]["nodeSelectorTerms"]

    assert [term["matchFields"][0]["values"] for term in terms] == [["n0"], ["n0"]]
    assert [term["matchExpressions"][0]["key"] for term in terms] == ["a", "b"]


def test_what_a_pre_stop_hook_sleeps_is_no_time_to_hand_over_in():
    hook = {"name": "trainer", "lifecycle": {"preStop": {"sleep": {"seconds": 20}}}}
    pod = render(template={"spec": {"terminationGracePeriodSeconds": 90, "containers": [hook]}})["spec"]

    assert pod["terminationGracePeriodSeconds"] == 90
    assert {"name": names.ENV_GRACE_S, "value": "70"} in pod["containers"][0]["env"]


def test_a_user_cant_relabel_a_rank():
    labels = render(stage=1, template=USER_TEMPLATE)["metadata"]["labels"]

    assert (labels["team"], labels[names.LABEL_STAGE]) == ("x", "1")


def test_a_stage_template_changes_only_its_stage():
    images = [
        render(stage=stage, template=USER_TEMPLATE, stageTemplates=[STAGE_TEMPLATE])["spec"]["containers"][0]["image"]
        for stage in (0, 1)
    ]

    assert images == ["mine:2", "mine:3"]


def test_a_template_is_not_changed_by_rendering():
    manifest = job(template=USER_TEMPLATE, stageTemplates=[STAGE_TEMPLATE])
    before = yaml.safe_dump(manifest)

    render(stage=1, template=manifest["spec"]["template"], stageTemplates=manifest["spec"]["stageTemplates"])

    assert yaml.safe_dump(manifest) == before


def test_every_stage_meets_at_stage_0_of_replica_0():
    for stage, replica in ((0, 0), (1, 1)):
        env = {e["name"]: e["value"] for e in render(stage=stage, replica=replica)["spec"]["containers"][0]["env"]}

        assert env[names.ENV_RENDEZVOUS] == "gpt-r0-s0.gpt.default.svc.cluster.local:29500"


def test_a_pod_without_a_template_passes_pod_security_restricted():
    spec = render()["spec"]
    container = spec["containers"][0]

    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert not any("hostPath" in volume for volume in spec["volumes"])


@pytest.mark.parametrize(
    ("checkpoint", "folder"),
    [
        ({}, "/checkpoints"),
        ({"path": "mine"}, "/checkpoints/mine"),
        ({"volume": {"claimName": "c"}}, "/checkpoints/default/gpt"),
        ({"volume": {"claimName": "c"}, "path": "a/b"}, "/checkpoints/a/b"),
    ],
)
def test_checkpoints_of_two_jobs_on_one_volume_do_not_meet(checkpoint, folder):
    env = {e["name"]: e["value"] for e in render(checkpoint=checkpoint)["spec"]["containers"][0]["env"]}

    assert env[names.ENV_CHECKPOINTS] == folder
