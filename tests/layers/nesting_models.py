"""Layers that hand nestings to each other: random ones, and each of the ways in which they can be odd."""

import random
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

WIDTH = 8


class Pair(NamedTuple):
    """Two things by name."""

    one: Any
    other: Any


@dataclass
class Box:
    """One thing by name, and a constant."""

    inside: Any
    label: str = "box"


class Stirs(nn.Module):
    """Takes any nesting, and gives another one that its dice choose: every float tensor goes into the gradient."""

    def __init__(self, seed: int, *, is_first: bool, is_last: bool) -> None:
        super().__init__()
        self.dice, self.is_first, self.is_last = seed, is_first, is_last
        self.inner = nn.Embedding(256, WIDTH) if is_first else nn.Linear(WIDTH, 256 if is_last else WIDTH)

    def forward(self, given):
        dice = random.Random(self.dice)
        if self.is_first:
            x, rest = self.inner(given), [given % 7]
        else:
            found = tensors_in(given)
            streams = [each for each in found if each.is_floating_point() and each.dim() == 3 and each.numel()]
            rest = [each for each in found if not each.is_floating_point() and not each.is_complex()]
            x = sum(each.float() * (0.5 + 0.1 * place) for place, each in enumerate(streams))
            for each in found:
                if each.is_complex():
                    x = x + 0.1 * torch.view_as_real(each.resolve_conj()).sum().float()
                elif each.is_floating_point() and not (each.dim() == 3 and each.numel()):
                    x = x + 0.1 * each.float().sum()
            x = torch.tanh(self.inner(x)) if not self.is_last else self.inner(x)
        return x if self.is_last else self._nested(dice, x, rest)

    def _nested(self, dice, x, rest):
        parts = [x]
        parts += [dice.choice(_ODDITIES)(x, dice) for _ in range(dice.randint(0, 5))]
        parts += rest[:2]
        dice.shuffle(parts)
        while len(parts) > 1 and dice.random() < 0.7:
            first, second, *parts = parts
            parts.append(dice.choice(_CONTAINERS)(first, second))
        return dice.choice([tuple, list, lambda all_: {f"part {n}": each for n, each in enumerate(all_)}])(parts)


_ODDITIES = [
    lambda x, _: x,  # the same tensor again
    lambda x, _: x * 0.5,
    lambda x, _: x.transpose(1, 2).contiguous().transpose(1, 2),
    lambda x, _: x[:, :1].expand_as(x),
    lambda x, _: x.to(torch.float64) * 0.25,
    lambda x, _: x.to(torch.bfloat16),
    lambda x, _: torch.complex(x, 2 * x).conj(),
    lambda x, _: torch.complex(x, 2 * x).conj().imag,
    lambda x, _: x.mean(),
    lambda x, _: x[:, :0],
    lambda x, _: x.sum((0, 2)),  # no sequences in front
    lambda x, _: x.detach() * 2,
    lambda x, _: x > 0,
    lambda x, _: x.argmax(-1).to(torch.int16),
    lambda x, _: torch.zeros((), dtype=torch.bool),
    lambda _, __: None,
    lambda _, dice: dice.choice([1, 2.5, True, "word", float("inf")]),
]
_CONTAINERS = [
    lambda one, other: (one, other),
    lambda one, other: [one, other],
    lambda one, other: {"one": one, "other": other},
    Pair,
    lambda one, other: Box((one, other)),
    lambda one, other: (one, {"deep": [other]}),
]


def tensors_in(given: Any) -> list[torch.Tensor]:
    """Return all tensors, in order, by rules of our own."""
    if isinstance(given, torch.Tensor):
        return [given]
    if isinstance(given, Box):
        return tensors_in(given.inside)
    if isinstance(given, dict):
        return [each for part in given.values() for each in tensors_in(part)]
    if isinstance(given, (tuple, list)):
        return [each for part in given for each in tensors_in(part)]
    return []


def stirring(*, seed: str, depth: str) -> list:
    """Return a model of random nestings."""
    count = int(depth)
    return [
        partial(Stirs, int(seed) * 100 + place, is_first=place == 0, is_last=place == count - 1)
        for place in range(count)
    ]


class Does(nn.Module):
    """A layer that calls a function."""

    def __init__(self, action) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.action = action
        self.passes = 0

    def forward(self, given):
        self.passes += 1
        return self.action(self, given)


class Head(nn.Module):
    """Logits of the first tensor of a nesting."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 256)

    def forward(self, given):
        return self.linear(tensors_in(given)[0])


def _between(give, take=lambda _, given: given) -> list[nn.Module]:
    return [nn.Embedding(256, WIDTH), Does(give), Does(take), Head()]


def changing_structure() -> list[nn.Module]:
    return _between(lambda layer, x: {"x": layer.linear(x), "mask": None if layer.passes < 2 else x > 0})


def changing_constant() -> list[nn.Module]:
    return _between(lambda layer, x: [layer.linear(x), layer.passes])


def changing_shape() -> list[nn.Module]:
    return _between(lambda layer, x: {"x": layer.linear(x), "far": (x[:, : 4 + layer.passes],)})


def changing_gradient() -> list[nn.Module]:
    return _between(lambda layer, x: (layer.linear(x), x.detach() if layer.passes < 2 else x))


def masked() -> list[nn.Module]:
    return _between(lambda layer, x: {"x": layer.linear(x), "mask": x > 0, "nothing": None})


def strange_key() -> list[nn.Module]:
    return _between(lambda layer, x: {"x": layer.linear(x), 3: x})


def local_class() -> list[nn.Module]:
    class Local(NamedTuple):
        x: torch.Tensor

    return _between(lambda layer, x: Local(layer.linear(x)))


def views_changed_in_place() -> list[nn.Module]:
    def give(layer, x):
        x = layer.linear(x)
        return x * 1, x[:, 1:], x

    def take(_, given):
        given[2].mul_(2)
        return given

    return _between(give, take)


class WithPositions(nn.Module):
    """An embedding of tokens and, where they are given, positions."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(256, WIDTH), nn.Embedding(64, WIDTH)

    def forward(self, tokens, *, positions):
        return {"x": self.token(tokens) if positions is None else self.token(tokens) + self.place(positions)}


def with_positions() -> list[nn.Module]:
    return [WithPositions(), Does(lambda layer, given: {"x": layer.linear(given["x"])}), Head()]
