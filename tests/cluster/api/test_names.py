"""What is another's under a name that a job needs, over the real API server: left as it is, waited for, told of."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest

from pipelinejob_operator.cluster import ConflictError, NameTakenError, Reference, UnavailableError
from pipelinejob_operator.kube.api import Api, load_configuration
from pipelinejob_operator.kube.caching.reactions import Hooks
from pipelinejob_operator.kube.cluster import KubeCluster
from support.api_server.apiserver import ApiServer
from support.api_server.fakenodes import add_nodes, node
from support.api_server.operatorprocess import condition, is_placed, job, pods
from support.local.processes import Process, wait_until

# With the tests of a job's life: one operator serves both.
pytestmark = pytest.mark.xdist_group("life")


@pytest.fixture
def room(api_server: ApiServer, kwok: Process, namespace: str):
    name = f"node-{namespace[-6:]}"
    add_nodes(api_server, [node(name, gpus=2)])
    yield name
    api_server.kubectl("delete", "node", "--ignore-not-found", name)


def service(namespace: str):
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "gpt", "namespace": namespace},
        "spec": {"clusterIP": "None", "selector": {"app": "my-db"}, "ports": [{"name": "db", "port": 5432}]},
    }


def config_map(namespace: str):
    data = {"notes.txt": "my own notes", "plan.json": "my own plan"}
    metadata = {"name": "gpt-plan", "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def pod(namespace: str):
    """Return a pod that no node takes: it is Pending for ever, and holds nothing."""
    secure = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {"name": "web", "image": "example.org/web", "securityContext": secure}
    spec = {
        "containers": [container],
        "nodeSelector": {"nowhere": "true"},
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1, "seccompProfile": {"type": "RuntimeDefault"}},
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "gpt-r0-s1", "namespace": namespace}, "spec": spec}


FOREIGN = {"service": service, "configmap": config_map, "pod": pod}


def stored(server: ApiServer, namespace: str, item):
    return server.get(item["kind"].lower(), "-n", namespace, item["metadata"]["name"])


def says_names_taken(server: ApiServer, namespace: str) -> bool:
    return condition(server, namespace, "gpt", "Placed")["reason"] == "NamesTaken"


@pytest.mark.parametrize("kind", list(FOREIGN))
def test_what_is_anothers_outlives_the_job_untouched(api_server, operator, namespace, room, kind):
    item = FOREIGN[kind](namespace)
    api_server.apply(item)
    before = stored(api_server, namespace, item)

    api_server.apply(job(namespace, "gpt", stages=2))
    wait_until(lambda: says_names_taken(api_server, namespace), "it waits for the name")
    name = item["metadata"]["name"]
    assert f"{item['kind']} {name} (of no owner)" in condition(api_server, namespace, "gpt", "Placed")["message"]
    api_server.kubectl("delete", "pipelinejob", "-n", namespace, "gpt", "--cascade=foreground")

    after = stored(api_server, namespace, item)
    assert {**after, "metadata": {**after["metadata"], "resourceVersion": ""}, "status": {}} == {
        **before,
        "metadata": {**before["metadata"], "resourceVersion": ""},
        "status": {},
    }


def test_a_job_goes_on_once_the_names_are_free(api_server, operator, namespace, room):
    api_server.apply(service(namespace), config_map(namespace))
    api_server.apply(job(namespace, "gpt", stages=2))
    wait_until(lambda: says_names_taken(api_server, namespace), "it waits for the names")
    message = condition(api_server, namespace, "gpt", "Placed")["message"]
    assert message == (
        "ConfigMap gpt-plan (of no owner), Service gpt (of no owner): needed by this job under that name, "
        "and not its own; delete them, or give the job another name"
    )

    api_server.kubectl("delete", "-n", namespace, "service/gpt", "configmap/gpt-plan")

    wait_until(lambda: is_placed(api_server, namespace, "gpt", ranks=2), "it runs")
    assert api_server.get("pipelinejob", "-n", namespace, "gpt")["status"]["attempt"] == 1


def test_a_job_of_the_same_name_waits_for_what_the_earlier_one_left(api_server, operator, namespace, room):
    api_server.apply(job(namespace, "gpt", stages=2))
    wait_until(lambda: is_placed(api_server, namespace, "gpt", ranks=2), "the first runs")
    first = api_server.get("pipelinejob", "-n", namespace, "gpt")["metadata"]["uid"]
    api_server.kubectl("delete", "pipelinejob", "-n", namespace, "gpt")

    api_server.apply(job(namespace, "gpt", stages=2))

    def is_of_the_second():
        owners = {
            owner["uid"]
            for kind in ("pod", "service", "configmap")
            for item in api_server.get(kind, "-n", namespace, "-l", "pipelinejob.io/name=gpt")["items"]
            for owner in item["metadata"]["ownerReferences"]
        }
        return owners and first not in owners and is_placed(api_server, namespace, "gpt", ranks=2)

    wait_until(is_of_the_second, "the second runs, with objects of its own")


def test_what_a_job_owns_is_put_right_though_its_labels_were_taken(api_server, operator, namespace, room):
    api_server.apply(job(namespace, "gpt", stages=2))
    wait_until(lambda: is_placed(api_server, namespace, "gpt", ranks=2), "it runs")

    api_server.kubectl("label", "-n", namespace, "service/gpt", "pipelinejob.io/name-")

    wait_until(
        lambda: stored(api_server, namespace, service(namespace))["metadata"]["labels"]["pipelinejob.io/name"] == "gpt",
        "the label is back",
    )
    assert len(pods(api_server, namespace, "gpt")) == 2


# ---- one write


OWNER = {"apiVersion": "pipelinejob.io/v1alpha1", "kind": "PipelineJob", "name": "gpt", "uid": "u", "controller": True}


async def written(server: ApiServer, write) -> None:
    """Do one write as the operator does."""
    hooks = Hooks(
        enqueue=lambda _: None,
        room_changed=lambda: None,
        resynced=lambda: None,
        watch_restarted=print,
        check_fence=lambda: None,
    )
    configuration = await load_configuration(server.kubeconfig, None)
    async with Api(configuration) as api, aiohttp.ClientSession() as session:
        await write(KubeCluster(api, hooks=hooks, instance="test", session=session))


def of_the_job(item, **metadata):
    return {**item, "metadata": {**item["metadata"], "ownerReferences": [OWNER], **metadata}}


@pytest.mark.parametrize("kind", list(FOREIGN))
def test_a_create_meets_another_and_leaves_it(api_server, namespace, kind):
    item = FOREIGN[kind](namespace)
    api_server.apply(item)

    with pytest.raises(NameTakenError, match="of no owner"):
        asyncio.run(written(api_server, lambda cluster: cluster.apply(of_the_job(item))))

    assert "ownerReferences" not in stored(api_server, namespace, item)["metadata"]


def test_a_create_waits_for_what_an_earlier_owner_of_the_same_name_left(api_server, namespace):
    api_server.apply(job(namespace, "gpt", stages=2, suspend=True))
    earlier = {**OWNER, "uid": api_server.get("pipelinejob", "-n", namespace, "gpt")["metadata"]["uid"]}
    item = config_map(namespace)
    api_server.apply(of_the_job(item, ownerReferences=[earlier]))
    later = {**of_the_job(item), "metadata": {**item["metadata"], "ownerReferences": [{**OWNER, "uid": "v"}]}}

    with pytest.raises(UnavailableError, match="of an earlier job of this name"):
        asyncio.run(written(api_server, lambda cluster: cluster.apply(later)))


@pytest.mark.parametrize("kind", list(FOREIGN))
def test_a_change_and_a_delete_mean_one_uid(api_server, namespace, kind):
    item = FOREIGN[kind](namespace)
    api_server.apply(item)
    before = stored(api_server, namespace, item)
    meant = of_the_job(item, uid="11111111-2222-3333-4444-555555555555")
    metadata = meant["metadata"]
    reference = Reference(
        kind=item["kind"], namespace=metadata["namespace"], name=metadata["name"], uid=metadata["uid"]
    )

    with pytest.raises(ConflictError, match="uid"):
        asyncio.run(written(api_server, lambda cluster: cluster.apply(meant)))
    asyncio.run(written(api_server, lambda cluster: cluster.delete(reference)))

    assert stored(api_server, namespace, item)["metadata"]["uid"] == before["metadata"]["uid"]
    assert "ownerReferences" not in stored(api_server, namespace, item)["metadata"]
    api_server.kubectl("delete", "-n", namespace, item["kind"].lower(), metadata["name"], "--wait", "--force")
    with pytest.raises(ConflictError, match="is gone"):
        asyncio.run(written(api_server, lambda cluster: cluster.apply(meant)))
    assert json.loads(api_server.kubectl("get", kind, "-n", namespace, "-o", "json"))["items"] == [
        each for each in api_server.get(kind, "-n", namespace)["items"] if each["metadata"]["name"] != metadata["name"]
    ]
