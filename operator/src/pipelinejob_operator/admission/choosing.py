"""Which nodes a job's ranks would get: the cluster's JSON turned into what placement reckons with."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from enum import Enum, auto
from fractions import Fraction

from pipelinejob.base.errors import NoPlacementError, SpecError
from pipelinejob.base.quantities import Resources
from pipelinejob.contract.plan import Assignment, Placement
from pipelinejob.fabric.topology import NO_PROFILES, NodeInfo, Profiles, Topology
from pipelinejob.placement.capacity import Capacity, Demand, Number, kinds_of
from pipelinejob.placement.fastest_devices import Rate, place_on_fastest
from pipelinejob.placement.place import place
from pipelinejob.placement.prices import Prices
from pipelinejob.placement.repair import come_back, repair
from pipelinejob.spec.network.objective import Objective
from pipelinejob_operator.admission.capacity import Claim, Free, allocatable, belongs_to_node, is_stage
from pipelinejob_operator.admission.pods.admitted import AdmittedPods
from pipelinejob_operator.admission.pods.eligibility import unusable
from pipelinejob_operator.admission.pods.gang import Gang
from pipelinejob_operator.admission.pods.neighbours import NOBODY, Neighbours
from pipelinejob_operator.admission.pods.ways import Way, ways
from pipelinejob_operator.admission.refusals import why_left_out
from pipelinejob_operator.cluster import Object
from pipelinejob_operator.objects.job import Job, Rank
from pipelinejob_operator.objects.per_spec import topology_text
from pipelinejob_operator.objects.requests import is_one_a_node

_PODS = "pods"
_NO_LIMIT = Fraction(10**6)  # of pods, where a node states none


class Beside(Enum):
    """Which of the pods that stand on nodes may keep a job from some of them."""

    ALL = auto()  # those that are there now
    STRANGERS = auto()  # those that are no job's of ours: nobody knows of an end
    STANDING = auto()  # those that stay as long as their node; as if all work were done, and no node had refused


class Chooser:
    """Places jobs on nodes that stay as they are; what jobs of one shape have in common is looked up once.

    What is free comes with each question; `look` says what else has changed.
    """

    def __init__(self, nodes: Sequence[Object], admitted: AdmittedPods, profiles: Profiles = NO_PROFILES) -> None:
        """Look at nodes; `profiles` are the cluster's TopologyProfiles."""
        self._nodes = nodes
        self._admitted = admitted
        self._profiles = profiles
        self._now: datetime | None = None
        self._infos = Infos(nodes)
        self._topologies: dict[str, Topology] = {}
        self._gangs: dict[str, tuple[Job, int, Gang]] = {}
        self._ways: dict[Hashable, tuple[Way, ...]] = {}
        self._usable: dict[Hashable, frozenset[str]] = {}
        self.look(NOBODY)

    def look(self, neighbours: Neighbours, now: datetime | None = None) -> None:
        """Take it that these pods stand on the nodes; without `now`, no refusal of a node counts.

        What rules of pods for one another make of the nodes is looked up anew after this.
        """
        self._now = now
        self._neighbours = {
            Beside.ALL: neighbours,
            Beside.STRANGERS: neighbours.only(lambda pod: not is_stage(pod)),
            Beside.STANDING: neighbours.only(belongs_to_node),
        }
        self._ways_by_rules: dict[Hashable, tuple[Way, ...]] = {}

    def forget_usable(self) -> None:
        """Look anew which nodes could take a rank: what the empty cluster has is another."""
        self._usable = {}

    def forget(self, uid: str) -> None:
        """Let go of a job that is no more."""
        self._gangs.pop(uid, None)

    def shape(self, job: Job) -> Hashable:
        """What jobs have in common that get the same answers here, as long as as much is free.

        Jobs with a past, or with rules for their pods, are each of a shape of their own.
        """
        assert job.spec is not None, "only readable jobs are placed"
        gang = self._gang(job)
        own = job.uid if self._goes_by_rules(gang) or job.status.refused_nodes or stood(job) else ""
        return gang.shape, self._topology_key(job), job.spec.parallelism.data, own

    def choose(
        self,
        job: Job,
        free: Free,
        *,
        prices: Prices | None = None,
        rate: Rate | None = None,
        move_s: float = 0.0,
        beside: Beside = Beside.ALL,
    ) -> Placement:
        """Choose nodes for all ranks; without prices by crossings alone, with a rate on the fastest devices.

        A gang that was broken comes back to where it stood, but for what was lost; a healthy stage
        moves only if that earns back the `move_s` that it costs. Raises NoPlacementError with one
        sentence on what is missing, SpecError if the spec names an unknown topology.
        """
        found, problems = [], []
        for way in self._ways_of(job, beside):
            try:
                found.append(self._place(job, *self._at(job, way, free, beside), prices, rate, move_s))
            except NoPlacementError as error:
                problems.append(error)
        if not found:
            raise problems[0]
        return min(found, key=lambda each: (each.penalty_s or 0.0, sum(each.crossings.values())))

    def _place(  # noqa: PLR0917  # one place that knows all that a placement goes by
        self,
        job: Job,
        demands: Sequence[Demand],
        infos: Sequence[NodeInfo],
        prices: Prices | None,
        rate: Rate | None,
        move_s: float,
    ) -> Placement:
        assert job.spec is not None, "only readable jobs are placed"
        wanted, topology, before = job.spec.topology, self._topology(job, infos), stood(job)
        if before is None:
            return place_on_fastest(
                demands,
                topology,
                infos,
                rate=rate or _alike,
                scope=wanted.pipeline,
                prices=prices,
                threshold=wanted.threshold,
                objective=wanted.objective,
            )
        return repair(
            demands,
            topology,
            infos,
            before=before,
            reload_s=move_s,
            steps_left=max(1, job.spec.training.steps - (job.status.last_checkpoint_step or 0)),
            scope=wanted.pipeline,
            prices=prices,
            threshold=wanted.threshold,
            objective=wanted.objective,
        )

    def fits(self, job: Job, free: Free) -> tuple[Claim, ...] | None:
        """Return what the job would take of which node, None if it does not fit; tightly, and whatever its steps cost.

        Pods of other jobs keep it from no node: they will end.
        """
        found = (self._fits(job, way, free) for way in self._ways_of(job, Beside.STRANGERS))
        return next((claims for claims in found if claims is not None), None)

    def _fits(self, job: Job, way: Way, free: Free) -> tuple[Claim, ...] | None:
        assert job.spec is not None, "only readable jobs are placed"
        (demands, infos), wanted = self._at(job, way, free, Beside.STRANGERS), job.spec.topology
        if not _may_fit(demands, infos):
            return None
        try:
            topology = self._topology(job, infos)
            before = stood(job)
            back = come_back(demands, topology.usable(infos), before=before) if before else {}
            if len(back) == len(demands):  # others may have all else
                return tuple(Claim(back[each.replica, each.stage], _exactly(each)) for each in way.demands)
            placed = place(demands, topology, infos, scope=wanted.pipeline, objective=Objective.PACK)
        except (NoPlacementError, SpecError):
            return None
        asked = {Rank(each.replica, each.stage): _exactly(each) for each in way.demands}
        return tuple(Claim(each.node, asked[Rank(each.replica, each.stage)]) for each in placed.assignments)

    def usable(self, job: Job, free: Free) -> frozenset[str]:
        """Name the nodes that could take a rank of the job on an empty cluster, of which so much is free."""
        gang = self._gang(job)
        is_own = self._goes_by_rules(gang) or bool(job.status.refused_nodes)
        alike = job.uid if is_own else gang.likeness
        if is_own or alike not in self._usable:  # jobs of a long line are often alike
            ways = self._ways_of(job, Beside.STRANGERS)
            self._usable[alike] = frozenset[str]().union(*(self._usable_by(job, way, free) for way in ways))
        return self._usable[alike]

    def _usable_by(self, job: Job, way: Way, free: Free) -> frozenset[str]:
        demands, infos = self._at(job, way, free, Beside.STRANGERS)
        room = Capacity(infos)
        return frozenset[str]().union(*(room.counts(each, most=1) for each in kinds_of(demands)))

    def missing_claims(self, job: Job) -> tuple[str, ...]:
        """Name the volume claims that the job's pods need and nobody has made."""
        return tuple(sorted({name for pod in self._gang(job).kinds for name in pod.missing_claims}))

    def demands(self, job: Job) -> tuple[Demand, ...]:
        """Return what each rank asks for, and where its pod may go, were nothing else there.

        What nodes have one of is left out: a planner's nodes are described by what they say that
        they have.
        """
        found = self._gang(job).demands(self._nodes, self._neighbours[Beside.STANDING])
        return tuple(replace(each, requests=_amounts(each.requests)) for each in found)

    def _gang(self, job: Job) -> Gang:
        known, version = self._gangs.get(job.uid), self._admitted.revision(job)
        if known is None or known[0] is not job or known[1] != version:
            known = self._gangs[job.uid] = (job, version, Gang.of(job, self._admitted))
        return known[2]

    def _goes_by_rules(self, gang: Gang) -> bool:
        return gang.has_rules or bool(self._neighbours[Beside.ALL].shy)

    def goes_by_rules(self, job: Job) -> bool:
        """Tell whether pods' rules for one another say where the job's may stand."""
        return self._goes_by_rules(self._gang(job))

    def _at(self, job: Job, way: Way, free: Free, beside: Beside) -> tuple[tuple[Demand, ...], list[NodeInfo]]:
        refused = {} if beside is Beside.STANDING or self._now is None else why_left_out(job.status, self._now)
        infos = self._infos.at(free)
        if refused:
            infos = [replace(info, unusable=info.unusable or refused.get(info.name)) for info in infos]
        return way.at(infos)

    def _ways_of(self, job: Job, beside: Beside) -> tuple[Way, ...]:
        gang, neighbours = self._gang(job), self._neighbours[beside]
        goes_by_rules = self._goes_by_rules(gang)
        known = self._ways_by_rules if goes_by_rules else self._ways
        key: Hashable = (job.uid if goes_by_rules else gang.shape, beside)
        if key not in known:
            demands = gang.demands(self._nodes, neighbours)
            pods = [self._admitted.of_rank(job, rank).pod for rank in job.ranks] if gang.has_rules else []
            known[key] = tuple(ways(demands, pods, self._nodes, neighbours))
        return known[key]

    def _topology_key(self, job: Job) -> str:
        assert job.spec is not None, "only readable jobs are placed"
        return topology_text(job.spec)

    def _topology(self, job: Job, infos: Sequence[NodeInfo]) -> Topology:
        assert job.spec is not None, "only readable jobs are placed"
        key = self._topology_key(job)  # the tree goes by labels, whatever is free
        if key not in self._topologies:
            self._topologies[key] = Topology.from_spec(job.spec.topology, infos, self._profiles)
        return self._topologies[key]


def _exactly(demand: Demand) -> Resources:
    return {name: Fraction(amount) for name, amount in demand.requests.items()}


def _may_fit(demands: Sequence[Demand], infos: Sequence[NodeInfo]) -> bool:
    """Look whether there are places enough at all, which costs far less than to say what is missing."""
    first = demands[0]
    if not all(each.is_like(first) for each in demands):
        return True
    return sum(Capacity(infos).counts(first, most=len(demands)).values()) >= len(demands)


def stood(job: Job) -> Placement | None:
    """Return where a gang stood before it broke, as far as it is to come back there; None if it begins anew.

    It may have other ranks now: what stood where a rank is no more is nobody's.
    """
    ranks = frozenset(job.ranks)
    assignments = tuple(
        Assignment(replica=each.replica, stage=each.stage, node=each.last_node, path=())
        for each in job.status.stages
        if each.last_node is not None and Rank(each.replica, each.stage) in ranks
    )
    return Placement(assignments=assignments, crossings={}) if assignments else None


def _alike(_: NodeInfo) -> float:
    return 1.0


def node_infos(nodes: Sequence[Object], free: Free) -> list[NodeInfo]:
    """Return nodes as placement sees them."""
    return Infos(nodes).at(free)


class Infos:
    """Nodes as placement sees them; what is free on few of them changes from one look to the next."""

    def __init__(self, nodes: Sequence[Object]) -> None:
        self._bare = [_bare(node) for node in nodes]
        self._limitless = frozenset(node["metadata"]["name"] for node in nodes if _PODS not in allocatable(node))
        self._known: dict[str, tuple[Resources, NodeInfo]] = {}

    def at(self, free: Free) -> list[NodeInfo]:
        """The nodes with so much free."""
        return [self._with(bare, free[bare.name]) for bare in self._bare]

    def _with(self, bare: NodeInfo, left: Resources) -> NodeInfo:
        known = self._known.get(bare.name)
        if known is not None and known[0] is left:
            return known[1]
        whole = {**left, _PODS: _NO_LIMIT} if bare.name in self._limitless else left
        info = replace(bare, free=whole)
        self._known[bare.name] = (left, info)
        return info


def _bare(node: Object) -> NodeInfo:
    metadata = node["metadata"]
    return NodeInfo(name=metadata["name"], labels=metadata.get("labels") or {}, free={}, unusable=unusable(node))


def _amounts(requests: Mapping[str, Number]) -> dict[str, Number]:
    return {name: amount for name, amount in requests.items() if not is_one_a_node(name)}
