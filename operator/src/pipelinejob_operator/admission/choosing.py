"""Which nodes a job's ranks would get: the cluster's JSON turned into what placement reckons with."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from pipelinejob.errors import NoPlacementError, SpecError
from pipelinejob.objective import Objective
from pipelinejob.placement.again import place_again
from pipelinejob.placement.devices import Rate, place_on_fastest
from pipelinejob.placement.place import place
from pipelinejob.placement.room import Demand
from pipelinejob.placement.room import Room as RankRoom
from pipelinejob.plan import Assignment, Placement
from pipelinejob.prices import Prices
from pipelinejob.quantities import Resources
from pipelinejob.spec import PipelineJobSpec
from pipelinejob.status import PipelineJobStatus
from pipelinejob.topology import NO_PROFILES, NodeInfo, Profiles, Topology
from pipelinejob_operator.admission.capacity import Claim, allocatable
from pipelinejob_operator.admission.eligibility import may_stand_on, unusable
from pipelinejob_operator.cluster import Object
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Job, Rank
from pipelinejob_operator.objects.manifests import kind_of_stage, kinds_of_stages, stage_pod
from pipelinejob_operator.objects.pods import pod_requests

Free = Mapping[str, Resources]

_PODS = "pods"


class Chooser:
    """Places jobs on the nodes of one moment; remembers what stays the same, however often it is asked about a job."""

    def __init__(self, nodes: Sequence[Object], settings: ControllerSettings, profiles: Profiles = NO_PROFILES) -> None:
        """Look at nodes; `profiles` are the cluster's TopologyProfiles."""
        self._nodes = nodes
        self._settings = settings
        self._profiles = profiles
        self._topologies: dict[str, Topology] = {}
        self._demands: dict[str, tuple[Demand, ...]] = {}

    def choose(
        self, job: Job, free: Free, *, prices: Prices | None = None, rate: Rate | None = None, move_s: float = 0.0
    ) -> Placement:
        """Give every rank a node; without prices by crossings alone, with a rate on the fastest devices that hold all.

        A gang that was broken comes back to where it stood, but for what was lost; a healthy stage moves only if that
        earns back the `move_s` that it costs. Raises NoPlacementError with one sentence on what is missing, SpecError
        if the spec names an unknown topology.
        """
        assert job.spec is not None, "only readable jobs are placed"
        infos, wanted = node_infos(self._nodes, free), job.spec.topology
        topology = self._topology(job, infos)
        before = stood(job.status)
        if before is None:
            return place_on_fastest(
                self.demands(job),
                topology,
                infos,
                rate=rate or _alike,
                scope=wanted.pipeline,
                prices=prices,
                threshold=wanted.threshold,
                objective=wanted.objective,
            )
        return place_again(
            self.demands(job),
            topology,
            infos,
            before=before,
            lost=self._lost(job, before, infos),
            reload_s=move_s,
            steps_left=max(1, job.spec.training.steps - (job.status.last_checkpoint_step or 0)),
            scope=wanted.pipeline,
            prices=prices,
            threshold=wanted.threshold,
            objective=wanted.objective,
        )

    def fits(self, job: Job, free: Free) -> tuple[Claim, ...] | None:
        """Give what the job would take of which node, None if it does not fit; tightly, and whatever its steps cost."""
        assert job.spec is not None, "only readable jobs are placed"
        demands, infos, wanted = self.demands(job), node_infos(self._nodes, free), job.spec.topology
        if not _may_fit(demands, infos):
            return None
        try:
            topology = self._topology(job, infos)
            placed = place(demands, topology, infos, scope=wanted.pipeline, objective=Objective.PACK)
        except (NoPlacementError, SpecError):
            return None
        asked = {
            Rank(each.replica, each.stage): {name: Fraction(amount) for name, amount in each.requests.items()}
            for each in demands
        }
        return tuple(Claim(each.node, asked[Rank(each.replica, each.stage)]) for each in placed.assignments)

    def _topology(self, job: Job, infos: Sequence[NodeInfo]) -> Topology:
        assert job.spec is not None, "only readable jobs are placed"
        if job.uid not in self._topologies:
            self._topologies[job.uid] = Topology.from_spec(job.spec.topology, infos, self._profiles)
        return self._topologies[job.uid]

    def _lost(self, job: Job, before: Placement, infos: Sequence[NodeInfo]) -> frozenset[str]:
        """Give the nodes that cannot take back what stood there: they are gone, unusable, or others' by now."""
        room, lost = RankRoom(infos), set()
        demands = {Rank(each.replica, each.stage): each for each in self.demands(job)}
        for each in before.assignments:
            demand = demands.get(Rank(each.replica, each.stage))
            if demand is not None and room.fits(demand, each.node):
                room.take(demand, each.node)
            else:
                lost.add(each.node)
        return frozenset(lost)

    def demands(self, job: Job) -> tuple[Demand, ...]:
        """Give what each rank asks for, and where its pod may go."""
        assert job.spec is not None, "only readable jobs are placed"
        if job.uid not in self._demands:
            self._demands[job.uid] = _demands(job, job.spec, self._nodes, self._settings)
        return self._demands[job.uid]


def _may_fit(demands: Sequence[Demand], infos: Sequence[NodeInfo]) -> bool:
    """Look whether there are places enough at all, which costs far less than to say what is missing."""
    first = demands[0]
    if not all(each.is_like(first) for each in demands):
        return True
    return sum(RankRoom(infos).counts(first, most=len(demands)).values()) >= len(demands)


def stood(status: PipelineJobStatus) -> Placement | None:
    """Give where a gang stood before it broke, as far as it is to come back there; None if it begins anew."""
    assignments = tuple(
        Assignment(replica=each.replica, stage=each.stage, node=each.last_node, path=())
        for each in status.stages
        if each.last_node is not None
    )
    return Placement(assignments=assignments, crossings={}) if assignments else None


def eligible(infos: Sequence[NodeInfo], demands: Sequence[Demand]) -> list[NodeInfo]:
    """Give the nodes as they are, but those unusable that none of the ranks may go to."""
    if any(each.nodes is None for each in demands):
        return list(infos)
    allowed = frozenset[str]().union(*(each.nodes or () for each in demands))
    return [info if info.name in allowed else replace(info, unusable="may not be used") for info in infos]


def _alike(_: NodeInfo) -> float:
    return 1.0


def node_infos(nodes: Sequence[Object], free: Free) -> list[NodeInfo]:
    """Give nodes as placement sees them."""
    return [_info(node, free) for node in nodes]


def _info(node: Object, free: Free) -> NodeInfo:
    metadata = node["metadata"]
    left = dict(free[metadata["name"]])
    if _PODS not in allocatable(node):  # it states no limit
        left[_PODS] = Fraction(10**6)
    return NodeInfo(name=metadata["name"], labels=metadata.get("labels") or {}, free=left, unusable=unusable(node))


def _demands(
    job: Job, spec: PipelineJobSpec, nodes: Sequence[Object], settings: ControllerSettings
) -> tuple[Demand, ...]:
    # Replicas of a stage are alike, and so are all stages whose template nothing changes: each kind is matched once.
    kinds = {stage: _stage_demand(job, spec, stage, nodes, settings) for stage in kinds_of_stages(spec)}
    return tuple(
        Demand(replica=rank.replica, stage=rank.stage, requests=requests, nodes=eligible)
        for rank in job.ranks
        for requests, eligible in (kinds[kind_of_stage(spec, rank.stage)],)
    )


def _stage_demand(
    job: Job, spec: PipelineJobSpec, stage: int, nodes: Sequence[Object], settings: ControllerSettings
) -> tuple[Resources, frozenset[str] | None]:
    pod = stage_pod(job, spec, Rank(0, stage), attempt=0, settings=settings)
    eligible = frozenset(node["metadata"]["name"] for node in nodes if may_stand_on(pod, node))
    return pod_requests(pod), None if len(eligible) == len(nodes) else eligible
