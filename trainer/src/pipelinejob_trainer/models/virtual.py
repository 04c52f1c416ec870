"""Virtual compute: layers that wait, so that two cores can host a parallel pipeline.

Weights, autograd, links and book-keeping are real; the time of a layer's forward pass, and of each
of its two gradients, comes from calibrated waits inside autograd functions. Use it as `entrypoint:
pipelinejob_trainer.models.virtual:layers`.

    logits <- wait F / stamp <- times weight <- wait I <- received
                                     |
                                   wait W
                                     |
                                   weight

A backward pass runs against the arrows. The input gradient's wait is on the way to what was
received, the weight gradient's on the weight's own branch, so that a full backward pass takes I +
W, and one in two halves I, then W.

The first layer embeds and costs nothing, so that a stage with it costs what others do: there the
first half of a backward pass ends at that layer's output. Logits are the last layer's output (it
is as wide as the vocabulary), so there is no head that would cost time.
"""

import time

import torch
from torch import nn

from pipelinejob_trainer.base.errors import UserError

VOCABULARY_SIZE = 256  # the width of what its layers take and give


class Sleeper:
    """Sleeps until a moment, and learns by how much this machine's sleeps overshoot.

    It sleeps up to a margin before the moment and then looks at the clock until it has come. The
    margin is a running estimate of what four sleeps in five overshoot by: long enough that most
    end on the microsecond, short enough that eight processes do not keep each other off two cores.
    """

    _LARGEST_MARGIN_S = 200e-6
    _UP_S, _DOWN_S = 8e-6, 2e-6  # one step up for four down: the estimate rests where one sleep in five is late

    def __init__(self) -> None:
        self._margin_s = 100e-6

    def sleep_until(self, moment_s: float) -> None:
        """Return once time.perf_counter() is at `moment_s`."""
        pause_s = moment_s - time.perf_counter() - self._margin_s
        if pause_s > 0:
            time.sleep(pause_s)
            is_late = time.perf_counter() > moment_s
            learned_s = self._margin_s + (self._UP_S if is_late else -self._DOWN_S)
            self._margin_s = min(max(learned_s, 0.0), self._LARGEST_MARGIN_S)
        while time.perf_counter() < moment_s:
            pass


_SLEEPER = Sleeper()


class _Pass:
    """One pass of a micro-batch through a layer: how long it takes, and when it began."""

    __slots__ = ("forward_s", "input_s", "start_s")

    def __init__(self, forward_s: float, input_s: float) -> None:
        self.forward_s = forward_s
        self.input_s = input_s
        self.start_s = time.perf_counter()


class _Entrance(torch.autograd.Function):
    """Where a layer's input gradient ends: waits until its time is over."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor, passing: _Pass) -> torch.Tensor:
        ctx.passing = passing  # type: ignore[attr-defined] # how torch wants what is no tensor to be kept
        return x.view_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        passing: _Pass = ctx.passing  # type: ignore[attr-defined] # as above
        _SLEEPER.sleep_until(passing.start_s + passing.input_s)
        return gradient, None


class _Exit(torch.autograd.Function):
    """Where a layer's forward pass ends, and its backward pass begins."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor, passing: _Pass) -> torch.Tensor:
        ctx.passing = passing  # type: ignore[attr-defined] # as above
        # No view: a layer's output may be the stage's, and torch's runtime detaches that in place.
        output = x.clone()
        _SLEEPER.sleep_until(passing.start_s + passing.forward_s)
        return output

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.passing.start_s = time.perf_counter()  # type: ignore[attr-defined] # as above
        return gradient, None


class _Weight(torch.autograd.Function):
    """A weight whose gradient takes its own time."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, weight: torch.Tensor, seconds: float) -> torch.Tensor:
        ctx.seconds = seconds  # type: ignore[attr-defined] # as above
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        _SLEEPER.sleep_until(time.perf_counter() + ctx.seconds)  # type: ignore[attr-defined] # as above
        return gradient, None


class Virtual(nn.Module):
    """One layer of virtual compute: (batch, sequence, vocabulary) -> the same shape."""

    def __init__(self, *, forward_s: float, input_s: float, weight_s: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(VOCABULARY_SIZE))
        self._forward_s = forward_s
        self._input_s = input_s
        self._weight_s = weight_s

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not (self._forward_s or self._input_s or self._weight_s):
            return x * self.scale  # as near to nothing as a layer can be: it shows what a runtime costs by itself
        passing = _Pass(self._forward_s, self._input_s)
        # autograd runs first what was made last. Made before the entrance, the weight waits after
        # it in a full backward pass, and not between the two ends of the input gradient's clock.
        scale = _Weight.apply(self.scale, self._weight_s)
        result: torch.Tensor = _Exit.apply(_Entrance.apply(x, passing) * scale, passing)
        return result


def layers(*, forward_ms: str, input_ms: str, weight_ms: str, layers: str = "1", speed: str = "1") -> list[nn.Module]:
    """Make an embedding, which takes no time, and `layers` layers of virtual compute.

    A layer's forward pass takes `forward_ms` for a micro-batch, the gradient of its input
    `input_ms`, those of its weights `weight_ms`; each is one number for all layers, or one for
    each, separated by commas. `speed`, of this process's device, divides them. Raises UserError
    for another number of costs than of layers.
    """
    count = int(layers)
    costs_s = [
        _costs_s(name, given, count, float(speed))
        for name, given in (("forward_ms", forward_ms), ("input_ms", input_ms), ("weight_ms", weight_ms))
    ]
    return [
        nn.Embedding(VOCABULARY_SIZE, VOCABULARY_SIZE),
        *(
            Virtual(forward_s=forward_s, input_s=input_s, weight_s=weight_s)
            for forward_s, input_s, weight_s in zip(*costs_s, strict=True)
        ),
    ]


def _costs_s(name: str, given: str, count: int, speed: float) -> list[float]:
    values = [float(value) / 1000 / speed for value in given.split(",")]
    if len(values) not in {1, count}:
        raise UserError(
            "BadModel", f"{name} gives the costs of {len(values)} layers, layers says {count}; give 1 or {count}"
        )
    return values * (count // len(values))
