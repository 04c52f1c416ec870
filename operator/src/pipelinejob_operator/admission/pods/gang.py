"""The pods of a job that looks for a place: what each asks for, where each may go, and their rules for one another."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from pipelinejob.base.quantities import Resources
from pipelinejob.placement.capacity import Demand
from pipelinejob_operator.admission.pods.admitted import AdmittedPod, AdmittedPods, placing
from pipelinejob_operator.admission.pods.eligibility import may_stand_on
from pipelinejob_operator.admission.pods.neighbours import Neighbours, apart_terms, barred, together_terms
from pipelinejob_operator.admission.pods.spreading import spreads
from pipelinejob_operator.cluster import Object
from pipelinejob_operator.objects.job import Job, Rank
from pipelinejob_operator.objects.making.manifests import kind_of_stage
from pipelinejob_operator.objects.requests import pod_requests
from pipelinejob_operator.objects.selectors import selects_node


@dataclass(frozen=True, kw_only=True)
class Gang:
    """All ranks with their pods; ranks of a kind share one."""

    ranks: tuple[Rank, ...]
    pods: tuple[AdmittedPod, ...]  # of each rank

    @classmethod
    def of(cls, job: Job, admitted: AdmittedPods) -> Self:
        """Read a job's pods as admission makes them."""
        spec = job.spec
        assert spec is not None, "only readable jobs are placed"
        kinds = {kind: admitted.of(job, kind) for kind in {kind_of_stage(spec, rank.stage) for rank in job.ranks}}
        return cls(ranks=job.ranks, pods=tuple(kinds[kind_of_stage(spec, rank.stage)] for rank in job.ranks))

    @cached_property
    def kinds(self) -> Sequence[AdmittedPod]:
        """Return each pod once."""
        return list({id(pod): pod for pod in self.pods}.values())

    @cached_property
    def has_rules(self) -> bool:
        """Tell whether pods are kept apart, together or even by their own wish."""
        return any(apart_terms(each.pod) or together_terms(each.pod) or spreads(each.pod) for each in self.kinds)

    @cached_property
    def likeness(self) -> Hashable:
        """Return what gangs have in common that may use the same nodes, where no pod has rules for others."""
        return tuple(placing(each) for each in self.kinds)

    @cached_property
    def shape(self) -> Hashable:
        """What gangs have in common whose ranks ask for the same, each for its own."""
        kinds = {id(pod): number for number, pod in enumerate(self.kinds)}
        return self.likeness, self.ranks, tuple(kinds[id(pod)] for pod in self.pods)

    def demands(self, nodes: Sequence[Object], neighbours: Neighbours) -> list[Demand]:
        """Return what each rank asks for, and where its pod may go beside these neighbours."""
        known = {id(each): _demand(each, nodes, neighbours) for each in self.kinds}
        return [
            Demand(replica=rank.replica, stage=rank.stage, requests=requests, nodes=allowed)
            for rank, (requests, allowed) in zip(self.ranks, (known[id(pod)] for pod in self.pods), strict=True)
        ]


def _demand(
    asked: AdmittedPod, nodes: Sequence[Object], neighbours: Neighbours
) -> tuple[Resources, frozenset[str] | None]:
    requests, kept_away = pod_requests({**asked.pod, "status": {}}), barred(asked.pod, nodes, neighbours)
    allowed = frozenset(
        node["metadata"]["name"]
        for node in nodes
        if may_stand_on(asked.pod, node) and all(selects_node(each, node) for each in asked.volumes)
    )
    return requests, None if len(allowed) == len(nodes) and not kept_away else allowed - kept_away
