"""Where the nodes come from that a job is planned onto: a file, a description of a fabric, or a live cluster."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

from pipelinejob import names
from pipelinejob.errors import PipelineJobError
from pipelinejob.topology import NodeInfo
from pipelinejob.topology_profile import TopologyProfileSpec
from pipelinejob_operator.admission.capacity import Promise, free_room, standing_room
from pipelinejob_operator.admission.ledger import Ledger
from pipelinejob_operator.cli.plan.files import read_fabric, read_objects, read_topology_profiles
from pipelinejob_operator.cluster import ClusterError, Object
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import read_job
from pipelinejob_operator.validation.topology_profiles import validate_profile


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

    def free_for(self, job: "Named", settings: ControllerSettings) -> dict[str, dict[str, Fraction]]:
        """Give what every node has left for a job; what this very job holds there counts as free."""
        others = [pod for pod in self.pods if not _is_of(pod, job)]
        if self.is_empty:
            return standing_room(self.nodes, others)
        return _less(free_room(self.nodes, others, self._promises(job, settings)), self.taken)

    def _promises(self, job: "Named", settings: ControllerSettings) -> Sequence[Promise]:
        others = [read_job(each) for each in self.jobs if not _is_named(each, job)]
        return tuple(Ledger().promises(others, settings).values())

    @property
    def capacity(self) -> dict[str, dict[str, Fraction]]:
        """Give what every node has when nothing but its own pods stand on it."""
        return standing_room(self.nodes, self.pods)

    def where(self, resource: str, free: Mapping[str, Mapping[str, Fraction]]) -> str:
        """Say in one line what there is."""
        all_of, left = (sum(of.get(resource, Fraction(0)) for of in by.values()) for by in (self.capacity, free))
        number = f"{len(self.nodes)} node{'s' * (len(self.nodes) != 1)}"
        amounts = f", {float(left):g} of {float(all_of):g} {resource} free" if all_of else ""
        return f"{number} of {self.source}{' as if empty' * self.is_empty}{amounts}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """The job that is planned, by name."""

    namespace: str
    name: str


def _is_named(item: Object, job: Named) -> bool:
    metadata = item["metadata"]
    return (metadata.get("namespace"), metadata.get("name")) == (job.namespace, job.name)


def _is_of(pod: Object, job: Named) -> bool:
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
