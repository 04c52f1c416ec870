"""A cluster of dictionaries: what the API server would keep, and the verbs of scheduler, kubelet and careless human."""

import copy
from datetime import UTC, datetime, timedelta

from pipelinejob import names
from pipelinejob.progress import Progress
from pipelinejob_operator.cluster import ConflictError, Event, InvalidError, Key, Kueue


class FakeCluster:
    def __init__(self, nodes=()):
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.objects, self.events, self.writes, self.version = {}, [], [], 0
        self.kueue_version = None  # that is served; None: there is no Kueue
        self.answers: dict[str, Progress] = {}
        self.refuse = lambda verb, item: None  # returns an exception to raise instead of the write
        self.lose_answer = lambda verb, item: None  # the same, raised after it
        for node in nodes:
            self._put(node)

    def job(self, key):
        return self.objects.get((names.KIND, key.namespace, key.name))

    def jobs(self):
        return self._all(names.KIND)

    def pods(self, key):
        uid = (self.job(key) or {"metadata": {"uid": None}})["metadata"]["uid"]
        return [pod for pod in self.all_pods() if any(o["uid"] == uid for o in pod["metadata"]["ownerReferences"])]

    def furniture(self, key):
        uid = (self.job(key) or {"metadata": {"uid": None}})["metadata"]["uid"]
        items = [*self._all("ConfigMap"), *self._all("Service")]
        return [item for item in items if any(o["uid"] == uid for o in item["metadata"]["ownerReferences"])]

    def all_pods(self):
        return self._all("Pod")

    def nodes(self):
        return self._all("Node")

    def topology_profiles(self):
        return self._all("TopologyProfile")

    def kueue(self, key):
        if self.kueue_version is None:
            return None
        job = self.job(key) or {"metadata": {"uid": None}}
        owned = [each for each in self._all("Workload") if is_owned(each, job["metadata"]["uid"])]
        return Kueue(
            api_version=self.kueue_version,
            workload=owned[0] if owned else None,
            flavors={each["metadata"]["name"]: each for each in self._all("ResourceFlavor")},
            priority_classes={each["metadata"]["name"]: each for each in self._all("WorkloadPriorityClass")},
        )

    def priority_classes(self):
        return self._all("PriorityClass")

    async def config_map(self, namespace, name):
        return self.objects.get(("ConfigMap", namespace, name))

    async def progress(self, pod):
        return self.answers.get(pod["metadata"]["name"])

    async def apply(self, item):
        self._may("apply", item)
        old = self.objects.get(self._id(item), {})
        uid = old.get("metadata", {}).get("uid")
        if item["metadata"].get("uid", uid) != uid:
            raise ConflictError("uid mismatch: another object, or none, stands there")
        new = copy.deepcopy(dict(item))
        if old and item["kind"] == "Pod":
            new["spec"] = self._pod_spec(old, new["spec"])
        new["metadata"] |= {"uid": uid} if old else {}
        if "status" in old:
            new["status"] = old["status"]
        self._put(new)
        self._done("apply", item)

    @staticmethod
    def _pod_spec(old, new):
        """A pod's spec never changes, except that a gated one may be given its place and let go."""
        if "deletionTimestamp" in old["metadata"]:
            raise ConflictError("it is still going")
        free = {"schedulingGates", "affinity"} if old["spec"].get("schedulingGates") else set()
        changed = {field for field in new if new[field] != old["spec"].get(field)} - free
        if changed:
            raise InvalidError(f"spec: Forbidden: pod updates may not change {sorted(changed)}")
        kept = {field: value for field, value in old["spec"].items() if field != "schedulingGates"}
        return kept | new

    async def delete(self, reference):
        self._may("delete", reference)
        item = self.objects.get((reference.kind, reference.namespace, reference.name))
        if item is not None and reference.uid in {None, item["metadata"]["uid"]}:
            self.remove(item)
        self._done("delete", reference)

    async def write_status(self, job, status):
        self._may("status", job)
        key = Key(job["metadata"]["namespace"], job["metadata"]["name"])
        current = self.job(key)
        if current is None or current["metadata"]["resourceVersion"] != job["metadata"]["resourceVersion"]:
            raise ConflictError(f"{key} changed")
        self._put(current | {"status": copy.deepcopy(status)})
        self._done("status", job)

    async def patch_status(self, item, status):
        self._may("patch", item)
        current = self.objects.get(self._id(item))
        if current is None or current["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
            raise ConflictError(f"{item['metadata']['name']} changed")
        merged = {key: value for key, value in (current.get("status", {}) | status).items() if value is not None}
        self._put(current | {"status": copy.deepcopy(merged)})
        self._done("patch", item)

    async def emit(self, job, event: Event):
        self.events.append(event)

    # What others do

    def create(self, manifest):
        generation = manifest["metadata"].get("generation", 0) + 1
        metadata = manifest["metadata"] | {"creationTimestamp": self._time(), "generation": generation}
        self._put(manifest | {"metadata": metadata})

    def edit(self, key, **spec):
        job = self.job(key)
        metadata = job["metadata"] | {"generation": job["metadata"]["generation"] + 1}
        self._put(job | {"metadata": metadata, "spec": job["spec"] | spec})

    def remove(self, item):
        """Begin a deletion: a running pod gets its grace, anything else is gone, and what it owned with it."""
        if item["kind"] == "Pod" and item.get("status", {}).get("phase") == "Running":
            self._put(item | {"metadata": item["metadata"] | {"deletionTimestamp": self._time()}})
            return
        self.objects.pop(self._id(item), None)
        for pod in self.all_pods():
            if any(owner["uid"] == item["metadata"]["uid"] for owner in pod["metadata"]["ownerReferences"]):
                self.objects.pop(self._id(pod), None)

    def finish_deletions(self):
        for pod in self.all_pods():
            if "deletionTimestamp" in pod["metadata"]:
                self.objects.pop(self._id(pod))

    def bind(self, **where):
        """Bind every pod that is free to go, to the node that it is pinned to; a late-bound one as `where` says."""
        for pod in self.all_pods():
            if not pod["spec"].get("schedulingGates") and "nodeName" not in pod["spec"]:
                name = where.get(pod["metadata"]["name"].rpartition("-")[2]) or pinned_node(pod)
                self._put(pod | {"spec": pod["spec"] | {"nodeName": name}})

    def start(self, *, ready=True):
        for pod in self.all_pods():
            if "nodeName" in pod["spec"] and phase(pod) == "Pending" and "deletionTimestamp" not in pod["metadata"]:
                self.set_pod(pod, phase="Running", ready=ready)

    def set_pod(self, pod, *, phase, ready=False, code=None, message="", **status):
        conditions = [{"type": "Ready", "status": str(ready)}, *status.pop("conditions", ())]
        containers = []
        if code is not None:
            ended = {"exitCode": code, "message": message, "finishedAt": self._time()}
            containers = [{"name": "trainer", "state": {"terminated": ended}}]
        more = {"containerStatuses": containers} | status
        self._put(pod | {"status": {"phase": phase, "conditions": conditions} | more})

    def lose_node(self, name):
        node = self.objects["Node", "", name]
        conditions = [{"type": "Ready", "status": "Unknown"}]
        self._put(node | {"status": node["status"] | {"conditions": conditions}})

    def pass_time(self, seconds):
        self.now += timedelta(seconds=seconds)

    def pod(self, name, namespace="default"):
        return self.objects["Pod", namespace, name]

    def _time(self):
        return self.now.strftime("%Y-%m-%dT%H:%M:%SZ")

    def _all(self, kind):
        return [item for (each, _, _), item in sorted(self.objects.items()) if each == kind]

    def _may(self, verb, item):
        self.writes.append((verb, item))
        error = self.refuse(verb, item)
        if error is not None:
            raise error

    def _done(self, verb, item):
        error = self.lose_answer(verb, item)
        if error is not None:
            raise error

    def _put(self, item):
        self.version += 1
        uid = item["metadata"].get("uid") or f"uid-{self.version}"
        metadata = {"ownerReferences": []} | item["metadata"] | {"uid": uid, "resourceVersion": str(self.version)}
        self.objects[self._id(item)] = item | {"metadata": metadata}

    @staticmethod
    def _id(item):
        return (item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"])


class Lagging:
    """The cluster as a controller's cache shows it: frozen, it shows what was; writes reach what is."""

    def __init__(self, truth):
        self._truth = self._seen = truth

    def freeze(self):
        self._seen = copy.copy(self._truth)
        self._seen.objects = dict(self._truth.objects)

    def thaw(self):
        self._seen = self._truth

    def __getattr__(self, name):
        is_read = name in {"job", "jobs", "pods", "furniture", "all_pods", "nodes", "topology_profiles", "kueue"}
        is_read |= name == "priority_classes"
        return getattr(self._seen if is_read else self._truth, name)


def is_owned(item, uid):
    return any(owner["uid"] == uid for owner in item["metadata"]["ownerReferences"])


def phase(pod):
    return pod.get("status", {}).get("phase", "Pending")


def pinned_node(pod):
    required = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    return required["nodeSelectorTerms"][0]["matchFields"][0]["values"][0]
