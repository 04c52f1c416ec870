"""What a gang agrees on of low-rank adapters: that each target names something, and which base they belong to."""

from collections.abc import Iterable

import torch

from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.communication.gang import Gang
from pipelinejob_trainer.models.identity import layer_of
from pipelinejob_trainer.models.lora import check_found, combined, digest_of
from pipelinejob_trainer.runtime.rank import Rank


def check_targets(rank: Rank, gang: Gang) -> str | None:
    """Refuse targets that name no linear layer of any stage; return what is to be said of what has no adapter.

    All ranks call it, at the same point. Raises UserError, on all of them.
    """
    lora, adapters = rank.plan.training.lora, rank.part.adapters
    if lora is None:
        return None
    counts = [float(adapters.found[each]) for each in lora.targets]
    sizes = [float(_elements(rank, names)) for names in (adapters.base, adapters.stacked)]
    *found, base, stacked = gang.sum(torch.tensor([*counts, *sizes], dtype=torch.float64))
    check_found({each: int(count) for each, count in zip(lora.targets, found, strict=True)}, adapters.linear)
    return _without_adapters(stacked / base) if stacked else None


def _elements(rank: Rank, names: Iterable[str]) -> int:
    parameters = rank.part.named_parameters()
    return sum(parameters[name].numel() for name in names if rank.owns(name))


def _without_adapters(share: float) -> str:
    return (
        f"spec.training.lora: {share:.0%} of the model's parameters are experts (or other matrices) that lie in one"
        " tensor a layer; no adapter stands beside these, whatever spec.training.lora.targets names"
    )


def agreed_base(rank: Rank, gang: Gang) -> str | None:
    """Return the digest of the weights that adapters stand beside; None without adapters.

    All ranks call it, at the same point, while the weights are as they came.
    """
    if rank.plan.training.lora is None:
        return None
    base = rank.part.adapters.base
    parameters = rank.part.named_parameters().items()
    mine = digest_of((name, each) for name, each in parameters if name in base and rank.owns(name))
    rows = gang.gather(torch.tensor(list(mine), dtype=torch.uint8))
    return combined(bytes(row.tolist()) for row in rows).hex()


class BaseCheck:
    """The weights that adapters stand beside, which nothing may change: no checkpoint would know of it."""

    def __init__(self, rank: Rank) -> None:
        parameters = rank.part.named_parameters()
        self._parameters = {name: parameters[name] for name in sorted(rank.part.adapters.base)}
        self._versions = self._versions_now()

    def check(self) -> None:
        """Raise UserError if a pass has changed one since this was made."""
        for name, version in self._versions_now().items():
            if version != self._versions[name]:
                raise UserError(
                    "BaseChanged",
                    f"spec.training.lora: layer {layer_of(name)}: parameter {name} is not trained, adapters are, but a"
                    " forward pass changed it (nn.Embedding's max_norm does that), and checkpoints of adapters do not"
                    " keep it; do without, or train the whole model: leave spec.training.lora out",
                )

    def _versions_now(self) -> dict[str, int]:
        return {name: each._version for name, each in self._parameters.items()}  # noqa: SLF001 # torch's documents name it
