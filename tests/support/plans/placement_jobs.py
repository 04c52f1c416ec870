"""The jobs that are placed: how many stages and replicas, alike or not, and what it costs that they stand apart."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from pipelinejob.placement.capacity import Demand
from pipelinejob.placement.prices import Prices, prices_of
from pipelinejob.planning.planner import counted, make_plan
from pipelinejob.spec.job import PipelineJobSpec
from support.plans.placement_fabrics import Fabric

Kinds = Callable[[int], Sequence[str]]  # a stage's kind, for so many stages


def alike(num_stages: int) -> Sequence[str]:
    """Return stages of one kind."""
    return ["body"] * num_stages


def ends_unlike(num_stages: int) -> Sequence[str]:
    """Return an embedding, bodies, and a head."""
    return ["embedding", *["body"] * (num_stages - 2), "head"]


@dataclass(frozen=True)
class JobKind:
    """A job of a benchmark. A stage's GPUs are one tensor group: a node's, or an equal share of them."""

    title: str
    stages: int
    replicas: int = 1
    kinds: Kinds = alike
    ranks_per_node: int = 1
    is_large: bool = False  # a model of 175 billion parameters, else of 7

    def demands(self, fabric: Fabric, nodes_of_kind: dict[str, frozenset[str]] | None = None) -> list[Demand]:
        """Return what each rank asks for. Kinds differ in memory alone, unless they have nodes of their own."""
        kinds = self.kinds(self.stages)
        extra = {kind: Fraction(index) for index, kind in enumerate(dict.fromkeys(kinds))}
        return [
            Demand(
                replica=replica,
                stage=stage,
                requests={
                    "nvidia.com/gpu": Fraction(fabric.gpus, self.ranks_per_node),
                    "pods": Fraction(1),
                    "memory": 2**30 * extra[kind],
                },
                nodes=(nodes_of_kind or {}).get(kind),
            )
            for replica in range(self.replicas)
            for stage, kind in enumerate(kinds)
        ]

    @cached_property
    def is_unlike(self) -> bool:
        return len(set(self.kinds(self.stages))) > 1


def prices(job: JobKind, fabric: Fabric) -> Prices:
    """Price the job by playing its schedule."""
    layers, hidden, heads, size, rounds = (
        (126, 12288, 96, 1, 2) if job.is_large else (max(32, job.stages), 4096, 32, 4, 2)
    )
    spec = PipelineJobSpec.model_validate({
        "model": {"gpt": {"numLayers": layers, "hiddenSize": hidden, "numHeads": heads, "vocabularySize": 51200}},
        "data": {"corpus": "python-stdlib", "sequenceLength": 4096},
        "parallelism": {
            "pipeline": job.stages, "data": job.replicas,
            "tensor": fabric.gpus // job.ranks_per_node, "sequenceParallel": True,
        },
        "schedule": {"name": "1F1B", "microBatches": rounds * job.stages, "microBatchSize": size},
        "training": {"steps": 10, "precision": "bf16"},
    })  # fmt: skip
    devices = [fabric.device] * job.stages
    plan = make_plan(namespace="bench", name="job", spec=spec, devices=devices)
    return prices_of(plan, counted(spec, devices, None), fabric.network)


JOBS = (
    JobKind("PP 4", 4),
    JobKind("PP 8", 8),
    JobKind("PP 16", 16),
    JobKind("PP 32", 32, is_large=True),
    JobKind("PP 12, ends unlike", 12, kinds=ends_unlike),
    JobKind("PP 24, ends unlike", 24, kinds=ends_unlike),
    JobKind("PP 4 x DP 4", 4, 4),
    JobKind("PP 8 x DP 4", 8, 4),
    JobKind("PP 16 x DP 2, ends unlike", 16, 2, kinds=ends_unlike),
    JobKind("PP 64", 64, is_large=True),
)
