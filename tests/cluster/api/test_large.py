"""The largest jobs over the real API server and etcd: what is written of 2,048 ranks is stored."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import aiohttp
import pytest

from pipelinejob.spec.reported.stage_status import StageStatus
from pipelinejob.spec.status import PipelineJobStatus
from pipelinejob_operator.cluster import InvalidError, TooLargeError
from pipelinejob_operator.controller.status_writing import StatusWriter
from pipelinejob_operator.kube.api import Api, load_configuration
from pipelinejob_operator.kube.caching.reactions import Hooks
from pipelinejob_operator.kube.cluster import KubeCluster
from pipelinejob_operator.objects.job import read_job
from support.api_server.apiserver import ApiServer
from support.api_server.operatorprocess import job

# aiohttp's advice on bodies of more than a megabyte, which are the point here.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")

RANKS = 2048


def failed(number: int) -> StageStatus:
    name = f"ip-10-{number // 256}-{number % 256}-7.eu-central-1.compute.internal"
    return StageStatus(
        replica=number // 1024,
        stage=number % 1024,
        pod=f"llama-405b-r{number // 1024}-s{number % 1024}",
        node=name,
        path=f"zone-a/spine-{number // 512}/leaf-{number // 64}/{name}",
        exit_code=1,
        reason="DataNotFound",
        message=f"{number} " + "é" * 990,
        step=120_000,
    )


async def with_cluster(server: ApiServer, act):
    hooks = Hooks(
        enqueue=lambda _: None,
        room_changed=lambda: None,
        resynced=lambda: None,
        watch_restarted=print,
        check_fence=lambda: None,
    )
    configuration = await load_configuration(server.kubeconfig, None)
    async with Api(configuration) as api, aiohttp.ClientSession() as session:
        return await act(KubeCluster(api, hooks=hooks, instance="test", session=session))


@pytest.fixture
def large(api_server: ApiServer, namespace: str):
    """A stored job, and the status that 2,048 ranks with a sentence each would have."""
    template = {"metadata": {"annotations": {"note": "x" * 200_000}}}
    api_server.apply(job(namespace, "gpt", stages=2, template=template))
    stored = read_job(api_server.get("pipelinejob", "-n", namespace, "gpt"))
    return stored, PipelineJobStatus(stages=tuple(failed(number) for number in range(RANKS)))


def test_what_etcd_refuses_for_its_size_has_its_type(api_server, large):
    stored, status = large
    # Between etcd's limit and the API server's own, of 3 MiB.
    stages = [stage.model_copy(update={"message": "x" * 500}).dump() for stage in status.stages]

    with pytest.raises(TooLargeError, match="request is too large"):
        asyncio.run(with_cluster(api_server, lambda cluster: cluster.write_status(stored.raw, {"stages": stages})))


def test_what_is_written_of_it_is_stored_beside_a_large_spec(api_server, namespace, large):
    stored, status = large

    asyncio.run(with_cluster(api_server, lambda cluster: StatusWriter(cluster).write(stored, status)))

    found = api_server.get("pipelinejob", "-n", namespace, "gpt")["status"]
    assert len(found["stages"]) == RANKS
    assert found["leftOut"] == "too large to be stored whole; left out: sentences of single stages"
    assert found["stages"][0]["message"].startswith("0 é")
    assert {each["reason"] for each in found["stages"]} == {"DataNotFound"}


def test_where_the_spec_leaves_less_a_shorter_one_is_stored(api_server, namespace, large):
    # The API server takes 3 MiB, etcd half of that: the two together are too much, each alone is
    # not.
    stored, status = large
    template = {"metadata": {"annotations": {"note": "x" * 1_000_000}}}
    api_server.apply(job(namespace, "gpt", stages=2, template=template))
    stored = read_job(api_server.get("pipelinejob", "-n", namespace, "gpt"))

    asyncio.run(with_cluster(api_server, lambda cluster: StatusWriter(cluster).write(stored, status)))

    found = api_server.get("pipelinejob", "-n", namespace, "gpt")["status"]
    assert len(found["stages"]) == RANKS
    assert "measurements of single stages" in found["leftOut"]


def test_a_large_config_map_is_refused_as_invalid(api_server, namespace):
    item = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "large", "namespace": namespace},
        "data": {"plan.json": "x" * (1024 * 1024 + 1), "at": datetime.now(UTC).isoformat()},
    }

    with pytest.raises(InvalidError, match="Too long"):
        asyncio.run(with_cluster(api_server, lambda cluster: cluster.apply(item)))
