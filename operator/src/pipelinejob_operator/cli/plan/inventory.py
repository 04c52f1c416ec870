"""The nodes that a job is planned onto, from a file, a described fabric or a live cluster, as one job finds them."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path

from pipelinejob.base import names
from pipelinejob.base.errors import PipelineJobError
from pipelinejob.contract.plan import Placement
from pipelinejob.fabric.hardware import Hardware
from pipelinejob.fabric.topology import NodeInfo, Topology
from pipelinejob.placement.capacity import Demand
from pipelinejob.siting.site import Site
from pipelinejob.spec.job import Device, PipelineJobSpec
from pipelinejob.spec.network.topology_profile import TopologyProfileSpec
from pipelinejob_operator.admission.capacity import Promise, free_room, promise_of, standing_room
from pipelinejob_operator.admission.choosing import Chooser, node_infos
from pipelinejob_operator.admission.pods.admitted import AdmittedPods
from pipelinejob_operator.cli.given.data_files import read_fabric, read_objects, read_topology_profiles
from pipelinejob_operator.cli.given.manifests import GivenJob
from pipelinejob_operator.cluster import ClusterError, Key, Object
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Job, read_job
from pipelinejob_operator.report.fabric_view import FabricView, fabric_view
from pipelinejob_operator.validation.topology_profiles import validate_profile

_UID = "uid-of-the-pipelinejob"  # only a cluster knows it


def as_stored(given: GivenJob) -> Job:
    """Read a job as if a cluster held it."""
    read = read_job({**given.stored, "metadata": {"uid": _UID, **given.stored["metadata"]}})
    return replace(read, spec=given.spec)


class InventoryError(PipelineJobError):
    """The options that say where the nodes are do not go together, or lead nowhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """The nodes of a cluster, real or described, and what takes room on them."""

    source: str  # for people
    nodes: Sequence[Object]
    pods: Sequence[Object] = ()
    jobs: Sequence[Object] = ()  # PipelineJobs that may have been promised room
    taken: Mapping[str, Mapping[str, Fraction]] = field(default_factory=dict)  # by node, as a description says
    profiles: Mapping[str, TopologyProfileSpec] = field(default_factory=dict)  # TopologyProfiles, by name
    is_empty: bool = False  # look at it as if all work were done

    def free_for(self, job: Key, settings: ControllerSettings) -> dict[str, dict[str, Fraction]]:
        """Return what every node has left for a job; what this very job holds there counts as free."""
        others = [pod for pod in self.pods if not _is_of(pod, job)]
        if self.is_empty:
            return standing_room(self.nodes, others)
        return _less(free_room(self.nodes, others, self._promises(job, settings)), self.taken)

    def _promises(self, job: Key, settings: ControllerSettings) -> Sequence[Promise]:
        others, admitted = (read_job(each) for each in self.jobs if not _is_named(each, job)), AdmittedPods(settings)
        return tuple(promise for each in others if (promise := promise_of(each, admitted)).claims)

    @property
    def capacity(self) -> dict[str, dict[str, Fraction]]:
        """Return what every node has when nothing but its own pods stand on it."""
        return standing_room(self.nodes, self.pods)

    def where(self, resource: str, free: Mapping[str, Mapping[str, Fraction]]) -> str:
        """Describe in one line what there is."""
        all_of, left = (sum(of.get(resource, Fraction(0)) for of in by.values()) for by in (self.capacity, free))
        number = f"{len(self.nodes)} node{'s' * (len(self.nodes) != 1)}"
        amounts = f", {float(left):g} of {float(all_of):g} {resource} free" if all_of else ""
        return f"{number} of {self.source}{' as if empty' * self.is_empty}{amounts}"


@dataclass(frozen=True, kw_only=True)
class NodesForJob:
    """The nodes of an inventory as one job finds them: what is free for it, and what it asks of them."""

    job: GivenJob
    inventory: Inventory
    hardware: Hardware
    settings: ControllerSettings

    @cached_property
    def site(self) -> Site:
        """Return the nodes as placement sees them, in the tree that the manifest asks for."""
        tree = Topology.from_spec(self.job.spec.topology, self._infos, self.inventory.profiles)
        return Site.of(self._infos, tree, self._demands_of, hardware=self.hardware)

    @property
    def idle(self) -> Site | None:
        """Return the same nodes as if all work on them were done; None if they are looked at so already."""
        if self.inventory.is_empty:
            return None
        return replace(self, inventory=replace(self.inventory, is_empty=True)).site

    def _demands_of(self, spec: PipelineJobSpec) -> Sequence[Demand]:
        admitted = AdmittedPods(self.settings)
        return Chooser(self.inventory.nodes, admitted).demands(replace(as_stored(self.job), spec=spec))

    @property
    def where(self) -> str:
        """Describe in one line what there is."""
        return self.inventory.where(self._resource, self._free)

    def fabric(self, placement: Placement | None) -> FabricView:
        """Return what is drawn of the nodes."""
        view = fabric_view(
            self.site.topology,
            capacity=self.inventory.capacity,
            free=self._free,
            unusable={info.name: info.unusable for info in self._infos},
            resource=self._resource,
        )
        return view.holding(placement)

    @cached_property
    def _free(self) -> Mapping[str, Mapping[str, Fraction]]:
        return self.inventory.free_for(Key(self.job.namespace, self.job.name), self.settings)

    @cached_property
    def _infos(self) -> list[NodeInfo]:
        return node_infos(self.inventory.nodes, self._free)

    @property
    def _resource(self) -> str:
        return self.job.spec.gpu_resource if self.job.spec.device is Device.GPU else "cpu"


def _is_named(item: Object, job: Key) -> bool:
    metadata = item["metadata"]
    return (metadata.get("namespace"), metadata.get("name")) == (job.namespace, job.name)


def _is_of(pod: Object, job: Key) -> bool:
    metadata = pod["metadata"]
    labels = metadata.get("labels") or {}
    return (metadata.get("namespace"), labels.get(names.LABEL_JOB)) == (job.namespace, job.name)


def _less(
    free: Mapping[str, Mapping[str, Fraction]], taken: Mapping[str, Mapping[str, Fraction]]
) -> dict[str, dict[str, Fraction]]:
    return {
        node: {resource: amount - taken.get(node, {}).get(resource, Fraction(0)) for resource, amount in of.items()}
        for node, of in free.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The options that say where the nodes are, as they were given."""

    nodes: Path | None = None
    fabric: Path | None = None
    topology_profiles: Sequence[Path] = ()
    pods: Path | None = None
    kubeconfig: Path | None = None
    context: str | None = None
    empty: bool = False


def read_inventory(asked: Places) -> Inventory | None:
    """Read what the options name; None if they name nothing.

    Raises InventoryError for options that do not go together, and what reading raises.
    """
    _check_together(asked)
    if asked.nodes is not None:
        found = Inventory(
            source=str(asked.nodes),
            nodes=read_objects(asked.nodes, "--nodes", "nodes"),
            pods=read_objects(asked.pods, "--pods", "pods") if asked.pods else (),
        )
    elif asked.fabric is not None:
        found = _described(asked.fabric)
    elif asked.kubeconfig is not None:
        found = _read_cluster(asked)
    else:
        return None
    given = dict(profile for file in asked.topology_profiles for profile in read_topology_profiles(file))
    return replace(found, is_empty=asked.empty, profiles={**found.profiles, **given})


def _check_together(asked: Places) -> None:
    places = (("--nodes", asked.nodes), ("--fabric", asked.fabric), ("--kubeconfig", asked.kubeconfig))
    given = [option for option, file in places if file is not None]
    if len(given) > 1:
        raise InventoryError(f"{' and '.join(given)}: both say where the nodes are; give one of them")
    if asked.pods is not None and asked.nodes is None:
        raise InventoryError(
            f"--pods {asked.pods}: says what stands on nodes, and goes with --nodes; a fabric says itself what is "
            "busy, and a cluster is asked"
        )
    if asked.context is not None and asked.kubeconfig is None:
        raise InventoryError(
            f"--context {asked.context}: of which file? Name it too, as in --kubeconfig ~/.kube/config"
        )
    for option in (*["--empty"] * asked.empty, *["--topology-profile"] * bool(asked.topology_profiles)):
        if not given:
            raise InventoryError(f"{option}: of which nodes? Name them with --nodes, --fabric or --kubeconfig")


def _described(file: Path) -> Inventory:
    """Make Kubernetes nodes of a described fabric, so that all that is said of real ones is said of these."""
    fabric = read_fabric(file)
    return Inventory(
        source=str(file),
        nodes=[_as_object(node) for node in fabric.idle_nodes],
        taken={
            idle.name: {resource: amount - node.free.get(resource, 0) for resource, amount in idle.free.items()}
            for idle, node in zip(fabric.idle_nodes, fabric.nodes, strict=True)
        },
        profiles=fabric.profiles,
    )


def _as_object(node: NodeInfo) -> Object:
    return {
        "metadata": {"name": node.name, "labels": dict(node.labels)},
        "status": {
            "allocatable": {resource: str(amount) for resource, amount in node.free.items()},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def _read_cluster(asked: Places) -> Inventory:
    # Only here is the client's library loaded, so that every other use of the command starts fast.
    from pipelinejob_operator.kube.reading import read_cluster  # noqa: PLC0415

    try:
        found = asyncio.run(read_cluster(asked.kubeconfig, asked.context))
    except ClusterError as error:
        raise InventoryError(f"--kubeconfig {asked.kubeconfig}: {error}") from error
    return Inventory(
        source=found.server,
        nodes=found.nodes,
        pods=found.pods,
        jobs=found.jobs,
        profiles=dict(map(validate_profile, found.topology_profiles)),
    )
