"""Measured costs that jobs name: their config maps, looked at before a plan is made, and what was found there."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from pipelinejob.base.errors import NoPlacementError, SpecError
from pipelinejob.costs.layers import Profile
from pipelinejob.planning.planner import check_covers
from pipelinejob.spec.job import CostsReference, PipelineJobSpec
from pipelinejob_operator.cluster import Cluster, ForbiddenError, Key, Object
from pipelinejob_operator.objects.costs import CostsError, costs_in
from pipelinejob_operator.objects.job import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What a config map held when it was last looked at; `version` tells whether that is still so."""

    version: Hashable
    profile: Profile | None = None
    problem: str = ""


_NOTHING = _Found(version=None)

# Gives costs that were measured where the job will run; None: derive them from the model's sizes.
ProfileSource = Callable[[PipelineJobSpec], Profile | None]


class Costs:
    """The measured costs of all jobs: those `given` for all, else those that each names. Losing it loses nothing."""

    def __init__(self, cluster: Cluster, *, given: ProfileSource | None = None) -> None:
        self._cluster = cluster
        self._given = given
        self._found: dict[Key, _Found] = {}

    async def look(self, job: Job) -> None:
        """Look at the config map that a job names, if it names one.

        Raises ClusterError if the cluster does not answer.
        """
        reference = job.spec.costs if job.spec is not None else None
        if job.spec is None or reference is None or self._given is not None:
            self._found.pop(job.key, None)
            return
        try:
            config_map = await self._cluster.look_up("ConfigMap", job.key.namespace, reference.config_map)
        except ForbiddenError as error:
            problem = f"spec.costs: config map {reference.config_map} may not be read by the operator: {error}"
            self._found[job.key] = _Found(version=(job.generation, problem), problem=problem)
            return
        metadata = (config_map or {}).get("metadata", {})
        version = (job.generation, metadata.get("uid"), metadata.get("resourceVersion"))
        if self.version(job) == version:
            return
        self._found[job.key] = _read(job.spec, reference, config_map, version)

    def version(self, job: Job) -> Hashable:
        """Return what changes whenever the costs do."""
        return self._found.get(job.key, _NOTHING).version

    def profile(self, job: Job) -> Profile | None:
        """Return a job's costs; None if it names none.

        Raises NoPlacementError where they cannot be had: the job waits until somebody writes them.
        """
        if self._given is not None and job.spec is not None:
            return self._given(job.spec)
        found = self._found.get(job.key, _NOTHING)
        if found.problem:
            raise NoPlacementError(found.problem)
        return found.profile

    def forget(self, key: Key) -> None:
        """Let go of a job that is no more."""
        self._found.pop(key, None)


def _read(spec: PipelineJobSpec, reference: CostsReference, config_map: Object | None, version: Hashable) -> _Found:
    try:
        profile = costs_in(config_map, reference)
        check_covers(profile, spec)
    except CostsError as error:
        return _Found(version=version, problem=str(error))
    except SpecError as error:  # somebody may measure the right thing yet
        return _Found(version=version, problem=f"spec.costs: config map {reference.config_map}: {error}")
    return _Found(version=version, profile=profile)
