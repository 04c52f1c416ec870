"""Quotas are Kueue's: its own manager admits PipelineJobs, lends between queues, takes back, and learns of their ends.

The operator has exactly the rights that the chart gives with `kueue.enabled`.
"""

from __future__ import annotations

import json
import secrets
import subprocess
from pathlib import Path

import pytest
import yaml

import toolchain
from support.api_server import kueuemanager as kueue
from support.api_server.apiserver import ApiServer
from support.api_server.fakenodes import add_nodes, finish_pod, node, start_kwok
from support.api_server.operatorprocess import OperatorProcess, condition, job, pods
from support.local.processes import wait_until

pytestmark = [pytest.mark.kueue, pytest.mark.xdist_group("kueue")]

ROOT = Path(__file__).parents[3]
OPERATOR = "operator"
LEADING = ("--namespace=default", "--lease-name=pj-pipelinejob-operator")  # as the chart has it
QUEUE = "kueue.x-k8s.io/queue-name"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An API server with our CRDs, nodes whose kubelets pretend, and Kueue's kinds not yet."""
    toolchain.provide(toolchain.KUEUE_TIER)
    with ApiServer(tmp_path_factory.mktemp("kueue"), users={OPERATOR: ""}) as server:
        for file in sorted((ROOT / "crds").glob("*.yaml")):
            server.kubectl("apply", "--server-side", "-f", file)
        wait_until(lambda: serves(server, "pipelinejobs.pipelinejob.io"), "our kind is served")
        server.start_scheduler()
        server.start_controllers()
        start_kwok(server)
        add_nodes(
            server, [node(f"{color}-{n}", gpus=4, labels={"color": color}) for color in ("red", "blue") for n in "12"]
        )
        server.kubectl("apply", "-f", "-", stdin=rights_of_the_chart())
        yield server


def serves(server: ApiServer, name: str) -> bool:
    return bool(server.get("crd", name).get("status", {}).get("acceptedNames", {}).get("kind"))


def rights_of_the_chart() -> str:
    command = [
        *(toolchain.find("helm"), "template", "pj", ROOT / "charts" / "pipelinejob-operator", "--kube-version=1.36.3"),
        *("--namespace=default", "--set=kueue.enabled=true", "--show-only=templates/rbac.yaml"),
    ]
    rendered = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout
    items = [item for item in yaml.safe_load_all(rendered) if item]
    for binding in (item for item in items if item["kind"].endswith("Binding")):
        binding["subjects"] = [{"kind": "User", "name": OPERATOR, "apiGroup": "rbac.authorization.k8s.io"}]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})


@pytest.fixture(scope="module")
def operator(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("operator")
    with OperatorProcess(server.kubeconfig_of(OPERATOR), folder, "--kueue", *LEADING) as operator:
        yield operator
        assert operator.alive
        assert "forbidden" not in operator.process.log.read_text()


@pytest.fixture(scope="module")
def manager(server, operator):
    """Kueue, found by an operator that ran before it; a job that asked for it first was told so."""
    server.apply(queued("default", "early", stages=1, queue="nowhere"))
    wait_until(lambda: reason(server, "default", "early") == "NoKueue", "the job is told that there is no Kueue")
    manager = kueue.start_kueue(server)
    wait_until(lambda: "doesn't exist" in message(server, "default", "early"), "Kueue answers")
    assert message(server, "default", "early") == (
        "waits for quota in queue nowhere: not reserved: LocalQueue nowhere doesn't exist"
    )
    server.kubectl("delete", "pipelinejob", "early")
    server.apply(kueue.flavor("red", color="red"), kueue.flavor("blue", color="blue"))
    yield manager
    assert manager.alive


@pytest.fixture
def space(server, manager):
    """A namespace whose queues go with it."""
    name = f"kueue-{secrets.token_hex(4)}"
    server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    server.kubectl("delete", "pipelinejob", "-n", name, "--all")
    wait_until(lambda: not server.get("workloads", "-n", name)["items"], "no Workload is left")
    server.kubectl("delete", "clusterqueue", "--all", "--wait=false")
    server.kubectl("delete", "workloadpriorityclass", "--all")
    server.kubectl("delete", "namespace", name, "--wait=false")


def queued(namespace, name, *, stages, queue, labels=None, **spec):
    made = job(namespace, name, stages=stages, **spec)
    return made | {"metadata": made["metadata"] | {"labels": {QUEUE: queue} | (labels or {})}}


def queues(server, space, **quotas):
    """Make for each name a ClusterQueue of that name and a LocalQueue that leads to it."""
    for name, spec in quotas.items():
        server.apply(
            kueue.cluster_queue(f"{space}-{name}", **spec), kueue.local_queue(name, space, of=f"{space}-{name}")
        )


def admitted(server, namespace, name):
    conditions = server.get("pipelinejob", "-n", namespace, name).get("status", {}).get("conditions", ())
    return next((each for each in conditions if each["type"] == "Admitted"), {})


def reason(server, namespace, name):
    return admitted(server, namespace, name).get("reason")


def message(server, namespace, name):
    return admitted(server, namespace, name).get("message", "")


def trains(server, namespace, name):
    return server.get("pipelinejob", "-n", namespace, name).get("status", {}).get("state") == "Training"


def workload(server, namespace, name):
    (found,) = server.get("workloads", "-n", namespace, "-l", f"pipelinejob.io/name={name}")["items"]
    return found


def said(server, namespace, name):
    conditions = workload(server, namespace, name).get("status", {}).get("conditions", ())
    return {each["type"]: (each["status"], each["reason"]) for each in conditions}


def finish(server, namespace, name):
    for pod in pods(server, namespace, name):
        finish_pod(server, namespace, pod["metadata"]["name"], exit_code=0)


def test_an_admitted_job_trains_and_frees_its_quota_when_it_ends(server, space):
    queues(server, space, a={"flavors": {"red": 4}})
    server.apply(queued(space, "first", stages=4, queue="a"), queued(space, "second", stages=4, queue="a"))
    wait_until(lambda: trains(server, space, "first") or trains(server, space, "second"), "one trains")
    first, second = ("first", "second") if trains(server, space, "first") else ("second", "first")

    wait_until(lambda: reason(server, space, second) == "QuotaPending", "the other waits")
    wait_until(lambda: "insufficient unused quota" in message(server, space, second), "it repeats Kueue's words")
    assert pods(server, space, second) == []
    wait_until(
        lambda: said(server, space, first).get("PodsReady") == ("True", "Started"), "Kueue knows that all are up"
    )

    finish(server, space, first)

    wait_until(lambda: said(server, space, first).get("Finished") == ("True", "Succeeded"), "Kueue is told of the end")
    wait_until(lambda: trains(server, space, second), "the other one trains")


def test_a_job_is_placed_on_the_nodes_of_the_flavor_that_it_was_given(server, space):
    queues(server, space, a={"flavors": {"red": 1, "blue": 4}})
    server.apply(queued(space, "gpt", stages=4, queue="a"))

    wait_until(lambda: trains(server, space, "gpt"), "it trains")

    nodes = {pod["spec"]["nodeName"] for pod in pods(server, space, "gpt")}
    assert {name.split("-")[0] for name in nodes} == {"blue"}


def test_a_borrower_checkpoints_and_goes_when_the_lender_wants_its_own_and_returns_by_itself(server, space):
    reclaim = {"reclaimWithinCohort": "Any"}
    queues(
        server,
        space,
        lender={"flavors": {"red": 2}, "cohort": space, "preemption": reclaim},
        borrower={"flavors": {"red": 2}, "cohort": space},
    )
    server.apply(queued(space, "guest", stages=4, queue="borrower"))
    wait_until(lambda: trains(server, space, "guest"), "a job of twice its quota trains on what is lent")

    server.apply(queued(space, "owner", stages=2, queue="lender"))

    wait_until(lambda: trains(server, space, "owner"), "the lender's job trains")
    wait_until(lambda: "waits for quota" in message(server, space, "guest"), "the borrower's waits")
    assert pods(server, space, "guest") == []
    assert said(server, space, "guest")["QuotaReserved"][0] == "False"
    events = server.get("events", "-n", space, "--field-selector=reason=QuotaTakenBack")["items"]
    assert "Preempted" in (events[0].get("note") or events[0]["message"])

    finish(server, space, "owner")

    wait_until(lambda: trains(server, space, "guest"), "the borrower's returns")
    status = server.get("pipelinejob", "-n", space, "guest")["status"]
    assert (status["attempt"], status.get("restarts", 0)) == (2, 0)


def test_a_higher_priority_class_of_kueues_goes_first_and_preempts(server, space):
    server.apply(kueue.priority_class("high", 1000))
    queues(server, space, a={"flavors": {"red": 4}, "preemption": {"withinClusterQueue": "LowerPriority"}})
    server.apply(queued(space, "low", stages=4, queue="a"))
    wait_until(lambda: trains(server, space, "low"), "the lower one trains")

    high = {"kueue.x-k8s.io/priority-class": "high"}
    server.apply(queued(space, "high", stages=4, queue="a", labels=high))

    wait_until(lambda: trains(server, space, "high"), "the higher one trains")
    wait_until(lambda: reason(server, space, "low") == "QuotaPending", "the lower one waits")


def test_a_deactivated_job_stops_and_goes_on_when_it_is_active_again(server, space):
    queues(server, space, a={"flavors": {"red": 4}})
    server.apply(queued(space, "gpt", stages=2, queue="a"))
    wait_until(lambda: trains(server, space, "gpt"), "it trains")
    name = workload(server, space, "gpt")["metadata"]["name"]

    server.kubectl("patch", "workload", "-n", space, name, "--type=merge", "-p", '{"spec":{"active":false}}')
    wait_until(lambda: "spec.active: true" in message(server, space, "gpt"), "it says how to go on")
    assert pods(server, space, "gpt") == []
    assert said(server, space, "gpt")["QuotaReserved"][0] == "False"

    server.kubectl("patch", "workload", "-n", space, name, "--type=merge", "-p", '{"spec":{"active":true}}')
    wait_until(lambda: trains(server, space, "gpt"), "it trains again")


def test_a_stopped_queue_drains_its_jobs_and_takes_them_back(server, space):
    queues(server, space, a={"flavors": {"red": 4}})
    server.apply(queued(space, "gpt", stages=2, queue="a"))
    wait_until(lambda: trains(server, space, "gpt"), "it trains")
    hold = '{"spec":{"stopPolicy":"HoldAndDrain"}}'

    server.kubectl("patch", "clusterqueue", f"{space}-a", "--type=merge", "-p", hold)
    wait_until(lambda: not pods(server, space, "gpt"), "it stops")
    wait_until(lambda: said(server, space, "gpt")["QuotaReserved"][0] == "False", "its quota is free")

    server.kubectl("patch", "clusterqueue", f"{space}-a", "--type=merge", "-p", '{"spec":{"stopPolicy":"None"}}')
    wait_until(lambda: trains(server, space, "gpt"), "it trains again")


def test_a_deleted_job_frees_its_quota(server, space):
    queues(server, space, a={"flavors": {"red": 4}})
    server.apply(queued(space, "gone", stages=4, queue="a"))
    wait_until(lambda: trains(server, space, "gone"), "it trains")
    server.apply(queued(space, "next", stages=4, queue="a"))
    wait_until(lambda: reason(server, space, "next") == "QuotaPending", "the next one waits")

    server.kubectl("delete", "pipelinejob", "-n", space, "gone")

    wait_until(lambda: trains(server, space, "next"), "the next one trains")


def test_a_suspended_job_holds_no_quota(server, space):
    queues(server, space, a={"flavors": {"red": 4}})
    server.apply(queued(space, "gpt", stages=4, queue="a"))
    wait_until(lambda: trains(server, space, "gpt"), "it trains")

    server.kubectl("patch", "pj", "-n", space, "gpt", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    wait_until(lambda: condition(server, space, "gpt", "Suspended")["status"] == "True", "it is suspended")
    wait_until(lambda: not server.get("workloads", "-n", space)["items"], "it asks for nothing")

    server.kubectl("patch", "pj", "-n", space, "gpt", "--type=merge", "-p", '{"spec":{"suspend":false}}')
    wait_until(lambda: trains(server, space, "gpt"), "it trains again")


def test_a_job_without_the_label_is_none_of_kueues_business(server, space):
    server.apply(job(space, "gpt", stages=2))

    wait_until(lambda: trains(server, space, "gpt"), "it trains")

    assert server.get("workloads", "-n", space)["items"] == []
