"""Models whose layers have tensors in common, as people write them, right and wrong; for `spec.model.entrypoint`."""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import nn

WIDTH = 8


class Half(nn.Module):
    def __init__(self, weight: nn.Parameter | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        if weight is not None:
            self.linear.weight = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.linear(x))


def embedding() -> nn.Module:
    return nn.Embedding(256, WIDTH)


def head() -> nn.Module:
    return nn.Linear(WIDTH, 256, bias=False)


class TwoNames(nn.Module):
    """One parameter under two names, and one module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH, bias=False)
        self.second = nn.Linear(WIDTH, WIDTH, bias=False)
        self.second.weight = self.first.weight
        self.norm = self.last_norm = nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.last_norm(self.second(torch.tanh(self.first(self.norm(x)))))


class Masked(nn.Module):
    """Attention whose causal mask others may have, too."""

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("mask", mask)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.shape[1]
        scores = (x @ x.transpose(1, 2)).masked_fill(~self.mask[:length, :length], -1e9)
        return x + torch.tanh(self.linear(scores.softmax(-1) @ x))


def two_names() -> list[nn.Module]:
    return [embedding(), TwoNames(), TwoNames(), head()]


def one_mask() -> list[nn.Module]:
    mask = torch.ones(16, 16, dtype=torch.bool).tril()
    return [embedding(), Masked(mask), Masked(mask.data), head()]


def one_block() -> list[nn.Module]:
    block = Masked(torch.ones(16, 16, dtype=torch.bool).tril())
    return [embedding(), block, block, head()]


def one_weight() -> list[nn.Module]:
    """A head tied to the embedding, and blocks that share one weight of three tensors."""
    first, last, block = embedding(), head(), Half()
    last.weight = first.weight
    return [first, block, Half(block.linear.weight), last]


class Hiding(nn.Module):
    """Uses a module that it does not have among its own."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.others = [other]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.others[0].weight.T


def hidden_head() -> list[nn.Module]:
    first = embedding()
    return [first, Half(), Half(), Hiding(first)]


def peeking() -> list[nn.Module]:
    """Have the last layer look at the first one's weight from a list, without a gradient."""
    first, last = nn.Embedding(256, WIDTH), head()
    last.seen = [first.weight.detach()]
    return [first, Half(), Half(), last]


def renormed() -> list[nn.Module]:
    return [nn.Embedding(256, WIDTH, max_norm=0.5), Half(), Half(), head()]


def half_precision() -> list[nn.Module]:
    """What is shared, made in bf16."""
    mask = torch.ones(16, 16).bfloat16()
    layers = [nn.BatchNorm1d(WIDTH).bfloat16(), nn.BatchNorm1d(WIDTH).bfloat16()]
    for layer in layers:
        layer.register_buffer("mask", mask)
    layers[1].weight = layers[0].weight
    return layers


def with_one_memory(*, how: str) -> Sequence[nn.Module]:
    """Layers 1 and 2 have some memory in common, or one layer has with itself."""
    one, other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
    weight = one.weight.data
    if how == "the same view":
        other.weight.data = weight
    elif how == "transposed":
        other.weight.data = weight.T
    elif how == "rows":
        other.bias.data = weight[3]
    elif how == "a buffer":
        other.register_buffer("copy", weight)
    elif how == "one is frozen":
        other.weight.data = weight
        other.weight.requires_grad_(False)
    elif how == "in one layer":
        one.bias.data = weight[0]
    elif how == "with itself":
        one.bias.data = torch.zeros(1).expand(WIDTH)
    elif how == "columns apart":
        both = torch.randn(WIDTH, 2 * WIDTH)
        one.weight.data, other.weight.data = both[:, :WIDTH], both[:, WIDTH:]
    else:
        assert how == "both are frozen"
        other.weight.data = weight
        for layer in (one, other):
            layer.weight.requires_grad_(False)
    return [embedding(), one, other, head()]


Functions = list[Callable[[], nn.Module]]


def premade() -> Functions:
    block = Half()
    return [embedding, lambda: block, lambda: block, head]


def premade_parameter() -> Functions:
    weight = nn.Parameter(torch.randn(WIDTH, WIDTH))
    return [embedding, lambda: Half(weight), lambda: Half(weight), head]


def premade_memory() -> Functions:
    memory = torch.randn(WIDTH, WIDTH).numpy()
    return [
        embedding,
        lambda: Half(nn.Parameter(torch.from_numpy(memory))),
        lambda: Half(nn.Parameter(torch.from_numpy(memory))),
        head,
    ]


def made_on_demand() -> Functions:
    """The first call makes what all others get."""
    block = functools.cache(Half)
    return [embedding, block, block, head]


def one_after_the_other() -> Functions:
    blocks = iter([Half(), Half()])
    return [embedding, lambda: next(blocks), lambda: next(blocks), head]


def mixed() -> list[nn.Module | Callable[[], nn.Module]]:
    block = Half()
    return [embedding(), block, lambda: block, head()]


def functions_with_one_mask() -> Functions:
    mask = torch.ones(16, 16, dtype=torch.bool).tril()
    return [embedding, lambda: Masked(mask), lambda: Masked(mask), head]


@functools.cache
def causal_mask(size: int) -> torch.Tensor:
    return torch.ones(size, size, dtype=torch.bool).tril()


def functions_with_a_cached_mask() -> Functions:
    return [embedding, lambda: Masked(causal_mask(16)), lambda: Masked(causal_mask(16)), head]


def functions_with_a_frozen_layer() -> Functions:
    block = Half().requires_grad_(False)
    return [embedding, lambda: block, Half, head]


class Measured(Half):
    """Looks at its initial weights, which there must be for that."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = self.linear.weight.abs().max().item()


def new_each_time() -> Functions:
    return [embedding, Half, Measured, head]
