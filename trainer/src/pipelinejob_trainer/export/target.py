"""What transformers calls a model, and each of its tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pipelinejob_trainer.base.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Target:
    """A model of transformers without values, on the meta device, that equals one of ours.

    `config` is what config.json shall say. `full` gives a tensor's name there; those in
    `transposed` stand there on their side. `files` are copied along.
    """

    model: Any
    config: Mapping[str, Any]
    full: Callable[[str], str]
    transposed: frozenset[str] = frozenset()
    files: tuple[Path, ...] = ()
    base_path: str | None = None  # of a model that adapters stand beside
    seen: set[str] = field(default_factory=set)

    def named(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return a layer's tensors as the model's modules hold them, by their names there.

        Raises UserError where the model has no such tensor.
        """
        named = {self.full(name): self._turned(name, each) for name, each in tensors.items()}
        for name, tensor in named.items():
            wanted = self._shapes.get(name)
            if wanted is None or wanted.shape != tensor.shape:
                has = "none" if wanted is None else f"one of shape {tuple(wanted.shape)}"
                raise UserError(
                    "CheckpointMismatch",
                    f"the checkpoint has a tensor {name} of shape {tuple(tensor.shape)}, the model {has}: it is of"
                    " another model; name the plan or manifest that it was trained by",
                )
        self.seen.update(named)
        return named

    def stored(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return a layer's tensors as the family's own files hold them, by their names there.

        transformers' reverse conversions take what it has fused apart again. Raises UserError
        where the model has no such tensor.
        """
        from transformers.core_model_loading import revert_weight_conversion  # noqa: PLC0415  # slow, for exports alone

        named = self.named(tensors)
        result: dict[str, torch.Tensor] = revert_weight_conversion(self.model, named)
        return {name: each.contiguous() for name, each in result.items()}

    def check_complete(self) -> None:
        """Check that every tensor of the model came by. Raises UserError."""
        missing = self._shapes.keys() - self.seen - self._tied
        if missing:
            raise UserError(
                "CheckpointMismatch",
                f"the checkpoint has nothing for {min(missing)}, which the model has: it is of another model; name the"
                " plan or manifest that it was trained by",
            )

    @cached_property
    def _shapes(self) -> Mapping[str, torch.Tensor]:
        shapes: Mapping[str, torch.Tensor] = self.model.state_dict()
        return shapes

    @property
    def _tied(self) -> frozenset[str]:
        """The names of tensors that are another one's too."""
        return frozenset(getattr(self.model, "all_tied_weights_keys", None) or {})

    def _turned(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.T if self.full(name) in self.transposed else tensor
