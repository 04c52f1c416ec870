"""What is trained of a model whose own weights stay as they are: adapters of low rank (`spec.training.lora`)."""

from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import Field

from pipelinejob.base.values import Value

ALL_MATRICES = "*"  # a target that names every matrix between embedding and head


class Lora(Value):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) of matrices, as PEFT defines them.

    A matrix W gives W x + s B A dropout(x), s being alpha / rank, or alpha / sqrt(rank) where
    `rankStabilised`.
    """

    targets: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=253)], ...],
        Field(
            min_length=1,
            max_length=64,
            description="Globs over the names of linear layers, or over the ends of these names: `q_proj`, "
            "`layers.3.*`; `*` alone: all of them between embedding and head.",
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        ),
    ]
    rank: Annotated[int, Field(ge=1, le=4096, description="Rank of an adapter: columns of B, rows of A.")] = 8
    alpha: Annotated[
        float, Field(gt=0, le=1e6, description="What an adapter adds is multiplied with alpha / rank.")
    ] = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1, description="Share of an adapter's input that is dropped.")] = 0.0
    rank_stabilised: Annotated[
        bool, Field(description="Multiply with alpha / sqrt(rank) instead (rsLoRA, arXiv 2312.03732).")
    ] = False

    @property
    def scale(self) -> float:
        """What the product of B and A is multiplied with."""
        divisor: float = self.rank**0.5 if self.rank_stabilised else self.rank
        return self.alpha / divisor

    @property
    def is_same_everywhere(self) -> bool:
        """Whether equal layers get equal adapters, as no target can tell them apart by number."""
        return not any(set("0123456789?[").intersection(pattern) for pattern in self.targets)


def matches(pattern: str, name: str) -> bool:
    """Return whether a pattern names a module by its global name, or by the end of it."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")
