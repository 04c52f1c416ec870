"""What follows from a change in a cache: whose turn it is, and what readers of journals find noted."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pipelinejob.base import names
from pipelinejob_operator.cluster import Journal, Key, Named, Object, named
from pipelinejob_operator.kube.caching import projection
from pipelinejob_operator.kube.caching.changes import BoundJobs, ChangedNames
from pipelinejob_operator.kube.caching.informer import Change, Name
from pipelinejob_operator.kube.caching.kueue import job_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Whom the cluster tells what."""

    enqueue: Callable[[Key], None]  # this job deserves a pass
    room_changed: Callable[[], None]  # what is free, or who asks for it, may be another
    resynced: Callable[[], None]  # a list was taken up, perhaps after a gap: all jobs deserve one
    watch_restarted: Callable[[str], None]  # the watch of this plural failed and begins again
    check_fence: Callable[[], None]  # raises ClusterError if this process may not write


class Reactions:
    """Calls the hooks for each change that an informer tells of, and keeps whose pods are where."""

    def __init__(self, hooks: Hooks, *, jobs: Callable[[], Sequence[Object]]) -> None:
        """Begin without pods and journals; `jobs` lists all PipelineJobs."""
        self._hooks = hooks
        self._jobs = jobs
        self._journals: list[ChangedNames] = []
        self._bound = BoundJobs()
        self._pods_of: dict[str, set[Name]] = {}
        self._chains_of: dict[str, set[Name]] = {}

    def journal(self, standing: Iterable[Named]) -> Journal:
        """Begin to keep account of changes, for one reader, to whom all that stands is new."""
        journal = ChangedNames()
        journal.note(*standing)
        self._journals.append(journal)
        return journal

    def pods_of(self, uid: str) -> Sequence[Name]:
        """Name the pods that the job of this uid controls, in order."""
        return sorted(self._pods_of.get(uid, ()))

    def chains_of(self, uid: str) -> Sequence[Name]:
        """Name the chains that the job of this uid controls, in order."""
        return sorted(self._chains_of.get(uid, ()))

    def on_job(self, change: Change) -> None:
        """A job: it deserves a pass, and so do the one that it is a chain of, and those that it asked to make way."""
        item = change.new or change.old
        if item:
            self._hooks.enqueue(_key(item))
        for each, index in ((change.old, set.discard), (change.new, set.add)):
            owned = projection.owner(each) if each else None
            if each and owned:
                service, uid = owned
                index(self._chains_of.setdefault(uid, set()), Name(*_key(each)))
                if not self._chains_of[uid]:
                    del self._chains_of[uid]
                self._hooks.enqueue(service)
        for name in projection.asked(item) if item else ():
            self._hooks.enqueue(Key(*name.split("/")))
        self._note(names.KIND, change)

    def on_pod(self, change: Change) -> None:
        """A pod: its job deserves a pass."""
        for item, index in ((change.old, set.discard), (change.new, set.add)):
            owned = projection.owner(item) if item else None
            if item and owned:
                key, uid = owned
                index(self._pods_of.setdefault(uid, set()), Name(key.namespace, item["metadata"]["name"]))
                if not self._pods_of[uid]:
                    del self._pods_of[uid]
                self._bound.count(item, key, 1 if item is change.new else -1)
                self._hooks.enqueue(key)
        self._note("Pod", change)

    def on_furniture(self, change: Change) -> None:
        """A config map or a service: only that it went concerns its job."""
        owned = projection.owner(change.old) if change.old and not change.new else None
        if owned:
            self._hooks.enqueue(owned[0])

    def on_node(self, change: Change) -> None:
        """A node: jobs with pods on it deserve a pass."""
        if projection.matters(change.old, change.new):
            item = change.new or change.old or {}
            for key in self._bound.on(item["metadata"]["name"]):
                self._hooks.enqueue(key)
            self._note("Node", change)

    def on_profile(self, change: Change) -> None:
        """A TopologyProfile: waiting jobs may fit now."""
        self._note(names.PROFILE_KIND, change)
        self._enqueue_waiting()

    def on_priority(self, change: Change) -> None:
        """A PriorityClass: waiting jobs may come earlier, or later."""
        if projection.matters(change.old, change.new):
            self._note("PriorityClass", change)
            self._enqueue_waiting()

    def on_workload(self, change: Change) -> None:
        """A Workload of Kueue's: its job deserves a pass."""
        key = job_of(change)
        if key:
            self._hooks.enqueue(key)

    def on_kueue(self, _: Change) -> None:
        """Take up a change of what Workloads refer to, as flavors and priority classes."""
        self._enqueue_waiting()

    def _note(self, kind: str, change: Change) -> None:
        item = change.new or change.old
        if item is not None:
            for journal in self._journals:
                journal.note(named(kind, item))
            self._hooks.room_changed()

    def _enqueue_waiting(self) -> None:
        for job in self._jobs():
            if projection.waits_for_room(job):
                self._hooks.enqueue(_key(job))


def _key(job: Object) -> Key:
    return Key(job["metadata"]["namespace"], job["metadata"]["name"])
