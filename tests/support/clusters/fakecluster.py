"""A cluster of dictionaries: what the API server would keep, and the verbs of scheduler, kubelet and careless human."""

import copy
from datetime import UTC, datetime, timedelta

from pipelinejob.base import names
from pipelinejob.contract.progress import Progress
from pipelinejob_operator.cluster import (
    Autoscaler,
    ConflictError,
    Event,
    InvalidError,
    Key,
    Kueue,
    Named,
    NameTakenError,
)
from pipelinejob_operator.objects.making.pod_template import merge


class FakeCluster:
    def __init__(self, nodes=()):
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.objects, self.events, self.writes, self.version = {}, [], [], 0
        self.kueue_version = None  # that is served; None: there is no Kueue
        self.provisioning = None  # whether its API is served; None: the operator is not to ask
        self.answers: dict[str, Progress] = {}
        self.told = []  # of incarnations: pod and what it was told
        self.given = []  # of places: spare and rank and attempt
        self.mutate = lambda pod: pod  # what admission makes of a new pod
        self.tells_admission = True  # before the pod is made
        self.said: dict[str, list[Event]] = {}  # of pods by their names, the newest last
        self.refuse = lambda verb, item: None  # returns an exception to raise instead of the write
        self.lose_answer = lambda verb, item: None  # the same, raised after it
        for node in nodes:
            self._put(node)

    def job(self, key):
        return self.objects.get((names.KIND, key.namespace, key.name))

    def jobs(self):
        return self._all(names.KIND)

    def chains(self, key):
        uid = (self.job(key) or {"metadata": {"uid": None}})["metadata"]["uid"]
        return [job for job in self.jobs() if is_owned(job, uid)]

    def pods(self, key):
        uid = (self.job(key) or {"metadata": {"uid": None}})["metadata"]["uid"]
        return [pod for pod in self.all_pods() if any(o["uid"] == uid for o in pod["metadata"]["ownerReferences"])]

    def pod_by_name(self, namespace, name):
        return self.objects.get(("Pod", namespace, name))

    def furniture(self, key):
        uid = (self.job(key) or {"metadata": {"uid": None}})["metadata"]["uid"]
        items = [*self._all("ConfigMap"), *self._all("Service"), *self._all("PodDisruptionBudget")]
        return [item for item in items if any(o["uid"] == uid for o in item["metadata"]["ownerReferences"])]

    def all_pods(self):
        return self._all("Pod")

    def nodes(self):
        return self._all("Node")

    def node(self, name):
        return self.objects.get(("Node", "", name))

    def seen_objects(self):
        return self.objects

    def journal(self):
        return Differences(self)

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

    def autoscaler(self, key):
        if self.provisioning is None:
            return None
        owned = [each for each in self._all("ProvisioningRequest") if is_owned(each, self.job(key)["metadata"]["uid"])]
        uid = owned[0]["metadata"]["uid"] if owned else None
        templates = (each["metadata"]["name"] for each in self._all("PodTemplate") if is_owned(each, uid))
        return Autoscaler(
            is_served=self.provisioning, request=owned[0] if owned else None, templates=frozenset(templates)
        )

    async def look_up(self, kind, namespace, name):
        return self.objects.get((kind, namespace, name))

    async def admitted(self, pod):
        if not self.tells_admission:
            raise InvalidError("the admission webhook does not support dry run")
        self.version += 1
        new = copy.deepcopy(pod)
        return self.mutate(new | {"metadata": new["metadata"] | {"uid": f"dry-run-{self.version}"}})

    async def progress(self, pod):
        return self.answers.get(pod["metadata"]["name"])

    async def tell(self, pod, incarnation):
        name = pod["metadata"]["name"]
        self.told.append((name, incarnation))
        if name in self.answers:
            heard = {"awaits_incarnation": False, "incarnation": incarnation.number, "lost": ()}
            heard = {"moves_to": incarnation.number} if incarnation.at_border else heard
            self.answers[name] = self.answers[name].model_copy(update=heard)

    async def tell_rank(self, pod, rank):
        self.given.append((pod["metadata"]["name"], (rank.replica, rank.stage, rank.attempt)))

    async def pod_events(self, pod):
        return self.said.get(pod["metadata"]["name"], ())

    async def apply(self, item):
        self._may("apply", item)
        new = self._changed(item) if "uid" in item["metadata"] else self._created(item)
        self._put(new)
        self._done("apply", item)

    def _created(self, item):
        found = self.objects.get(self._id(item))
        if found is not None and is_owned(found, item["metadata"]["ownerReferences"][0]["uid"]):
            raise ConflictError("it stands already")
        if found is not None:
            raise NameTakenError(f"{found['kind']} {found['metadata']['name']} is another's")
        new = copy.deepcopy(dict(item))
        if item["kind"] == names.KIND:
            new["metadata"] |= {"creationTimestamp": self._time(), "generation": 1}
        return new | {"spec": self.mutate(new)["spec"]} if item["kind"] == "Pod" else new

    def _changed(self, item):
        found = self.objects.get(self._id(item))
        if found is None or found["metadata"]["uid"] != item["metadata"]["uid"]:
            raise ConflictError("uid mismatch: another object, or none, stands there")
        new = merge(found, copy.deepcopy(dict(item)))
        if item["kind"] == names.KIND and new["spec"] != found["spec"]:
            new["metadata"] = new["metadata"] | {"generation": found["metadata"]["generation"] + 1}
        return new

    async def change_pod(self, pod, changes):
        self._may("change", pod)
        old = self.objects.get(self._id(pod))
        if old is None or old["metadata"]["uid"] != pod["metadata"]["uid"]:
            raise ConflictError("it is gone, or another stands there")
        new = merge(old, copy.deepcopy(changes))
        self._judge_pod_change(old, new["spec"])
        if not new["spec"].get("schedulingGates"):
            new["spec"].pop("schedulingGates", None)
        self._put(new)
        self._done("change", pod)

    @staticmethod
    def _judge_pod_change(old, new):
        """A pod's spec never changes, except that a gated one may be given its place and let go."""
        if "deletionTimestamp" in old["metadata"]:
            raise ConflictError("it is still going")
        free = {"schedulingGates", "affinity"} if old["spec"].get("schedulingGates") else set()
        changed = {field for field in new if new[field] != old["spec"].get(field)} - free
        if changed:
            raise InvalidError(f"spec: Forbidden: pod updates may not change {sorted(changed)}")

    async def delete(self, reference):
        self._may("delete", reference)
        item = self.objects.get((reference.kind, reference.namespace, reference.name))
        if item is not None and reference.uid == item["metadata"]["uid"]:
            self.remove(item, at_once=reference.grace_s == 0)
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

    def remove(self, item, *, at_once=False):
        """Begin a deletion: a running pod gets its grace, anything else is gone, and what it owned with it."""
        if item["kind"] == "Pod" and item.get("status", {}).get("phase") == "Running" and not at_once:
            self._put(item | {"metadata": item["metadata"] | {"deletionTimestamp": self._time()}})
            return
        self.objects.pop(self._id(item), None)
        for pod in self.all_pods():
            if any(owner["uid"] == item["metadata"]["uid"] for owner in pod["metadata"]["ownerReferences"]):
                self.objects.pop(self._id(pod), None)
        kinds = ("PodTemplate", "ConfigMap", "Service") if self.is_of_a_chain(item) else ("PodTemplate",)
        for owned in (each for kind in kinds for each in self._all(kind)):
            if is_owned(owned, item["metadata"]["uid"]):
                self.objects.pop(self._id(owned))

    @staticmethod
    def is_of_a_chain(item):
        return (item["metadata"].get("labels") or {}).get(names.LABEL_SERVICE)

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

    def cordon(self, name):
        node = self.objects["Node", "", name]
        self._put(node | {"spec": node.get("spec", {}) | {"unschedulable": True}})

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


class Differences:
    """A journal that names what another look at the cluster shows to be another object, or none."""

    def __init__(self, cluster):
        self._cluster, self._known = cluster, {}

    def take(self):
        now = {(kind, *name): item for (kind, *name), item in self._cluster.seen_objects().items()}
        changed = {name for name in now.keys() | self._known if now.get(name) is not self._known.get(name)}
        self._known = dict(now)
        return [Named(*name) for name in sorted(changed)]


class Lagging:
    """The cluster as a controller's cache shows it: frozen, it shows what was; writes reach what is."""

    def __init__(self, truth):
        self._truth = self._seen = truth

    def freeze(self):
        self._seen = copy.copy(self._truth)
        self._seen.objects = dict(self._truth.objects)

    def seen_objects(self):
        return self._seen.objects

    def journal(self):
        return Differences(self)

    def thaw(self):
        self._seen = self._truth

    def __getattr__(self, name):
        is_read = name in {
            "job",
            "jobs",
            "chains",
            "pods",
            "furniture",
            "all_pods",
            "nodes",
            "topology_profiles",
            "kueue",
        }
        is_read |= name in {"priority_classes", "pod_by_name", "autoscaler", "node"}
        return getattr(self._seen if is_read else self._truth, name)


def is_owned(item, uid):
    return any(owner["uid"] == uid for owner in item["metadata"]["ownerReferences"])


def phase(pod):
    return pod.get("status", {}).get("phase", "Pending")


def pinned_node(pod):
    required = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    return required["nodeSelectorTerms"][0]["matchFields"][0]["values"][0]
