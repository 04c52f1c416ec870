"""Which nodes a job's ranks would get: the cluster's JSON turned into what placement reckons with."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from pipelinejob.errors import NoPlacementError, SpecError
from pipelinejob.placement import place
from pipelinejob.placement_room import Demand
from pipelinejob.plan import Placement
from pipelinejob.quantities import Resources, resources
from pipelinejob.spec import PipelineJobSpec
from pipelinejob.topology import NodeInfo, Topology
from pipelinejob_operator.admission.capacity import Claim, allocatable
from pipelinejob_operator.admission.eligibility import may_stand_on, unusable
from pipelinejob_operator.cluster import Object
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Job, Rank
from pipelinejob_operator.objects.manifests import stage_pod
from pipelinejob_operator.objects.pods import pod_requests

Free = Mapping[str, Resources]
_PODS = "pods"


def choose_nodes(
    job: Job, spec: PipelineJobSpec, *, nodes: Sequence[Object], free: Free, settings: ControllerSettings
) -> Placement:
    """Give every rank a node.

    Raises NoPlacementError with one sentence on what is missing, SpecError if the spec names an unknown topology.
    """
    return Chooser(nodes, settings).choose(replace(job, spec=spec), free)


class Chooser:
    """Places jobs on the nodes of one moment; remembers what stays the same, however often it is asked about a job."""

    def __init__(self, nodes: Sequence[Object], settings: ControllerSettings) -> None:
        self._nodes = nodes
        self._settings = settings
        self._demands: dict[str, tuple[Demand, ...]] = {}

    def choose(self, job: Job, free: Free) -> Placement:
        """Give every rank a node.

        Raises NoPlacementError with one sentence on what is missing, SpecError if the spec names an unknown topology.
        """
        spec = job.spec
        assert spec is not None, "only readable jobs are placed"
        infos = node_infos(self._nodes, free)
        topology = Topology.from_spec(spec.topology, infos)
        return place(self.demands(job), topology, infos, scope=spec.topology.pipeline)

    def fits(self, job: Job, free: Free) -> tuple[Claim, ...] | None:
        """Give what the job would take of which node, None if it does not fit."""
        try:
            placed = self.choose(job, free)
        except (NoPlacementError, SpecError):
            return None
        asked = {Rank(each.replica, each.stage): resources(each.requests) for each in self.demands(job)}
        return tuple(Claim(each.node, asked[Rank(each.replica, each.stage)]) for each in placed.assignments)

    def demands(self, job: Job) -> tuple[Demand, ...]:
        """Give what each rank asks for, and where its pod may go."""
        assert job.spec is not None, "only readable jobs are placed"
        if job.uid not in self._demands:
            self._demands[job.uid] = _demands(job, job.spec, self._nodes, self._settings)
        return self._demands[job.uid]


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
    # Replicas of a stage are alike, so each stage is rendered and matched once.
    stages = [_stage_demand(job, spec, stage, nodes, settings) for stage in range(spec.parallelism.pipeline)]
    return tuple(
        Demand(replica=rank.replica, stage=rank.stage, requests=requests, nodes=eligible)
        for rank in job.ranks
        for requests, eligible in (stages[rank.stage],)
    )


def _stage_demand(
    job: Job, spec: PipelineJobSpec, stage: int, nodes: Sequence[Object], settings: ControllerSettings
) -> tuple[Resources, frozenset[str] | None]:
    pod = stage_pod(job, spec, Rank(0, stage), attempt=0, settings=settings)
    eligible = frozenset(node["metadata"]["name"] for node in nodes if may_stand_on(pod, node))
    return pod_requests(pod), None if len(eligible) == len(nodes) else eligible
