"""One stage: its layers, and the forward and backward pass of one micro-batch through them.

Gradients add up in `parameter.grad`, each micro-batch weighing 1 / (micro-batches * replicas), so that after a step,
summed over replicas, they are those of the mean loss over the global batch.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional

from pipelinejob.spec import Precision
from pipelinejob_trainer.errors import UserError
from pipelinejob_trainer.models import LayerEntry


class Stage:
    """The stretch of layers that a rank works on.

    bf16 is autocast: weights, gradients and what is added up stay fp32, matrices are multiplied in bf16. What goes to
    the next stage has the type that the layer gave it, so a split changes no rounding.
    """

    def __init__(
        self,
        layers: Sequence[LayerEntry],
        *,
        is_first: bool,
        is_last: bool,
        loss_weight: float,
        precision: Precision,
        device: torch.device,
    ) -> None:
        self.module = _modules(layers).to(device)
        self.first_layer = layers[0].index
        self.is_first = is_first
        self.is_last = is_last
        self.device = device
        self._loss_weight = loss_weight
        self._precision = precision
        self._in_flight: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Give parameters by their global names, `layers.<index>.<parameter>`."""
        return self.module.named_parameters()

    def forward(self, micro_batch: int, received: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        """Run a micro-batch through the layers; keep what its backward pass needs.

        `received` are token ids on the first stage, else the previous stage's output. Gives the output for the next
        stage, or on the last stage, which needs `targets`, the weighted loss. Raises UserError when a layer returns
        no tensor.
        """
        if not self.is_first and received.is_floating_point():
            received.requires_grad_()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._precision is Precision.BF16):
            output = self._through_layers(received)
        if self.is_last:
            assert targets is not None, "the last stage reckons the loss"
            output = cross_entropy(output, targets) * self._loss_weight
        self._in_flight[micro_batch] = (received, output)
        return output.detach()

    def backward(self, micro_batch: int, gradient: torch.Tensor | None = None) -> torch.Tensor | None:
        """Run a micro-batch's full backward pass; add to the parameters' gradients.

        `gradient` is that of this stage's output, None on the last stage. Gives the gradient of what was received,
        None on the first stage.
        """
        received, output = self._in_flight.pop(micro_batch)
        if output.requires_grad:  # a stage of layers without parameters, of tokens, has nothing to derive
            (output if gradient is None else _Seed.apply(output, gradient)).backward()
        if self.is_first:
            return None
        return torch.zeros_like(received) if received.grad is None else received.grad

    def _through_layers(self, received: torch.Tensor) -> torch.Tensor:
        output = received
        for name, layer in self.module.layers.named_children():  # type: ignore[union-attr] # a ModuleDict
            output = layer(output)
            if not isinstance(output, torch.Tensor):
                raise UserError(
                    "BadModel",
                    f"layer {name} ({type(layer).__name__}) returned {type(output).__name__}; each layer takes one"
                    " tensor and returns one",
                )
        return output


class _Seed(torch.autograd.Function):
    """A scalar whose gradient with respect to `output` is `gradient`: where a backward pass starts inside a model.

    It is what torch.autograd.backward(output, gradient) means; but that imports sympy, seconds of every stage's first
    step.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, output: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gradient)
        return output.new_zeros(())

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, _: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = ctx.saved_tensors  # type: ignore[attr-defined] # torch's stubs leave it out
        return gradient, None


def _modules(layers: Sequence[LayerEntry]) -> nn.Module:
    root = nn.Module()
    root.layers = nn.ModuleDict({str(layer.index): layer.module for layer in layers})
    return root.train()


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Give the mean over a micro-batch's tokens, in nats.

    `logits` are (batch, sequence, vocabulary), `targets` (batch, sequence). Raises UserError for logits of another
    shape.
    """
    if logits.shape[:-1] != targets.shape:
        raise UserError(
            "BadModel",
            f"the last layer returned shape {tuple(logits.shape)}; it must return logits of shape"
            f" {(*targets.shape, 'vocabulary')}",
        )
    return functional.cross_entropy(logits.flatten(0, -2).float(), targets.flatten())
