"""Adafactor (Shazeer and Stern, 2018, arXiv 1804.04235), as torch.optim.Adafactor has it.

Of a matrix's second moments it keeps the means of rows and columns. The step is relative to the
parameter's own size, and the learning rate bounds it. torch's class asks the device for two
numbers a parameter in every step; here nothing waits, which rounds the last bit otherwise.
"""

from dataclasses import dataclass

import torch

from pipelinejob_trainer.optimizers.rule import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Adafactor:
    """Row and column means of a matrix's squared gradients; a vector's are kept whole."""

    beta2_decay: float
    epsilon1: float | None
    epsilon2: float
    clip_threshold: float
    name: str = "Adafactor"
    takes_complex: bool = False

    def new_state(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return means of squares, zeros: (..., rows, 1) and (..., 1, columns), or as the parameter."""
        if parameter.dim() < 2:  # noqa: PLR2004 # a matrix or more
            return {"variance": torch.zeros_like(parameter)}
        *outer, rows, columns = parameter.shape
        return {
            "row_variance": parameter.new_zeros((*outer, rows, 1)),
            "column_variance": parameter.new_zeros((*outer, 1, columns)),
        }

    def update(self, batch: Batch) -> None:
        """Update in place."""
        states = {kind: iter(tensors) for kind, tensors in batch.states.items()}
        for place, (parameter, gradient) in enumerate(zip(batch.parameters, batch.gradients, strict=True)):
            state = {kind: next(states[kind]) for kind in self.kinds(parameter)}
            if parameter.numel():
                self._update(parameter.detach(), gradient, state, batch, decay=batch.decay_of(place))

    @staticmethod
    def kinds(parameter: torch.Tensor) -> tuple[str, ...]:
        """Return which states a parameter has."""
        return ("variance",) if parameter.dim() < 2 else ("row_variance", "column_variance")  # noqa: PLR2004 # as above

    def _update(
        self,
        parameter: torch.Tensor,
        gradient: torch.Tensor,
        state: dict[str, torch.Tensor],
        batch: Batch,
        *,
        decay: float,
    ) -> None:
        epsilon1 = torch.finfo(parameter.dtype).eps if self.epsilon1 is None else self.epsilon1
        share = batch.number**self.beta2_decay
        bound = min(batch.rate, 1 / batch.number**0.5)
        step = (_root_mean_square(parameter).clamp(min=self.epsilon2)) * bound
        if decay:
            parameter.mul_(1 - batch.rate * decay)
        if "variance" in state:
            state["variance"].lerp_(gradient * gradient, share)
            estimate = state["variance"].clone()
        else:
            rows, columns = state["row_variance"], state["column_variance"]
            rows.lerp_(_mean_square(gradient, -1), share)
            columns.lerp_(_mean_square(gradient, -2), share)
            estimate = rows @ columns
            estimate.div_(rows.mean(dim=-2, keepdim=True).clamp_(min=epsilon1))
        update = estimate.clamp_(min=epsilon1 * epsilon1).rsqrt_().mul_(gradient)
        clipped = (_root_mean_square(update) / self.clip_threshold).clamp(min=1.0)
        parameter.sub_(update.mul_((step / clipped).to(update.dtype)))


def _root_mean_square(tensor: torch.Tensor) -> torch.Tensor:
    mean: torch.Tensor = torch.linalg.vector_norm(tensor).double() / tensor.numel() ** 0.5
    return mean


def _mean_square(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(tensor, dim=dim, keepdim=True)
    return norm.square_().div_(tensor.size(dim))
