"""Virtual compute: layers that wait instead of reckoning, so that two cores host a truly parallel pipeline.

Weights, autograd, links and book-keeping are real, the time of each layer's passes is made up to its length by a
calibrated wait inside autograd functions. Use it as `entrypoint: pipelinejob_trainer.models.virtual:layers`.
"""

import time

import torch
from torch import nn

_VOCABULARY_SIZE = 256


class Wait:
    """A wait of a given length that counts from its start, and learns by how much this machine's sleeps overshoot."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._overshoot_s = 0.0

    def until_passed_since(self, start_s: float) -> None:
        """Return when the wait's length has passed since `start_s`."""
        pause_s = self._seconds - (time.perf_counter() - start_s) - self._overshoot_s
        if pause_s <= 0:
            return
        time.sleep(pause_s)
        late_s = time.perf_counter() - start_s - self._seconds
        # A small step towards what was seen: one late wake-up on a busy machine must not shorten the waits after it.
        self._overshoot_s = max(0.0, self._overshoot_s + 0.1 * min(late_s, 1e-3))


class _Pass:
    """One micro-batch's way through a layer: when its forward pass began, and when its backward pass did."""

    def __init__(self, waits: tuple[Wait, Wait]) -> None:
        self.forward_wait, self.backward_wait = waits
        self.start_s = time.perf_counter()


class _Entrance(torch.autograd.Function):
    """Where a layer's backward pass ends: waits until it has taken its time."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor, passing: _Pass) -> torch.Tensor:
        ctx.passing = passing  # type: ignore[attr-defined] # how torch wants what is no tensor to be kept
        return x.view_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        passing: _Pass = ctx.passing  # type: ignore[attr-defined] # as above
        passing.backward_wait.until_passed_since(passing.start_s)
        return gradient, None


class _Exit(torch.autograd.Function):
    """Where a layer's forward pass ends, and its backward pass begins."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor, passing: _Pass) -> torch.Tensor:
        ctx.passing = passing  # type: ignore[attr-defined] # as above
        passing.forward_wait.until_passed_since(passing.start_s)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.passing.start_s = time.perf_counter()  # type: ignore[attr-defined] # as above
        return gradient, None


class Virtual(nn.Module):
    """One layer of virtual compute; the first embeds tokens, the last gives logits."""

    def __init__(self, *, forward_s: float, backward_s: float, width: int, is_first: bool, is_last: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_VOCABULARY_SIZE, width) if is_first else nn.Identity()
        self.scale = nn.Parameter(torch.ones(width))
        self.logits = nn.Linear(width, _VOCABULARY_SIZE) if is_last else nn.Identity()
        self._waits = (Wait(forward_s), Wait(backward_s))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        passing = _Pass(self._waits)
        entered = _Entrance.apply(self.embedding(x), passing)
        result: torch.Tensor = _Exit.apply(self.logits(entered * self.scale), passing)
        return result


def layers(*, forward_ms: str, backward_ms: str, layers: str, width: str = "32") -> list[nn.Module]:
    """Make `layers` equal layers whose passes over a micro-batch take `forward_ms` and `backward_ms` each."""
    count = int(layers)
    return [
        Virtual(
            forward_s=float(forward_ms) / 1000,
            backward_s=float(backward_ms) / 1000,
            width=int(width),
            is_first=index == 0,
            is_last=index == count - 1,
        )
        for index in range(count)
    ]
