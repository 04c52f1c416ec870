"""Which nodes a job's ranks would get: the cluster's JSON turned into what placement reckons with."""

from collections.abc import Mapping, Sequence
from fractions import Fraction

from pipelinejob.placement import place
from pipelinejob.placement_room import Demand
from pipelinejob.plan import Placement
from pipelinejob.quantities import Resources
from pipelinejob.spec import PipelineJobSpec
from pipelinejob.topology import NodeInfo, Topology
from pipelinejob_operator.admission.capacity import allocatable
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
    infos = node_infos(nodes, free)
    demands = _demands(job, spec, nodes, settings)
    return place(demands, Topology.from_spec(spec.topology, infos), infos, scope=spec.topology.pipeline)


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
