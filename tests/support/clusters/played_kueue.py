"""Kueue's manager on a cluster of dictionaries, played as far as a job sees it."""

from support.manifests.jobs import job

NOW = {"lastTransitionTime": "2026-01-01T00:00:00Z"}
QUEUE = {"kueue.x-k8s.io/queue-name": "team-a"}


def queued(name="gpt", labels=None, **spec):
    manifest = job(name, **spec)
    return manifest | {"metadata": manifest["metadata"] | {"labels": QUEUE | (labels or {})}}


class Kueue:
    """Kueue's manager, as far as a job sees it."""

    def __init__(self, world):
        self.cluster = world.cluster
        self.cluster.kueue_version = "kueue.x-k8s.io/v1beta2"

    @property
    def workload(self):
        (found,) = self.cluster._all("Workload")
        return found

    def conditions(self):
        return {each["type"]: (each["status"], each["reason"]) for each in self.workload["status"]["conditions"]}

    def flavor(self, name, **spec):
        self.cluster._put({"kind": "ResourceFlavor", "metadata": {"name": name}, "spec": spec})

    def say(self, conditions, **status):
        """Set conditions, each as (type, status, reason, message)."""
        item = self.workload
        kept = {each["type"]: each for each in item.get("status", {}).get("conditions", ())}
        for kind, holds, reason, message in conditions:
            kept[kind] = {"type": kind, "status": holds, "reason": reason, "message": message} | NOW
        self.cluster._put(item | {"status": item.get("status", {}) | status | {"conditions": list(kept.values())}})

    def admit(self, flavor="default"):
        assignments = [
            {"name": each["name"], "count": each["count"], "flavors": {"nvidia.com/gpu": flavor}}
            for each in self.workload["spec"]["podSets"]
        ]
        words = ("QuotaReserved", "True", "QuotaReserved", ""), ("Admitted", "True", "Admitted", "")
        self.say(
            [*words, ("Evicted", "False", "QuotaReserved", "")],
            admission={"clusterQueue": "q", "podSetAssignments": assignments},
        )

    def evict(self, reason="Preempted", message="Preempted to accommodate a workload"):
        self.say([("Evicted", "True", reason, message)])


def train(world, kueue, key):
    world.settle()
    kueue.admit()
    world.train(key)
    assert world.status(key)["state"] == "Training"
