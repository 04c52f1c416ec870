"""Whether there is a Kueue, and which of its versions is spoken: asked of the API server, again until there is one."""

import asyncio
import contextlib

import pytest

from pipelinejob_operator.cluster import Key, UnavailableError
from pipelinejob_operator.kube.api import NotFoundError
from pipelinejob_operator.kube.caching import kueue
from pipelinejob_operator.kube.caching.informer import Timings
from pipelinejob_operator.kube.caching.kueue import KueueCache
from pipelinejob_operator.objects.peers.workload import workload_name

KEY, UID = Key("default", "gpt"), "uid-1"


class Api:
    """An API server that serves these versions of Kueue, and these objects by the end of their path."""

    def __init__(self, *versions, **objects):
        self.versions, self.objects, self.asked = versions, objects, []
        self.errors = []  # raised before any answer

    async def request(self, method, path, **_):
        self.asked.append(path)
        if self.errors:
            raise self.errors.pop()
        if not self.versions:
            raise NotFoundError(path)
        if path.endswith("kueue.x-k8s.io"):
            return {"versions": [{"version": each} for each in self.versions]}
        return {"metadata": {"resourceVersion": "1"}, "items": self.objects.get(path.rpartition("/")[2], [])}

    @contextlib.asynccontextmanager
    async def lines(self, path, **_):
        async def silence():
            await asyncio.Event().wait()
            yield b""

        yield silence()


@contextlib.asynccontextmanager
async def running(api):
    changed = []
    cache = KueueCache(
        api,
        on_workload=lambda change: changed.append(kueue.job_of(change)),
        on_other=lambda _: None,
        on_listed=lambda: None,
        on_restart=lambda _: None,
        timings=Timings(min_backoff_s=0.001),
    )
    task = asyncio.create_task(cache.run())
    try:
        await asyncio.wait_for(cache.wait_synced(), 5)
        yield cache, changed
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def workload(uid=UID):
    owner = {"kind": "PipelineJob", "name": KEY.name, "uid": uid, "controller": True}
    metadata = {"name": workload_name(KEY.name, UID), "namespace": KEY.namespace, "uid": "w", "resourceVersion": "1"}
    return {"metadata": metadata | {"ownerReferences": [owner]}}


async def test_without_kueue_there_is_none_and_nothing_waits_for_it():
    async with running(Api()) as (cache, _):
        assert cache.of(KEY, UID) is None
        assert cache.informers == ()


@pytest.mark.parametrize(
    ("served", "spoken"),
    [(("v1beta2", "v1beta1"), "v1beta2"), (("v1beta1",), "v1beta1"), (("v2", "v1beta2"), "v1beta2")],
)
async def test_the_best_version_that_both_speak_is_spoken(served, spoken):
    api = Api(*served)
    async with running(api) as (cache, _):
        assert cache.of(KEY, UID).api_version == f"kueue.x-k8s.io/{spoken}"
        assert cache.path("default", "w") == f"/apis/kueue.x-k8s.io/{spoken}/namespaces/default/workloads/w"
        assert f"/apis/kueue.x-k8s.io/{spoken}/resourceflavors" in api.asked


async def test_a_kueue_of_another_time_is_none():
    async with running(Api("v9")) as (cache, _):
        assert cache.of(KEY, UID) is None


async def test_a_kueue_that_comes_later_is_found(monkeypatch):
    monkeypatch.setattr(kueue, "_LOOK_AGAIN_S", 0.001)
    api = Api()
    async with running(api) as (cache, _):
        api.versions = ("v1beta2",)
        async with asyncio.timeout(5):
            while cache.of(KEY, UID) is None:
                await asyncio.sleep(0.001)


async def test_an_api_server_that_does_not_answer_is_asked_again():
    api = Api("v1beta2")
    api.errors = [UnavailableError("overload"), UnavailableError("overload")]
    async with running(api) as (cache, _):
        assert cache.of(KEY, UID) is not None


async def test_a_jobs_own_workload_is_found_and_its_change_told():
    async with running(Api("v1beta2", workloads=[workload()])) as (cache, changed):
        assert cache.of(KEY, UID).workload["metadata"]["uid"] == "w"
        assert changed == [KEY]


async def test_the_workload_of_another_owner_is_not_the_jobs():
    async with running(Api("v1beta2", workloads=[workload(uid="older")])) as (cache, _):
        assert cache.of(KEY, UID).workload is None


async def test_flavors_and_priority_classes_are_found_by_name():
    flavor, priority = ({"metadata": {"name": name, "uid": name, "resourceVersion": "1"}} for name in ("red", "high"))
    async with running(Api("v1beta2", resourceflavors=[flavor], workloadpriorityclasses=[priority])) as (cache, _):
        found = cache.of(KEY, UID)
        assert (set(found.flavors), set(found.priority_classes)) == ({"red"}, {"high"})
