"""Virtual compute: layers that wait instead of reckoning, so that two cores host a truly parallel pipeline.

Weights, autograd, links and book-keeping are real, the time of each layer's passes is a calibrated wait inside its
autograd function. Use it as `entrypoint: pipelinejob_trainer.models.virtual:layers`.
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


class _Scale(torch.autograd.Function):
    """x * scale, where forward and backward each take as long as they are told."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: torch.Tensor,
        scale: torch.Tensor,
        waits: tuple[Wait, Wait],
    ) -> torch.Tensor:
        start_s = time.perf_counter()
        ctx.save_for_backward(x, scale)
        ctx.backward_wait = waits[1]  # type: ignore[attr-defined] # how torch wants what is no tensor to be kept
        result = x * scale
        waits[0].until_passed_since(start_s)
        return result

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        start_s = time.perf_counter()
        x, scale = ctx.saved_tensors  # type: ignore[attr-defined] # as above
        result = gradient * scale, (gradient * x).flatten(0, -2).sum(0), None
        ctx.backward_wait.until_passed_since(start_s)  # type: ignore[attr-defined] # as above
        return result


class Virtual(nn.Module):
    """One layer of virtual compute; the first embeds tokens, the last gives logits."""

    def __init__(self, *, forward_s: float, backward_s: float, width: int, is_first: bool, is_last: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_VOCABULARY_SIZE, width) if is_first else nn.Identity()
        self.scale = nn.Parameter(torch.ones(width))
        self.logits = nn.Linear(width, _VOCABULARY_SIZE) if is_last else nn.Identity()
        self._waits = (Wait(forward_s), Wait(backward_s))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.logits(_Scale.apply(self.embedding(x), self.scale, self._waits))
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
