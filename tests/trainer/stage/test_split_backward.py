"""A backward pass in two halves gives what one pass gives, bit for bit, and reckons nothing twice."""

import pytest
import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pipelinejob.spec.job import GptModel, Precision
from pipelinejob_trainer.base.errors import LayerError
from pipelinejob_trainer.models.gpt import Block
from pipelinejob_trainer.models.part import LayerEntry
from pipelinejob_trainer.stage.backward.autograd_engine import accumulate, capture
from pipelinejob_trainer.stage.stage import Stage
from support.training.pipelines import CPU


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
    return returned, {
        name: parameter.grad for name, parameter in stage.named_parameters() if parameter.grad is not None
    }


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


class Recurrent(nn.Module):
    """A layer whose parameters join at nodes with several outputs, and at several nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.GRU(8, 8, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs, last = self.cells(x)
        return outputs + last.transpose(0, 1)


class TwoWays(torch.autograd.Function):
    """One operation with a weight and two outputs."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x * weight, x + weight

    @staticmethod
    def backward(ctx, product, total):
        x, weight = ctx.saved_tensors
        return product * weight + total, (product * x + total).sum((0, 1))


class Custom(nn.Module):
    """A layer of a user's own operation. `uses` are its outputs that are used."""

    def __init__(self, uses=(0, 1)) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8))
        self.uses = uses

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = TwoWays.apply(x, self.weight)
        return sum(outputs[use] for use in self.uses)


class Checkpointed(nn.Module):
    """A layer that recomputes by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)


class PartlyTwice(nn.Module):
    """A layer of whose weight, joined aside, one factor joins once more."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(8))
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, torch.tanh(self.weight * self.gain)) * self.gain


ODD = {
    "a weight that joins aside and once more": lambda: [nn.Linear(8, 8), PartlyTwice(), nn.Linear(8, 8)],
    "recurrent": lambda: [nn.Linear(8, 8), Recurrent(), nn.Linear(8, 8)],
    "a user's operation": lambda: [Custom(), nn.Linear(8, 8), Custom()],
    "an output that nobody uses": lambda: [nn.Linear(8, 8), Custom(uses=(1,)), Custom(uses=(0,))],
    "a checkpoint inside": lambda: [nn.Linear(8, 8), Checkpointed(), nn.Linear(8, 8)],
    "normalised weights": lambda: [nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 8)],
    "frozen weights": lambda: [nn.Linear(8, 8).requires_grad_(False), nn.Linear(8, 8)],
    "only frozen weights": lambda: [nn.Linear(8, 8).requires_grad_(False), Through()],
}


@pytest.mark.parametrize("name", ODD)
def test_odd_graphs_give_the_bits_of_one_pass(name):
    make = ODD[name]

    assert_same(gradients(make, is_split=True), gradients(make, is_split=False))


def test_after_the_first_half_only_what_the_second_needs_is_held():
    """Of a block: the inputs of its linear layers and norms; not the attention's and the gelu's."""
    stage = stage_of([Block(GptModel(num_layers=1, hidden_size=8, num_heads=2))], is_split=True)
    parameters = {each.untyped_storage().data_ptr() for each in stage.module.parameters()}
    output = stage.forward(0, torch.randn(2, 5, 8))
    boxes = list(stage._in_flight[0].saved._boxes)

    def held_rows():
        """Count what is held, in activations as large as what goes through the block, statistics aside."""
        held = {box.tensor.untyped_storage() for box in boxes if box.tensor is not None}
        sizes = {each.data_ptr(): each.nbytes() for each in held if each.data_ptr() not in parameters}
        return sum(sizes.values()) // (2 * 5 * 8 * 4)

    # two norms' inputs and outputs, queries and keys and values, mixed heads, four wide before the
    # gelu and four after
    assert held_rows() == 4 + 3 + 1 + 4 + 4
    stage.backward_input(0, torch.ones_like(output))
    assert held_rows() == 4 + 1 + 4
    stage.backward_weight(0)
    assert stage.num_in_flight == 0


def test_a_tensor_changed_in_place_after_its_use_is_an_error_in_halves_too():
    class Careless(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.tanh(x)
            z = y * 2
            y.add_(1)
            return z

    stage = stage_of([nn.Linear(8, 8), Careless()], is_split=True)
    output = stage.forward(0, torch.randn(2, 8))

    with pytest.raises(LayerError, match=r"layer 1 \(Careless\) raised ChangedInPlaceError: .* changed in place"):
        stage.backward_input(0, torch.ones_like(output))


def test_the_engine_is_called_as_torch_calls_it():
    x, weight = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    gradient = torch.randn(3)
    expected = torch.autograd.grad(torch.tanh(x * weight), (x, weight), gradient)

    y = torch.tanh(x * weight)
    assert torch.equal(capture([get_gradient_edge(y)], [gradient], [get_gradient_edge(x)])[0], expected[0])
    accumulate([get_gradient_edge(y)], [gradient], [weight])
    assert x.grad is None
    assert torch.equal(weight.grad, expected[1])
    with pytest.raises(RuntimeError, match="shape"):
        accumulate([get_gradient_edge(torch.tanh(x))], [torch.randn(4)])
