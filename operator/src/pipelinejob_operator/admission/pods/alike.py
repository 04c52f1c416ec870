"""What admission made of pods of late, for others like them: one dry run tells it of all jobs made from one template.

Two pods are alike if they are rendered the same but for their job's name and uid, in one
namespace. That admission treats such pods alike is taken for granted for some seconds, and no
longer than until a pod shows otherwise: a gang's own pods are looked at again before they are let
go. Only an answer that let the pod in is kept.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from pipelinejob_operator.admission.pods.admitted import AdmittedPod, AdmittedPods, decisive, named
from pipelinejob_operator.cluster import Key, Object
from pipelinejob_operator.objects.job import Job
from pipelinejob_operator.objects.per_spec import spec_text

KEEP_S = 10.0
_MOST = 1024  # kinds of pods
_ANY = "any"


@dataclass(frozen=True, slots=True)
class _Answer:
    at: datetime
    admitted: AdmittedPod


class AlikePods:
    """Answers of the API server by namespace, then by what was asked."""

    def __init__(self, admitted: AdmittedPods) -> None:
        self._admitted = admitted
        self._answers: dict[tuple[str, str], _Answer] = {}
        self._names: dict[tuple[str, int, str], str] = {}  # by namespace, kind and spec

    def get(self, job: Job, kind: int, now: datetime) -> AdmittedPod | None:
        """Return a job's pod as admission would make it, going by another's; None if there was none of late."""
        found = self._answers.get(self._name(job, kind))
        if found is None or not 0 <= (now - found.at).total_seconds() < KEEP_S:
            return None
        return named(found.admitted, job)

    def keep(self, job: Job, kind: int, answer: AdmittedPod, now: datetime) -> None:
        """Keep an answer for others, if nothing in it is this job's alone."""
        if _has_claims(answer.pod) or self._is_personal(job, kind, answer.pod):
            return
        if len(self._answers) >= _MOST:
            self._answers.clear()
        kept = replace(answer, pod={**answer.pod, "spec": decisive(answer.pod["spec"])})
        self._answers[self._name(job, kind)] = _Answer(now, kept)

    def forget(self, namespace: str) -> None:
        """Let go of all answers about a namespace: admission does something else there now."""
        for name in [name for name in self._answers if name[0] == namespace]:
            del self._answers[name]

    def _name(self, job: Job, kind: int) -> tuple[str, str]:
        """What a job's pod has in common with all that are alike; rendering it costs more than all else here."""
        assert job.spec is not None, "only readable jobs have pods"
        template = (job.key.namespace, kind, spec_text(job.spec))
        if template not in self._names:
            if len(self._names) >= _MOST:
                self._names.clear()
            anybodys = replace(job, key=Key(job.key.namespace, _ANY), uid=_ANY)
            self._names[template] = json.dumps(self._admitted.rendered(anybodys, kind), sort_keys=True)
        return job.key.namespace, self._names[template]

    def _is_personal(self, job: Job, kind: int, pod: Object) -> bool:
        """Whether admission wrote the job's name or uid where decisions go by it."""
        own = self._admitted.rendered(job, kind)
        added = _words(decisive(pod["spec"])) - _words(decisive(own["spec"]))
        return bool(added & {job.key.name, job.uid, own["metadata"]["name"]})


def _has_claims(pod: Object) -> bool:
    """Whether it mounts what may be bound to a node any time."""
    return any("persistentVolumeClaim" in volume for volume in pod["spec"].get("volumes") or ())


def _words(value: Any) -> set[str]:
    return set(_texts(value))


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for each in value.values():
                yield from _texts(each)
        case list() | tuple():
            for each in value:
                yield from _texts(each)
