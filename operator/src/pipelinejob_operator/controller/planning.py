"""Plans of jobs: drafted while they wait, made again for the place that they got, and kept while both stay the same.

A draft follows from the spec, its costs, and what the cluster consists of; the final plan from the draft and the nodes
that the job's status names. Finding one may take seconds, so it is prepared in a thread; losing one loses nothing.
"""

from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from pipelinejob import hardware as hardware_data
from pipelinejob.chosen import Chosen
from pipelinejob.cost import Profile
from pipelinejob.errors import NoPlacementError, SpecError
from pipelinejob.hardware import Hardware, HardwareError
from pipelinejob.placement.room import Demand
from pipelinejob.plan import Placement, Plan
from pipelinejob.planner import refuse_unrunnable
from pipelinejob.quantities import Resources
from pipelinejob.search.best import search
from pipelinejob.site import Draft, Site
from pipelinejob.site_choice import place_candidates
from pipelinejob.spec import Parallelism, PipelineJobSpec
from pipelinejob.topology import NodeInfo, Profiles, Topology
from pipelinejob_operator.admission.capacity import belongs_to_node, standing_room
from pipelinejob_operator.admission.choosing import Chooser, eligible, node_infos
from pipelinejob_operator.cluster import Cluster, Key, Object
from pipelinejob_operator.controller.costs import Costs
from pipelinejob_operator.controller.measurements import placement_of
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Job
from pipelinejob_operator.objects.topology_profiles import profiles_of


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
        nodes = tuple((each.name, tuple(sorted(each.labels.items())), _devices(each)) for each in self.infos)
        return hash((nodes, str(sorted(self.profiles.items(), key=lambda item: item[0]))))


class Grounds:
    """What a cluster consists of, looked at anew only if that has changed."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._last: tuple[object, Ground] | None = None

    def now(self) -> Ground:
        """Give the ground as it is now."""
        staying = tuple(pod for pod in self._cluster.all_pods() if belongs_to_node(pod))
        seen = (tuple(self._cluster.nodes()), staying, tuple(self._cluster.topology_profiles()))
        if self._last is None or self._last[0] != seen:
            self._last = (seen, Ground.of(self._cluster))
        return self._last[1]


def _devices(node: NodeInfo) -> Hashable:
    """Give what a node has to compute on: extended resources, such as `nvidia.com/gpu`."""
    return tuple(sorted((name, amount) for name, amount in node.free.items() if "/" in name))


def is_priced(draft: Draft) -> bool:
    """Say whether the draft's prices are at hand."""
    return "prices" in vars(draft)


class Planner:
    """The plans of all jobs."""

    def __init__(
        self,
        settings: ControllerSettings,
        *,
        costs: Costs,
        hardware: Hardware | None = None,
    ) -> None:
        self._settings = settings
        self._costs = costs
        self._hardware = hardware or hardware_data.default()
        self._choices: dict[Key, tuple[Hashable, Chosen | SpecError | NoPlacementError]] = {}
        self._drafts: dict[Key, tuple[Hashable, Draft | SpecError | NoPlacementError]] = {}
        self._placed: dict[Key, tuple[Hashable, Plan | SpecError]] = {}

    def choose(self, job: Job, ground: Ground) -> Chosen:
        """Choose what the spec leaves open: what is quickest where it would stand, were all work on the cluster done.

        Raises SpecError if nothing can be planned, NoPlacementError if nothing of it finds a place. May take ten
        seconds: to be called in a thread.
        """
        wanted = job.uid, job.generation, self._costs.version(job), ground.likeness
        if not _has(self._choices, job.key, wanted):
            try:
                self._choices[job.key] = (wanted, self._choose(job, ground))
            except (SpecError, NoPlacementError) as error:
                self._choices[job.key] = (wanted, error)
        found = self._choices[job.key][1]
        if isinstance(found, Chosen):
            return found
        raise found

    def knows(self, job: Job, ground: Ground) -> bool:
        """Say whether the job's plan is at hand: for its place, or the draft where it has none."""
        if job.is_placed:
            return _has(self._placed, job.key, self._at(job))
        return _has(self._drafts, job.key, self._of(job, ground))

    def prepare(self, job: Job, ground: Ground, placement: Placement | None = None) -> None:
        """Bring the job's plan to hand; in a thread. Its status tells its place, if not given."""
        if self.knows(job, ground):
            return
        try:
            draft = self.draft(job, ground)
            if job.is_placed:
                self._placed[job.key] = (self._at(job), draft.placed(placement or placement_of(job.status)).plan)
        except SpecError as error:
            if job.is_placed:
                self._placed[job.key] = (self._at(job), error)
        except NoPlacementError:
            pass  # it is told when the job asks for room

    def draft(self, job: Job, ground: Ground) -> Draft:
        """Give the plan before there is a place.

        Raises SpecError if there can be none, NoPlacementError if what is known of the cluster does not allow for one.
        """
        wanted = self._of(job, ground)
        if not _has(self._drafts, job.key, wanted):
            try:
                self._drafts[job.key] = (wanted, self._draft(job, ground))
            except (SpecError, NoPlacementError) as error:
                self._drafts[job.key] = (wanted, error)
        found = self._drafts[job.key][1]
        if isinstance(found, Draft):
            return found
        raise found

    def price(self, job: Job, ground: Ground) -> None:
        """Bring the draft's prices to hand; in a thread, for they take long. A job that only waits needs none."""
        _ = self.draft(job, ground).prices

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
        self._choices.pop(key, None)
        self._drafts.pop(key, None)
        self._placed.pop(key, None)

    def _choose(self, job: Job, ground: Ground) -> Chosen:
        assert job.spec is not None, "only readable jobs are planned"
        spec = _runnable(job.spec)
        alone = spec.model_copy(update={"parallelism": Parallelism(pipeline=1)})  # where any of its stages may stand
        site, profile = self._site(replace(job, spec=alone), ground), self._costs.profile(job)
        pool = site.pool(spec)
        if not pool.groups:
            raise NoPlacementError("no node that it may use has a device to compute on; add some, or make one ready")
        found = search(spec, pool, hardware=self._hardware, profile=profile)
        placed, misplaced = place_candidates(
            site,
            found.alternatives,
            lambda each: self._demands(replace(job, spec=each), ground),
            namespace=job.key.namespace,
            name=job.key.name,
            profile=profile,
        )
        if not placed:
            raise NoPlacementError(misplaced[0].why)
        return placed[0].candidate.chosen

    def _of(self, job: Job, ground: Ground) -> Hashable:
        return job.uid, job.generation, job.flavors, job.status.chosen, self._costs.version(job), ground.likeness

    def _at(self, job: Job) -> Hashable:
        nodes = tuple(stage.node for stage in job.status.stages)
        return job.uid, job.generation, self._costs.version(job), nodes

    def _demands(self, job: Job, ground: Ground) -> tuple[Demand, ...]:
        return Chooser(ground.nodes, self._settings).demands(job)

    def _site(self, job: Job, ground: Ground) -> Site:
        """Give the nodes that the job may use."""
        assert job.spec is not None, "only readable jobs are planned"
        infos = eligible(ground.infos, self._demands(job, ground))
        try:
            topology = Topology.from_spec(job.spec.topology, infos, ground.profiles)
        except SpecError as error:  # there may be such a TopologyProfile yet
            raise NoPlacementError(str(error)) from error
        return Site.of(infos, topology, hardware=self._hardware)

    def _draft(self, job: Job, ground: Ground) -> Draft:
        spec = job.spec
        assert spec is not None, "only readable jobs are planned"
        refuse_unrunnable(spec)
        site, profile = self._site(job, ground), self._costs.profile(job)
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


def _runnable(spec: PipelineJobSpec) -> PipelineJobSpec:
    """Leave to be chosen only what the trainer can run."""
    if spec.parallelism.tensor is not None:
        refuse_unrunnable(spec)
        return spec
    return spec.model_copy(update={"parallelism": spec.parallelism.model_copy(update={"tensor": 1})})


def _has(known: Mapping[Key, tuple[Hashable, Any]], key: Key, wanted: Hashable) -> bool:
    return key in known and known[key][0] == wanted
