"""What a job's pods are once they are admitted: what webhooks, policies, RuntimeClasses and LimitRanges make of them.

The API server tells it of a dry run, before a job asks for room, and of the pods themselves. Where
it told nothing, a pod counts as it is rendered.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from pipelinejob.base import names
from pipelinejob_operator.cluster import Key, Object
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Job, Rank
from pipelinejob_operator.objects.making.manifests import kind_of_stage, stage_pod
from pipelinejob_operator.objects.per_spec import PerSpec
from pipelinejob_operator.objects.requests import pod_requests

NodeSelector = Mapping[str, Any]

_SPEC_FIELDS = frozenset(
    ("nodeSelector", "affinity", "tolerations", "topologySpreadConstraints", "overhead", "resources", "hostNetwork")
)
_CONTAINER_FIELDS = frozenset(("name", "resources", "restartPolicy", "ports"))
_MOST_SPECS = 4096


class Decisive(dict[str, Any]):
    """The part of a pod's spec that says where it may stand and what it takes; jobs that are alike share one."""

    @cached_property
    def placing(self) -> Hashable:
        """What decides about a pod's nodes, were it alone and without volumes."""
        wishes = [self.get(field) for field in ("nodeSelector", "affinity", "tolerations")]
        return str((wishes, sorted(pod_requests({"spec": self}).items())))


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmittedPod:
    """A pod as the scheduler sees it, and where its bound volumes can be reached."""

    pod: Object
    volumes: tuple[NodeSelector, ...] = ()
    missing_claims: tuple[str, ...] = ()


@dataclass(slots=True)
class _Known:
    likeness: Hashable
    attempt: int = -1  # for which it was asked
    version: int = 0  # of where the pods may stand
    revision: int = 0  # of the pods
    refusals: int = 0  # in a row
    pods: dict[int, AdmittedPod] = field(default_factory=dict)


class AdmittedPods:
    """The pods of all jobs, one for each kind of stage (`manifests.kind_of_stage`)."""

    def __init__(self, settings: ControllerSettings) -> None:
        self._settings = settings
        self._known: dict[Key, _Known] = {}
        self._specs: dict[str, Decisive] = {}
        self._unasked = PerSpec[dict[Hashable, AdmittedPod]](lambda _: {})  # by kind

    def of(self, job: Job, kind: int) -> AdmittedPod:
        """Return the pod of a kind of stage."""
        known = self._known.get(job.key)
        if known is not None and known.likeness == _likeness(job) and kind in known.pods:
            return known.pods[kind]
        return self._as_rendered(job, kind)

    def _as_rendered(self, job: Job, kind: int) -> AdmittedPod:
        """Return a job's pod as we make it, as far as decisions go by it: of jobs with one spec it is rendered once."""
        assert job.spec is not None, "only readable jobs have pods"
        known, alike = self._unasked(job.spec), (kind, job.chain_of)
        if alike not in known:
            known[alike] = self._slim(AdmittedPod(pod=self.rendered(job, kind)))
        return named(known[alike], job)

    def of_rank(self, job: Job, rank: Rank) -> AdmittedPod:
        """Return a rank's pod: that of its kind, with its own labels."""
        assert job.spec is not None, "only readable jobs have pods"
        like = self.of(job, kind_of_stage(job.spec, rank.stage))
        metadata = like.pod["metadata"]
        own = {names.LABEL_STAGE: str(rank.stage), names.LABEL_REPLICA: str(rank.replica)}
        labels = {**(metadata.get("labels") or {}), **own}
        return replace(like, pod={**like.pod, "metadata": {**metadata, "labels": labels}})

    def rendered(self, job: Job, kind: int) -> Object:
        """Return the pod of a kind of stage as we make it."""
        assert job.spec is not None, "only readable jobs have pods"
        stages = range(job.spec.parallelism.pipeline or 1)
        stage = next((each for each in stages if kind_of_stage(job.spec, each) == kind), kind)
        return stage_pod(job, job.spec, Rank(0, stage), attempt=0, settings=self._settings)

    def kinds_to_ask(self, job: Job) -> Sequence[int]:
        """Name the kinds that the API server was not asked about for the present attempt."""
        assert job.spec is not None, "only readable jobs have pods"
        known = self._known.get(job.key)
        is_known = known is not None and known.likeness == _likeness(job) and known.attempt == job.status.attempt
        return () if is_known else sorted({kind_of_stage(job.spec, rank.stage) for rank in job.ranks})

    def revision(self, job: Job) -> int:
        """A number that changes with the pods, and with the volumes that they need."""
        known = self._known.get(job.key)
        return known.revision if known is not None and known.likeness == _likeness(job) else 0

    def version(self, job: Job) -> int:
        """A number that changes with where the pods may stand."""
        known = self._known.get(job.key)
        return known.version if known is not None and known.likeness == _likeness(job) else 0

    def learn(self, job: Job, pods: Mapping[int, AdmittedPod]) -> None:
        """Take up pods as they were admitted; what was known of other kinds stays.

        While a claim is missing, they are asked about again: it may be made any time.
        """
        known = self._of(job)
        known.refusals = 0
        known.attempt = -1 if any(pod.missing_claims for pod in pods.values()) else job.status.attempt
        # Only what changes where they may stand costs a plan made anew.
        if any(placing(self.of(job, kind)) != placing(pod) for kind, pod in pods.items()):
            known.version += 1
        if any(kind not in known.pods or _counting(known.pods[kind]) != _counting(pod) for kind, pod in pods.items()):
            known.revision += 1
        known.pods.update({kind: self._slim(pod) for kind, pod in pods.items()})

    def _slim(self, admitted: AdmittedPod) -> AdmittedPod:
        """Keep what decisions go by; pods of most jobs share that, and thousands of jobs may wait."""
        spec, labels = decisive(admitted.pod["spec"]), admitted.pod["metadata"].get("labels") or {}
        if spec is not admitted.pod["spec"]:
            spec = self._specs.setdefault(repr(spec), spec)
        if len(self._specs) > _MOST_SPECS:
            self._specs.clear()
        metadata = {"namespace": admitted.pod["metadata"].get("namespace"), "labels": labels}
        return replace(admitted, pod={"metadata": metadata, "spec": spec})

    def refuse(self, job: Job) -> int:
        """Count that the cluster lets none of the pods in; give how often in a row."""
        known = self._of(job)
        known.refusals += 1
        return known.refusals

    def _of(self, job: Job) -> _Known:
        known = self._known.get(job.key)
        if known is None or known.likeness != _likeness(job):
            known = self._known[job.key] = _Known(_likeness(job))
        return known

    def forget(self, key: Key) -> None:
        """Let go of a job that is no more."""
        self._known.pop(key, None)


def named(admitted: AdmittedPod, job: Job) -> AdmittedPod:
    """Return a pod of a job that is another's, but for the job's name."""
    labels = {**(admitted.pod["metadata"].get("labels") or {}), names.LABEL_JOB: job.key.name}
    pod = {**admitted.pod, "metadata": {"namespace": job.key.namespace, "labels": labels}}
    return replace(admitted, pod=pod)


def decisive(spec: Object) -> Decisive:
    """Return the part of a pod's spec that says where it may stand and what it takes."""
    if isinstance(spec, Decisive):
        return spec
    kept = {key: value for key, value in spec.items() if key in _SPEC_FIELDS}
    for field_name in ("containers", "initContainers"):
        if spec.get(field_name):
            kept[field_name] = [
                {key: value for key, value in container.items() if key in _CONTAINER_FIELDS}
                for container in spec[field_name]
            ]
    claims = [volume for volume in spec.get("volumes") or () if "persistentVolumeClaim" in volume]
    return Decisive({**kept, "volumes": claims} if claims else kept)


def placing(asked: AdmittedPod) -> Hashable:
    """Return what decides about a pod's nodes, were it alone."""
    return decisive(asked.pod["spec"]).placing, str(asked.volumes)


def _counting(admitted: AdmittedPod) -> Hashable:
    """All of a pod that decisions go by: its uid and the like differ each time that the API server is asked."""
    labels, spread = admitted.pod["metadata"].get("labels"), admitted.pod["spec"].get("topologySpreadConstraints")
    return placing(admitted), admitted.missing_claims, str((labels, spread))


def _likeness(job: Job) -> Hashable:
    return job.uid, job.generation, job.flavors, job.status.chosen
