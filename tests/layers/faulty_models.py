"""Models whose layers raise, each in its own way; layer 2 of four is the one, unless its function says otherwise."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

WIDTH = 8


class Does(nn.Module):
    """A linear layer that does something to its product."""

    def __init__(self, action: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.action = action

    def forward(self, x: torch.Tensor) -> Any:
        return self.action(self.linear(x))


def around(layer: nn.Module) -> list[nn.Module]:
    return [nn.Embedding(256, WIDTH), nn.Linear(WIDTH, WIDTH), layer, nn.Linear(WIDTH, 256)]


class OwnError(BaseException):
    """Not even an Exception."""


class SpeechlessError(Exception):
    def __str__(self) -> str:
        raise OwnError


def _raises(error: BaseException) -> Callable[[torch.Tensor], torch.Tensor]:
    def action(_: torch.Tensor) -> torch.Tensor:
        raise error

    return action


def raises_value_error() -> list[nn.Module]:
    return around(Does(_raises(ValueError("too many moons"))))


def raises_keyboard_interrupt() -> list[nn.Module]:
    return around(Does(_raises(KeyboardInterrupt())))


def raises_its_own_base() -> list[nn.Module]:
    return around(Does(_raises(OwnError("mine"))))


def raises_without_words() -> list[nn.Module]:
    return around(Does(_raises(SpeechlessError())))


def exits() -> list[nn.Module]:
    return around(Does(lambda _: sys.exit(0)))


def leaves() -> list[nn.Module]:
    return around(Does(lambda _: os._exit(0)))


def recurses() -> list[nn.Module]:
    def deeper(x: torch.Tensor) -> torch.Tensor:
        return deeper(x)

    return around(Does(deeper))


def asks_for_a_gpu() -> list[nn.Module]:
    return around(Does(lambda x: x.to("cuda:7")))


def finds_a_nan() -> list[nn.Module]:
    def check(x: torch.Tensor) -> torch.Tensor:
        assert not torch.isnan(x / 0 * 0).any(), "a NaN came by"
        return x

    return around(Does(check))


def has_a_forward_hook_that_raises() -> list[nn.Module]:
    layer = nn.Linear(WIDTH, WIDTH)
    layer.register_forward_hook(lambda *_: 1 / 0)
    return around(layer)


def has_a_wrong_shape() -> list[nn.Module]:
    return around(nn.Linear(WIDTH + 1, WIDTH))


def has_a_wrong_type() -> list[nn.Module]:
    """Layer 3 is given what it cannot take."""
    return around(Does(lambda x: x.double()))


def has_a_small_table() -> list[nn.Module]:
    """Layer 0 has too few rows."""
    return [nn.Embedding(9, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 256)]


def returns_nothing() -> list[nn.Module]:
    return around(Does(lambda _: None))


def has_few_classes() -> list[nn.Module]:
    return [*around(nn.Linear(WIDTH, WIDTH))[:-1], nn.Linear(WIDTH, 9)]


def gives_integers_for_logits() -> list[nn.Module]:
    return [*around(nn.Linear(WIDTH, WIDTH))[:-1], Does(lambda x: x.repeat(1, 1, 32).long())]


def detaches() -> list[nn.Module]:
    return [*around(nn.Linear(WIDTH, WIDTH))[:-1], Does(lambda x: x.detach().repeat(1, 1, 32))]


class RaisesBack(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
        raise ArithmeticError("no way back")


class WrongShapeBack(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient[..., :3]


class TooManyBack(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> Any:
        return gradient, gradient


class ExitsBack(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
        sys.exit("enough")


def raises_on_the_way_back() -> list[nn.Module]:
    return around(Does(RaisesBack.apply))


def gives_a_gradient_of_a_wrong_shape() -> list[nn.Module]:
    return around(Does(WrongShapeBack.apply))


def gives_too_many_gradients() -> list[nn.Module]:
    return around(Does(TooManyBack.apply))


def exits_on_the_way_back() -> list[nn.Module]:
    return around(Does(ExitsBack.apply))


def _hook(_: Any) -> None:
    message = "hooked"
    raise LookupError(message)


def has_a_tensor_hook_that_raises() -> list[nn.Module]:
    def action(x: torch.Tensor) -> torch.Tensor:
        if x.requires_grad:
            x.register_hook(_hook)
        return x

    return around(Does(action))


def has_a_parameter_hook_that_raises() -> list[nn.Module]:
    layer = nn.Linear(WIDTH, WIDTH)
    layer.weight.register_hook(_hook)
    return around(layer)


def has_a_gathering_hook_that_raises() -> list[nn.Module]:
    layer = nn.Linear(WIDTH, WIDTH)
    layer.bias.register_post_accumulate_grad_hook(_hook)
    return around(layer)


def overwrites_what_was_saved() -> list[nn.Module]:
    def action(x: torch.Tensor) -> torch.Tensor:
        y = x.exp()
        z = y * 2
        y.zero_()
        return z

    return around(Does(action))


def keeps_a_graph() -> list[nn.Module]:
    """A state with a graph, which the next micro-batch goes back through a second time."""
    kept: list[torch.Tensor] = []

    def action(x: torch.Tensor) -> torch.Tensor:
        y = x.exp()
        if kept:
            y = y + kept[0]
        elif y.requires_grad:
            kept.append(y)
        return y

    return around(Does(action))


def is_lazy() -> list[nn.Module]:
    return around(nn.LazyLinear(WIDTH))


def is_on_meta() -> list[nn.Module]:
    return around(nn.Linear(WIDTH, WIDTH, device="meta"))


class Untrainable(nn.Linear):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.training = False  # so that it has to be put into training mode

    def train(self, mode: bool = True) -> "Untrainable":
        message = f"mode {mode} is not for me"
        raise TypeError(message)


def refuses_to_train() -> list[nn.Module]:
    return around(Untrainable(WIDTH, WIDTH))


class Secretive(nn.Linear):
    def state_dict(self, *_: Any, **__: Any) -> Any:
        message = "no state for you"
        raise PermissionError(message)


def keeps_its_state_to_itself() -> list[nn.Module]:
    return around(Secretive(WIDTH, WIDTH))


def exits_as_it_is_made() -> list[nn.Module]:
    sys.exit(0)


def makes_layers_that_exit() -> list[Any]:
    return [*around(nn.Linear(WIDTH, WIDTH))[:3], lambda: sys.exit(0)]


class Allocates(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.empty(1 << 48, dtype=torch.uint8)[0]


def runs_out_of_memory() -> list[nn.Module]:
    return around(Allocates())


def all_frozen() -> list[nn.Module]:
    return [layer.requires_grad_(False) for layer in around(nn.Linear(WIDTH, WIDTH))]


def has_no_parameters() -> list[nn.Module]:
    class OneHot(nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return nn.functional.one_hot(tokens, 256).float()

    return [OneHot(), nn.Identity(), nn.Tanh(), nn.Identity()]


class Unused(nn.Embedding):
    """A table with a parameter more, which nothing is reckoned with."""

    def __init__(self) -> None:
        super().__init__(256, WIDTH)
        self.requires_grad_(False)
        self.extra = nn.Parameter(torch.ones(1))


def trains_what_it_does_not_use() -> list[nn.Module]:
    return [Unused(), *all_frozen()[1:]]


def frozen_in_front() -> list[nn.Module]:
    layers = around(nn.Linear(WIDTH, WIDTH))
    for layer in layers[:2]:
        layer.requires_grad_(False)
    return layers


def frozen_in_the_middle() -> list[nn.Module]:
    layers = around(nn.Linear(WIDTH, WIDTH))
    for layer in layers[1:3]:
        layer.requires_grad_(False)
    return layers


def frozen_at_the_end() -> list[nn.Module]:
    layers = around(nn.Linear(WIDTH, WIDTH))
    for layer in layers[2:]:
        layer.requires_grad_(False)
    return layers


def hanging() -> list[nn.Module]:
    """Layer 2 never comes back from its 20th pass."""
    passes = 0

    def never_comes_back(x: torch.Tensor) -> torch.Tensor:
        nonlocal passes
        passes += 1
        while passes >= 20:
            time.sleep(1)
        return x

    return around(Does(never_comes_back))


def hanging_once() -> list[nn.Module]:
    """Layer 2 does not come back from its 40th pass, unless the file that the environment calls HUNG says it has."""
    passes, hung = 0, Path(os.environ["HUNG"])

    def comes_back_once_it_hung(x: torch.Tensor) -> torch.Tensor:
        nonlocal passes
        passes += 1
        if passes == 40 and not hung.exists():
            hung.touch()
            while True:
                time.sleep(1)
        return x

    return around(Does(comes_back_once_it_hung))
