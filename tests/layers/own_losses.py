"""Losses of one's own, good and bad, for `spec.training.loss`, and a model whose last layer returns a dictionary."""

import torch
from torch import nn
from torch.nn import functional

WIDTH = 8
WEIGHT = nn.Parameter(torch.ones(()))
with_parameters = nn.Linear(WIDTH, 1)
as_module = nn.Module()
NOT_A_FUNCTION = 3


class Last(nn.Module):
    """Returns logits, and what a loss may weigh beside them; `extra` is what no border could carry."""

    def __init__(self, *extra) -> None:
        super().__init__()
        self.extra = extra
        self.head, self.beside = nn.Linear(WIDTH, 256), nn.Linear(WIDTH, 1)

    def forward(self, x):
        return {"logits": self.head(x), "beside": (self.beside(x), "any", *self.extra)}


def layers() -> list[nn.Module]:
    return [nn.Embedding(256, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), Last()]


def layers_with_an_object() -> list[nn.Module]:
    return [*layers()[:3], Last(object())]


def mean(output, targets):
    nats = functional.cross_entropy(output["logits"].flatten(0, -2), targets.flatten())
    return nats + output["beside"][0].square().mean()


def total(output, targets):
    nats = functional.cross_entropy(output["logits"].flatten(0, -2), targets.flatten(), reduction="sum")
    return nats + output["beside"][0].square().sum(), (targets != -100).sum()


def drawing(output, targets):
    kept = torch.rand(targets.shape, device=targets.device) > 0.5
    targets.masked_fill_(~kept, -100)  # a copy, so nobody else's
    return functional.cross_entropy(output["logits"].flatten(0, -2), targets.flatten(), ignore_index=-100)


def raises(output, targets):
    message = "no loss today"
    raise ValueError(message)


def returns_all(output, targets):
    return output["logits"]


def returns_nothing(output, targets):
    mean(output, targets)


def returns_a_bad_count(output, targets):
    return mean(output, targets), "many"


def detached(output, targets):
    return mean(output, targets).detach()


def nan(output, targets):
    return mean(output, targets) * float("nan")


def uses_a_parameter(output, targets):
    return mean(output, targets) * WEIGHT


class _Fails(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        message = "no way back from here"
        raise ArithmeticError(message)


def raises_on_the_way_back(output, targets):
    return _Fails.apply(mean(output, targets))
