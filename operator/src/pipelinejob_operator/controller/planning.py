"""Plans of jobs: drafted while they wait, made again for the place that they got, and kept while both stay the same.

A draft follows from the spec, its costs, and what the cluster consists of; the final plan from the
draft and the nodes that the job's status names. Finding one may take seconds, so it is prepared in
a thread; losing one loses nothing.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Generic, TypeVar

from pipelinejob.base.errors import NoPlacementError, SpecError
from pipelinejob.base.quantities import Resources
from pipelinejob.contract.plan import Placement, Plan
from pipelinejob.fabric import hardware as hardware_data
from pipelinejob.fabric.hardware import Hardware, HardwareError
from pipelinejob.fabric.topology import NodeInfo, Profiles, Topology
from pipelinejob.placement.capacity import Demand
from pipelinejob.placement.prices import Prices
from pipelinejob.planning.planner import refuse_unrunnable
from pipelinejob.siting.door import NoDeviceError, plan_job
from pipelinejob.siting.request import DoesNotFit, Request
from pipelinejob.siting.site import Draft, Site
from pipelinejob.spec.chosen import Chosen
from pipelinejob.spec.job import Partition, PipelineJobSpec
from pipelinejob.spec.reported.recovery_status import RecoveryStatus
from pipelinejob_operator.admission.choosing import Chooser, node_infos
from pipelinejob_operator.admission.pods.admitted import AdmittedPods, placing
from pipelinejob_operator.cluster import Key, Object
from pipelinejob_operator.controller.costs import Costs
from pipelinejob_operator.controller.observing.divided import Divided
from pipelinejob_operator.controller.turns.measurements import placement_of, speeds_of
from pipelinejob_operator.objects.job import Job
from pipelinejob_operator.objects.making.manifests import kind_of_stage
from pipelinejob_operator.objects.making.plan_text import plan_text
from pipelinejob_operator.objects.per_spec import spec_text


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What the cluster consists of, whatever runs on it."""

    nodes: Sequence[Object]
    room: Mapping[str, Resources]  # of the empty cluster
    profiles: Profiles = field(default_factory=dict)

    @cached_property
    def infos(self) -> list[NodeInfo]:
        """Return the nodes as placement sees them."""
        return node_infos(self.nodes, self.room)

    @cached_property
    def likeness(self) -> Hashable:
        """Return what two grounds have in common that lead to the same drafts: names, labels and profiles."""
        nodes = tuple((each.name, tuple(sorted(each.labels.items())), _devices(each)) for each in self.infos)
        return hash((nodes, str(sorted(self.profiles.items(), key=lambda item: item[0]))))


def _devices(node: NodeInfo) -> Hashable:
    """Return what a node has to compute on: extended resources, such as `nvidia.com/gpu`."""
    return tuple(sorted((name, amount) for name, amount in node.free.items() if "/" in name))


T = TypeVar("T")

_MOST_SHAPES = 256


@dataclass(slots=True)
class _Shared:
    """The draft of all jobs of one shape, and whether its prices are at hand."""

    draft: Draft
    is_priced: bool = False

    def price(self) -> Prices | None:
        prices = self.draft.prices
        self.is_priced = True
        return prices


class _Answers(Generic[T]):
    """One answer a job, kept as long as what it follows from stays the same; an error is an answer, too."""

    def __init__(self) -> None:
        self._known: dict[Key, tuple[Hashable, T | SpecError | NoPlacementError]] = {}

    def has(self, key: Key, version: Hashable) -> bool:
        return key in self._known and self._known[key][0] == version

    def keep(self, key: Key, version: Hashable, make: Callable[[], T]) -> None:
        try:
            self._known[key] = (version, make())
        except (SpecError, NoPlacementError) as error:
            self._known[key] = (version, error)

    def get(self, key: Key) -> T:
        answer = self._known[key][1]
        if isinstance(answer, SpecError | NoPlacementError):
            raise answer
        return answer

    def forget(self, key: Key) -> None:
        self._known.pop(key, None)


class Planner:
    """The plans of all jobs: what planning answered, kept until what it was asked changes."""

    def __init__(
        self,
        admitted: AdmittedPods,
        *,
        costs: Costs,
        hardware: Hardware | None = None,
    ) -> None:
        self._admitted = admitted
        self._costs = costs
        self._hardware = hardware or hardware_data.default()
        self._choices: dict[int | None, _Answers[Chosen]] = {}  # by the replicas that are asked for
        self._drafts = _Answers[_Shared]()
        self._shapes: OrderedDict[Hashable, _Shared] = OrderedDict()
        self._plans = _Answers[Plan]()

    def choose(self, job: Job, ground: Ground) -> Chosen:
        """Choose what the spec leaves open: what is quickest where it would stand, were all work on the cluster done.

        Raises SpecError if nothing can be planned, NoPlacementError if nothing of it finds a
        place. May take ten seconds: to be called in a thread.
        """
        assert job.spec is not None, "only readable jobs are planned"
        version = job.uid, job.generation, self._costs.version(job), ground.likeness
        choices = self._choices.setdefault(job.spec.parallelism.data, _Answers())
        if not choices.has(job.key, version):
            choices.keep(job.key, version, lambda: self._choose(job, ground))
        return choices.get(job.key)

    def draft(self, job: Job, ground: Ground) -> Draft:
        """Plan a job before there is a place.

        Raises SpecError if there can be no plan, NoPlacementError if what is known of the cluster
        does not allow for one.
        """
        shared = self._drafted(job, ground).draft
        return replace(shared, plan=_named(shared.plan, job))

    def version(self, job: Job) -> Hashable:
        """What changes whenever the costs do that a job is planned with."""
        return self._costs.version(job)

    def is_priced(self, job: Job, ground: Ground) -> bool:
        """Tell whether the prices of the job's draft are at hand; a job that only waits needs none."""
        return self._drafted(job, ground).is_priced

    def price(self, job: Job, ground: Ground) -> Prices | None:
        """Price what it costs that the job's ranks stand apart; in a thread, for it takes long the first time.

        Returns None where nothing is known of the layers but their number.
        """
        return self._drafted(job, ground).price()

    def plan(self, job: Job, ground: Ground, placement: Placement | None = None) -> Plan:
        """Plan a job for its place, which its status names if it is not given; else as its draft does.

        Raises what `draft` raises.
        """
        if not job.is_placed:
            return self.draft(job, ground).plan
        version = self._at(job)
        if not self._plans.has(job.key, version):
            shared = self._drafted(job, ground)  # its errors are kept with it
            self._plans.keep(
                job.key,
                version,
                lambda: _storable(_named(shared.draft.placed(placement or placement_of(job.status)).plan, job)),
            )
        return self._plans.get(job.key)

    def divided_anew(self, job: Job, ground: Ground, speeds: Sequence[float]) -> Divided:
        """Divide a running job's layers by the speeds that its stages were measured to have; in a thread.

        Raises what `draft` raises.
        """
        assert job.spec is not None, "only readable jobs run"
        now = self.plan(job, ground)
        kept = Partition(layers=tuple(end - first for first, end in now.cuts))
        as_it_is = job.spec.model_copy(update={"partition": kept})
        recovery = (job.status.recovery or RecoveryStatus()).model_copy(
            update={"speeds": tuple(f"{speed:g}" for speed in speeds), "layers": None}
        )
        status = job.status.model_copy(update={"recovery": recovery})
        old, new = (
            self._draft(replace(job, spec=spec, status=status), ground).placed(placement_of(job.status)).plan
            for spec in (as_it_is, job.spec)
        )
        return Divided(
            speeds=tuple(speeds),
            layers=tuple(end - first for first, end in new.cuts),
            before=kept.layers or (),
            step_ratio=new.prediction.step_s / old.prediction.step_s,
        )

    def knows(self, job: Job, ground: Ground) -> bool:
        """Tell whether the job's plan is at hand: for its place, or the draft where it has none."""
        if job.is_placed:
            return self._plans.has(job.key, self._at(job))
        return self._drafts.has(job.key, self._of(job, ground))

    def prepare(self, job: Job, ground: Ground, placement: Placement | None = None) -> None:
        """Bring the job's plan to hand; in a thread."""
        if not self.knows(job, ground):
            with suppress(SpecError, NoPlacementError):  # each is kept, and told when the plan is asked for
                self.plan(job, ground, placement)

    def prepare_at_once(self, job: Job, ground: Ground) -> bool:
        """Bring the job's plan to hand if that takes moments, as where one of its shape was drafted; tell whether."""
        if self.knows(job, ground):
            return True
        if job.is_placed or self._shape(job, ground) not in self._shapes:
            return False
        self.prepare(job, ground)
        return True

    def forget(self, key: Key) -> None:
        """Let go of a job that is no more."""
        for choices in self._choices.values():
            choices.forget(key)
        for answers in (self._drafts, self._plans):
            answers.forget(key)

    def _drafted(self, job: Job, ground: Ground) -> _Shared:
        version = self._of(job, ground)
        if not self._drafts.has(job.key, version):
            self._drafts.keep(job.key, version, lambda: self._draft_alike(job, ground))
        return self._drafts.get(job.key)

    def _draft_alike(self, job: Job, ground: Ground) -> _Shared:
        """Draft a job as another of its shape was drafted: in a cluster with many small jobs most are alike."""
        shape = self._shape(job, ground)
        if shape not in self._shapes:
            self._shapes[shape] = _Shared(self._draft(job, ground))
            if len(self._shapes) > _MOST_SHAPES:
                self._shapes.popitem(last=False)
        self._shapes.move_to_end(shape)
        return self._shapes[shape]

    def _shape(self, job: Job, ground: Ground) -> Hashable:
        """What jobs have in common that are drafted alike."""
        assert job.spec is not None, "only readable jobs are planned"
        spec = _kept(job, job.spec)
        kinds = sorted({kind_of_stage(job.spec, rank.stage) for rank in job.ranks})
        pods = tuple(placing(self._admitted.of(job, kind)) for kind in kinds)
        costs = self._costs.version(job), speeds_of(job)
        return spec_text(spec), job.flavors, costs, pods, ground.likeness

    def _choose(self, job: Job, ground: Ground) -> Chosen:
        assert job.spec is not None, "only readable jobs are planned"
        refuse_unrunnable(job.spec)
        request = Request(
            namespace=job.key.namespace,
            name=job.key.name,
            spec=job.spec,
            on=self._site(job, ground),
            measured=self._costs.profile(job),
            hardware=self._hardware,
        )
        try:
            answer = plan_job(request)
        except NoDeviceError as error:
            why = "no node that it may use has a device to compute on; add some, or make one ready"
            raise NoPlacementError(why) from error
        except HardwareError as error:  # the administrator's to mend, not the job's end
            raise NoPlacementError(str(error)) from error
        if isinstance(answer, DoesNotFit):
            raise NoPlacementError(answer.shortfall)
        assert answer.chosen is not None, "only what is open is chosen"
        return answer.chosen

    def _of(self, job: Job, ground: Ground) -> Hashable:
        versions = self._costs.version(job), self._admitted.version(job), speeds_of(job), _layers(job)
        return job.uid, job.generation, job.flavors, job.status.chosen, versions, ground.likeness

    def _at(self, job: Job) -> Hashable:
        nodes = tuple(stage.node for stage in job.status.stages)
        costs = self._costs.version(job)
        return job.uid, job.generation, job.status.chosen, costs, nodes, speeds_of(job), _layers(job)

    def _site(self, job: Job, ground: Ground) -> Site:
        """Return the cluster's nodes as the job finds them.

        Raises NoPlacementError where the job names a topology that is not there yet.
        """
        assert job.spec is not None, "only readable jobs are planned"
        try:
            topology = Topology.from_spec(job.spec.topology, ground.infos, ground.profiles)
        except SpecError as error:
            raise NoPlacementError(str(error)) from error
        chooser = Chooser(ground.nodes, self._admitted)

        def demands_of(spec: PipelineJobSpec) -> Sequence[Demand]:
            return chooser.demands(replace(job, spec=spec))

        return Site.of(ground.infos, topology, demands_of, hardware=self._hardware)

    def _draft(self, job: Job, ground: Ground) -> Draft:
        assert job.spec is not None, "only readable jobs are planned"
        refuse_unrunnable(job.spec)
        site, measured = self._site(job, ground), self._costs.profile(job)
        try:
            draft = site.draft(
                _kept(job, job.spec),
                namespace=job.key.namespace,
                name=job.key.name,
                profile=measured,
                speeds=speeds_of(job),
            )
        except HardwareError as error:  # the administrator's to mend, not the job's end
            raise NoPlacementError(str(error)) from error
        _storable(draft.plan)
        return draft


def _layers(job: Job) -> tuple[int, ...] | None:
    return job.status.recovery.layers if job.status.recovery else None


def _kept(job: Job, spec: PipelineJobSpec) -> PipelineJobSpec:
    """Return the spec with the layers where they are, if the job's gang goes on with them in memory."""
    layers = _layers(job)
    return spec if layers is None else spec.model_copy(update={"partition": Partition(layers=layers)})


def _named(plan: Plan, job: Job) -> Plan:
    """Return the plan of a job whose shape was planned for another."""
    return plan.model_copy(update={"namespace": job.key.namespace, "name": job.key.name})


def _storable(plan: Plan) -> Plan:
    """Return the plan if a config map holds it; a job with any other must take no place.

    Raises SpecError.
    """
    plan_text(plan)
    return plan
