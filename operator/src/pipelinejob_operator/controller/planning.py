"""Plans of jobs: drafted while they wait, made again for the place that they got, and kept while both stay the same.

A draft follows from the spec, its costs, and what the cluster consists of; the final plan from the draft and the nodes
that the job's status names. Finding one may take seconds, so it is prepared in a thread; losing one loses nothing.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from pipelinejob import hardware as hardware_data
from pipelinejob.cost import Profile
from pipelinejob.errors import NoPlacementError, SpecError
from pipelinejob.hardware import Hardware, HardwareError
from pipelinejob.plan import Placement, Plan
from pipelinejob.planner import refuse_unrunnable
from pipelinejob.quantities import Resources
from pipelinejob.site import Draft, Site
from pipelinejob.spec import PipelineJobSpec
from pipelinejob.topology import NodeInfo, Profiles, Topology
from pipelinejob_operator.admission.capacity import standing_room
from pipelinejob_operator.admission.choosing import Chooser, eligible, node_infos
from pipelinejob_operator.cluster import Cluster, Key, Object
from pipelinejob_operator.controller.measurements import placement_of
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Job
from pipelinejob_operator.objects.topology_profiles import profiles_of

# Costs measured where the job will run; None: derive them from the model's sizes.
ProfileSource = Callable[[PipelineJobSpec], Profile | None]


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What the cluster consists of, whatever runs on it."""

    nodes: Sequence[Object]
    room: Mapping[str, Resources]  # of the empty cluster
    profiles: Profiles = field(default_factory=dict)

    @classmethod
    def of(cls, cluster: Cluster) -> "Ground":
        """Look at a cluster now."""
        nodes = cluster.nodes()
        room = standing_room(nodes, cluster.all_pods())
        return cls(nodes=nodes, room=room, profiles=profiles_of(cluster.topology_profiles()))

    @cached_property
    def infos(self) -> list[NodeInfo]:
        """Give the nodes as placement sees them."""
        return node_infos(self.nodes, self.room)

    @cached_property
    def likeness(self) -> Hashable:
        """Give what two grounds have in common that lead to the same drafts: names, labels and profiles."""
        labels = tuple((each.name, tuple(sorted(each.labels.items()))) for each in self.infos)
        return hash((labels, tuple(sorted(self.profiles.items(), key=lambda item: item[0]))))


class Planner:
    """The plans of all jobs."""

    def __init__(
        self,
        settings: ControllerSettings,
        *,
        hardware: Hardware | None = None,
        profile_source: ProfileSource | None = None,
    ) -> None:
        self._settings = settings
        self._hardware = hardware or hardware_data.default()
        self._profile_source = profile_source
        self._drafts: dict[Key, tuple[Hashable, Draft | SpecError | NoPlacementError]] = {}
        self._placed: dict[Key, tuple[Hashable, Plan | SpecError]] = {}

    def knows(self, job: Job, ground: Ground) -> bool:
        """Say whether the job's plan is at hand: for its place, or the draft where it has none."""
        if job.is_placed:
            return _has(self._placed, job.key, _at(job))
        return _has(self._drafts, job.key, _of(job, ground))

    def prepare(self, job: Job, ground: Ground, placement: Placement | None = None) -> None:
        """Bring the job's plan to hand; in a thread. Its status tells its place, if not given."""
        if self.knows(job, ground):
            return
        try:
            draft = self.draft(job, ground)
            if job.is_placed:
                self._placed[job.key] = (_at(job), draft.placed(placement or placement_of(job.status)).plan)
        except SpecError as error:
            if job.is_placed:
                self._placed[job.key] = (_at(job), error)
        except NoPlacementError:
            pass  # it is told when the job asks for room

    def draft(self, job: Job, ground: Ground) -> Draft:
        """Give the plan before there is a place.

        Raises SpecError if there can be none, NoPlacementError if what is known of the cluster does not allow for one.
        """
        wanted = _of(job, ground)
        if not _has(self._drafts, job.key, wanted):
            try:
                draft = self._draft(job, ground)
                _ = draft.prices  # which take the longest, and stand in the draft from now on
                self._drafts[job.key] = (wanted, draft)
            except (SpecError, NoPlacementError) as error:
                self._drafts[job.key] = (wanted, error)
        found = self._drafts[job.key][1]
        if isinstance(found, Draft):
            return found
        raise found

    def plan(self, job: Job, ground: Ground) -> Plan:
        """Give the plan for the place that the job's status names, else the draft's.

        Raises what `draft` raises.
        """
        if not job.is_placed:
            return self.draft(job, ground).plan
        self.prepare(job, ground)
        found = self._placed[job.key][1]
        if isinstance(found, SpecError):
            raise found
        return found

    def forget(self, key: Key) -> None:
        """Let go of a job that is no more."""
        self._drafts.pop(key, None)
        self._placed.pop(key, None)

    def _draft(self, job: Job, ground: Ground) -> Draft:
        spec = job.spec
        assert spec is not None, "only readable jobs are planned"
        refuse_unrunnable(spec)
        profile = self._profile_source(spec) if self._profile_source else None
        infos = eligible(ground.infos, Chooser(ground.nodes, self._settings).demands(job))
        site = Site.of(infos, Topology.from_spec(spec.topology, infos, ground.profiles), hardware=self._hardware)
        try:
            return self._first_that_fits(job, spec, site, profile)
        except HardwareError as error:  # the administrator's to mend, not the job's end
            raise NoPlacementError(str(error)) from error

    @staticmethod
    def _first_that_fits(job: Job, spec: PipelineJobSpec, site: Site, profile: Profile | None) -> Draft:
        """Draft for the commonest device; where its memory is too small, for another."""
        try:
            return site.draft(spec, namespace=job.key.namespace, name=job.key.name, profile=profile)
        except SpecError:
            for group in site.pool(spec).groups:
                alone = replace(site, nodes=[n for n in site.nodes if site.device_of(spec, n) == group.device])
                with suppress(SpecError):
                    return alone.draft(spec, namespace=job.key.namespace, name=job.key.name, profile=profile)
            raise


def _of(job: Job, ground: Ground) -> Hashable:
    return job.uid, job.generation, ground.likeness


def _at(job: Job) -> Hashable:
    return job.uid, job.generation, tuple(stage.node for stage in job.status.stages)


def _has(known: Mapping[Key, tuple[Hashable, Any]], key: Key, wanted: Hashable) -> bool:
    return key in known and known[key][0] == wanted
