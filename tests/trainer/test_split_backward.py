"""A backward pass in two halves gives what one pass gives, bit for bit, and reckons nothing twice."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipelinejob.spec import GptModel, Precision
from pipelinejob_trainer.models import LayerEntry
from pipelinejob_trainer.models.gpt import Block
from pipelinejob_trainer.stage import Stage
from pipelines import CPU


class Used(nn.Module):
    """A layer that uses its one weight twice, so that no junction is its only one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ self.weight) @ self.weight


class Through(nn.Module):
    """A layer without parameters."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.gelu(x)


class Transposed(nn.Module):
    """A layer whose weight joins behind a transposition and a product of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))
        self.gain = nn.Parameter(torch.randn(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, (self.weight * self.gain).T)


LAYERS = {
    "linear": lambda: [nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8)],
    "no parameters": lambda: [Through()],
    "a weight used twice": lambda: [nn.Linear(8, 8), Used(), nn.Linear(8, 8)],
    "a weight behind a branch": lambda: [Transposed(), Through(), nn.Linear(8, 8, bias=False)],
    "transformer": lambda: [Block(GptModel(num_layers=1, hidden_size=8, num_heads=2, dropout=0.3)) for _ in range(2)],
}


def stage_of(layers, *, is_split, is_first=False, recompute=False, precision=Precision.FP32):
    entries = [LayerEntry(index=i, name=f"layer-{i}", module=layer) for i, layer in enumerate(layers)]
    return Stage(
        entries,
        is_first=is_first,
        is_last=False,
        precision=precision,
        device=CPU,
        is_split=is_split,
        recompute=recompute,
    )


def gradients(make, *, is_split, **options):
    torch.manual_seed(3)
    stage = stage_of(make(), is_split=is_split, **options)
    received = torch.arange(10).view(2, 5) if options.get("is_first") else torch.randn(2, 5, 8)
    returned = []
    for k in range(3):
        output = stage.forward(k, received.clone(), seed=k)
        gradient = torch.ones_like(output) * (k + 1)
        if is_split:
            returned.append(stage.backward_input(k, gradient))
        else:
            returned.append(stage.backward(k, gradient))
    if is_split:
        for k in range(3):
            stage.backward_weight(k)
    assert stage.num_in_flight == 0
    return returned, {name: parameter.grad for name, parameter in stage.named_parameters()}


def assert_same(halves, whole):
    for one, other in zip(halves[0], whole[0], strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    assert halves[1].keys() == whole[1].keys()
    assert [name for name in whole[1] if not torch.equal(halves[1][name], whole[1][name])] == []


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("recompute", [False, True])
def test_two_halves_give_the_bits_of_one_pass(name, recompute):
    make = LAYERS[name]

    assert_same(
        gradients(make, is_split=True, recompute=recompute), gradients(make, is_split=False, recompute=recompute)
    )


@pytest.mark.parametrize("name", ["linear", "transformer"])
def test_two_halves_give_the_bits_of_one_pass_in_bf16(name):
    make, bf16 = LAYERS[name], Precision.BF16

    assert_same(gradients(make, is_split=True, precision=bf16), gradients(make, is_split=False, precision=bf16))


@pytest.mark.parametrize("more", [[], [lambda: nn.Linear(8, 8), Through]])
def test_the_first_stage_gives_no_gradient_and_leaves_its_first_layer_to_the_second_half(more):
    def make():
        return [nn.Embedding(16, 8), *(each() for each in more)]

    halves = gradients(make, is_split=True, is_first=True)

    assert halves[0] == [None, None, None]
    assert_same(halves, gradients(make, is_split=False, is_first=True))


def test_the_first_half_touches_no_parameter_and_the_second_walks_no_way():
    torch.manual_seed(1)
    walked = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, gradient):
            walked.append("way")
            return gradient

    class Marked(nn.Module):
        def forward(self, x):
            return Watched.apply(x)

    linear = nn.Linear(8, 8)
    stage = stage_of([Marked(), linear, Marked()], is_split=True)
    output = stage.forward(0, torch.randn(2, 8))

    stage.backward_input(0, torch.ones_like(output))
    assert walked == ["way", "way"]
    assert linear.weight.grad is None

    stage.backward_weight(0)
    assert walked == ["way", "way"]
    assert linear.weight.grad is not None
