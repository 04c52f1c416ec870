"""What must hold at the moment of every single write of the controller, whatever it is in the middle of.

A pass may die between any two writes, so a state that a pass mends only with its last write is
already wrong.
"""

from collections import Counter

from pipelinejob.base import names
from pipelinejob_operator.cluster import Key
from pipelinejob_operator.objects.making.pod_template import merge
from support.clusters.fakecluster import phase, pinned_node


class Lawful:
    """The cluster as the controller holds it: reads come from the cache, each write is judged once it is done."""

    def __init__(self, cache, truth):
        self._cache, self._truth = cache, truth

    def __getattr__(self, name):
        return getattr(self._cache, name)

    async def apply(self, item):
        if item["kind"] == "Pod":
            _judge_pod(
                item, self._truth, seen=self._pods_seen(item["metadata"]["namespace"], _label(item, names.LABEL_JOB))
            )
        await self._cache.apply(item)

    async def change_pod(self, pod, changes):
        namespace, name = pod["metadata"]["namespace"], _label(pod, names.LABEL_JOB)
        _judge_pod(merge(pod, changes), self._truth, seen=self._pods_seen(namespace, name))
        await self._cache.change_pod(pod, changes)

    async def write_status(self, job, status):
        key = Key(job["metadata"]["namespace"], job["metadata"]["name"])
        before = (self._truth.job(key) or {}).get("status") or {}
        seen = self._pods_seen(*key)
        try:
            await self._cache.write_status(job, status)
        finally:
            after = (self._truth.job(key) or {}).get("status") or {}
            _judge_status(before, after, seen, binds_late=_binds_late(job))
            check_room(self._truth)

    def _pods_seen(self, namespace, name):
        return list(self._cache.pods(Key(namespace, name)))


def check_room(cluster):
    """Hold that no node is given twice: neither by pods that may run there, nor by what jobs were promised."""
    used = Counter()
    for job in cluster.jobs():
        status = job.get("status") or {}
        gang = cluster.pods(Key(job["metadata"]["namespace"], job["metadata"]["name"]))
        live = [pod for pod in gang if _may_run(pod)]
        for pod in live:
            used[_node(pod)] += _gpus(pod)
        if _is_placed(status) and not _is_over(status):
            here = {pod["metadata"]["name"] for pod in live if _attempt(pod) == status["attempt"]}
            for stage in status["stages"]:
                if stage["pod"] not in here:
                    used[stage["node"]] += 1  # jobs of these tests take one GPU a stage
            name = job["metadata"]["name"]
            resizing = (status.get("recovery") or {}).get("resizing") or {}
            for each in () if resizing.get("decided") else resizing.get("joining") or ():
                if names.pod_name(name, replica=each["replica"], stage=each["stage"]) not in here:
                    used[each["node"]] += 1
    for node in cluster.nodes():
        room = int(node["status"]["allocatable"]["nvidia.com/gpu"])
        assert used[node["metadata"]["name"]] <= room, f"{node['metadata']['name']} was given twice"


def _judge_pod(pod, cluster, *, seen):
    job = cluster.job(Key(pod["metadata"]["namespace"], _label(pod, names.LABEL_JOB)))
    status = (job or {}).get("status") or {}
    assert job is not None, "a pod of no job"
    assert _attempt(pod) <= status.get("attempt", 0), "a pod before its attempt was stored"
    assert not [each for each in seen if _attempt(each) != _attempt(pod)], "a pod beside those of another attempt"
    if not pod["spec"].get("schedulingGates"):
        assert status.get("releasedTime") or status["attempt"] > _attempt(pod), "a pod was let go before its gang"
    told = pod["metadata"].get("annotations", {}).get(names.ANNOTATION_RANK)
    if told:
        written = {each["pod"]: f"{each['replica']}/{each['stage']}" for each in status["stages"] if each.get("node")}
        assert written[pod["metadata"]["name"]] == told, "a pod was told a number that was not written before"


def _judge_status(before, after, seen, *, binds_late=False):
    assert 0 <= after.get("attempt", 0) - before.get("attempt", 0) <= 1, "attempts go up, one by one"
    if after.get("attempt") == before.get("attempt") and _is_placed(before):
        assert _is_placed(after), "a gang was given up without a new attempt"
        if _resizes(after) == _resizes(before):
            assert _pods(after).keys() == _pods(before).keys(), "an attempt was numbered twice"
        kept = _pods(after).keys() & _pods(before).keys()
        changed = {_pods(after)[rank] for rank in kept if _pods(after)[rank] != _pods(before)[rank]}
        spares = {each["number"] for each in (before.get("recovery") or {}).get("spares", ())}
        for each in after["stages"]:
            was_written = each.get("spare") is None or each["spare"] in spares
            assert each["pod"] not in changed or was_written, "a rank got another pod's number"
            own = each["pod"].endswith(f"-r{each['replica']}-s{each['stage']}")
            assert binds_late or own or each.get("spare") is not None, "a pod of no spare took a rank's place"
    if _is_placed(after) and not _is_placed(before):
        older = [pod for pod in seen if not binds_late or _attempt(pod) != after["attempt"]]
        assert not older, "nodes were held while pods of an older attempt were still there"
    if after.get("releasedTime") and not before.get("releasedTime") and not binds_late:
        whole = {_rank(pod) for pod in seen if _attempt(pod) == after["attempt"]}
        assert whole == {(each["replica"], each["stage"]) for each in after["stages"]}, (
            "a gang let go before it is whole"
        )


def _binds_late(job):
    return job["spec"].get("scheduling", {}).get("binding") == "Late"


def _pods(status):
    return {(each["replica"], each["stage"]): each["pod"] for each in status["stages"]}


def _resizes(status):
    return (status.get("recovery") or {}).get("resizes", 0)


def _is_placed(status):
    stages = status.get("stages") or ()
    return bool(stages) and all(stage.get("node") for stage in stages)


def _is_over(status):
    return any(each["type"] == "Succeeded" and each["status"] != "Unknown" for each in status.get("conditions", ()))


def _may_run(pod):
    return not pod["spec"].get("schedulingGates") and phase(pod) not in {"Succeeded", "Failed"}


def _node(pod):
    bound = pod["spec"].get("nodeName")
    return bound if bound or names.LABEL_ORDINAL in pod["metadata"]["labels"] else pinned_node(pod)


def _gpus(pod):
    return int(pod["spec"]["containers"][0]["resources"]["requests"].get("nvidia.com/gpu", 0))


def _rank(pod):
    return int(_label(pod, names.LABEL_REPLICA)), int(_label(pod, names.LABEL_STAGE))


def _attempt(pod):
    return int(_label(pod, names.LABEL_ATTEMPT))


def _label(pod, name):
    return pod["metadata"]["labels"][name]
