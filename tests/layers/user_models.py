"""Models as a user might bring them, good and bad, for `spec.model.entrypoint`."""

import random
from collections.abc import Callable

import torch
from torch import nn

NOT_A_FUNCTION = 3


class Half(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.linear(x)) + x / 2


def mlp(*, width: str) -> list[nn.Module]:
    return [nn.Embedding(256, int(width)), *(Half(int(width)) for _ in range(3)), nn.Linear(int(width), 256)]


def lazy_mlp(*, width: str) -> list[Callable[[], nn.Module]]:
    size = int(width)
    return [lambda: nn.Embedding(256, size), lambda: Half(size), lambda: nn.Linear(size, 256)]


def with_dropout() -> list[nn.Module]:
    return [nn.Embedding(256, 8), nn.Dropout(0.5), nn.Linear(8, 256)]


def without_parameters_in_front() -> list[nn.Module]:
    return [nn.Identity(), nn.Embedding(256, 8), nn.Linear(8, 256)]


def tied() -> list[nn.Module]:
    embedding, head = nn.Embedding(256, 8), nn.Linear(8, 256, bias=False)
    head.weight = embedding.weight
    return [embedding, Half(8), head]


def no_logits() -> list[nn.Module]:
    return [nn.Embedding(256, 8), nn.Flatten()]


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


class Boxed(nn.Module):
    def forward(self, x: torch.Tensor) -> list[object]:
        return [x, object()]


def returns_pairs() -> list[nn.Module]:
    return [nn.Embedding(256, 8), nn.Linear(8, 256), Pair()]


def returns_objects() -> list[nn.Module]:
    return [nn.Embedding(256, 8), Boxed(), nn.Linear(8, 256)]


def raises() -> list[nn.Module]:
    message = "the weights are on holiday"
    raise ValueError(message)


def returns_number() -> int:
    return 5


def returns_strings() -> list[str]:
    return ["a", "b"]


def makes_numbers() -> list[Callable[[], int]]:
    return [lambda: 5, lambda: 6]


class Nan(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * float("nan")


def makes_nan() -> list[nn.Module]:
    return [nn.Embedding(256, 8), Nan(), nn.Linear(8, 256)]


class Moody(nn.Module):
    """Draws where nobody can make it draw the same again."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * (1 + random.SystemRandom().random())


def moody() -> list[nn.Module]:
    return [nn.Embedding(256, 8), Moody(), nn.Linear(8, 256)]


def wrapped(*, how: str) -> list[nn.Module]:
    """Wrap the middle layer as `how` says; a process group must be there."""
    middle: nn.Module = nn.Sequential(nn.Linear(8, 8))
    if how == "ddp":
        middle = nn.parallel.DistributedDataParallel(middle)
    elif how == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh  # these take seconds
        from torch.distributed.fsdp import fully_shard

        fully_shard(middle[0], mesh=init_device_mesh("cpu", (1,)))
    elif how == "sparse":
        middle = nn.Sequential(nn.Embedding(256, 8, sparse=True))
    elif how == "compile":
        middle = torch.compile(middle)
    else:
        middle[0].compile()
    return [nn.Embedding(256, 8), middle, nn.Linear(8, 256)]


def dropout_in_each_layer() -> list[nn.Module]:
    inner = [nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3)) for _ in range(2)]
    return [nn.Embedding(256, 8), *inner, nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 256))]
