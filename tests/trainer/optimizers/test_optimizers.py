"""SGD, Adafactor and Muon against torch's own, parameter groups, and what a checkpoint of another optimiser is."""

import math
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from pipelinejob.costs.layers import analytic_profile
from pipelinejob.spec.job import Device, GptModel, Model, ScheduleSpec, Training
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.checkpoint import snapshot
from pipelinejob_trainer.models.part import build_part
from pipelinejob_trainer.optimizers.choice import hidden_matrices, make_optimizer
from pipelinejob_trainer.optimizers.groups import check_groups, freeze
from pipelinejob_trainer.optimizers.optimizer import Optimizer
from support.training.gangs import plan

SHAPES = {"wide": (6, 40), "tall": (40, 6), "square": (8, 8), "vector": (7,), "scalar": (), "cube": (2, 3, 5)}
MATRICES = ("wide", "tall", "square")
TINY = plan(4).model


def training(**settings: Any) -> Training:
    return Training.model_validate({"steps": 10, "weightDecay": 0.1, **settings})


def trained_both_ways(
    settings: Training, reference: Any, *, hidden: Iterable[str] = (), shapes: Mapping[str, tuple[int, ...]] = SHAPES
) -> tuple[Optimizer, dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Train the same parameters by the same gradients, of which one is missing once; theirs come after clipping."""
    torch.manual_seed(0)
    start = {name: torch.randn(shape) for name, shape in shapes.items()}
    ours, theirs = ({name: nn.Parameter(each.clone()) for name, each in start.items()} for _ in range(2))
    optimizer, others = make_optimizer(settings, ours.items(), hidden=tuple(hidden)), reference(theirs)
    for step in range(5):
        for name, value in start.items():
            gradient = torch.randn_like(value)
            is_missing = step == 2 and name == "tall"
            ours[name].grad = None if is_missing else gradient
            theirs[name].grad = None if is_missing else gradient * 0.5
        optimizer.step(rate=0.02, gradient_factor=0.5)
        for each in others:
            each.step()
    return optimizer, ours, theirs


def grouped(of: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
    matrices = [each for each in of.values() if each.dim() > 1]
    rest = [each for each in of.values() if each.dim() <= 1]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]


@pytest.mark.parametrize(
    "sgd", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}], ids=["plain", "momentum", "nesterov"]
)
def test_sgd_is_torchs_to_the_last_bit(sgd: dict[str, Any]) -> None:
    optimizer, ours, theirs = trained_both_ways(
        training(optimizer="SGD", sgd=sgd),
        lambda of: [torch.optim.SGD(grouped(of), lr=0.02, foreach=True, **sgd)],
    )

    assert all(torch.equal(ours[name], theirs[name]) for name in SHAPES)
    assert optimizer.state_bytes == (sum(each.nbytes for each in ours.values()) if sgd else 0)


def test_adafactor_is_torchs_but_for_the_last_bit() -> None:
    optimizer, ours, theirs = trained_both_ways(
        training(optimizer="Adafactor"), lambda of: [torch.optim.Adafactor(grouped(of), lr=0.02, foreach=False)]
    )

    for name in SHAPES:
        torch.testing.assert_close(ours[name], theirs[name], rtol=2e-6, atol=1e-7)
    assert optimizer.states["row_variance"]["wide"].shape == (6, 1)
    assert optimizer.states["column_variance"]["cube"].shape == (2, 1, 5)
    assert optimizer.state_bytes == 4 * (46 + 46 + 16 + 7 + 1 + (6 + 10))


def test_adafactors_settings_are_torchs() -> None:
    given = {"beta2Decay": -0.5, "epsilon1": 1e-6, "epsilon2": 0.5, "clipThreshold": 1.5}
    _, ours, theirs = trained_both_ways(
        training(optimizer="Adafactor", adafactor=given),
        lambda of: [
            torch.optim.Adafactor(grouped(of), lr=0.02, beta2_decay=-0.5, eps=(1e-6, 0.5), d=1.5, foreach=False)
        ],
    )

    for name in SHAPES:
        torch.testing.assert_close(ours[name], theirs[name], rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize(("scale", "theirs_"), [("MatchAdamW", "match_rms_adamw"), ("Original", "original")])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_torchs_to_the_last_bit_and_the_rest_is_adamws(scale: str, theirs_: str, nesterov: bool) -> None:
    def reference(of: Mapping[str, nn.Parameter]) -> list[torch.optim.Optimizer]:
        rest = {name: each for name, each in of.items() if name not in MATRICES}
        muon = torch.optim.Muon(
            [of[name] for name in MATRICES], lr=0.02, momentum=0.9, nesterov=nesterov, adjust_lr_fn=theirs_
        )
        return [muon, torch.optim.AdamW(grouped(rest), lr=0.02, betas=(0.8, 0.9), eps=1e-6)]

    optimizer, ours, theirs = trained_both_ways(
        training(
            optimizer="Muon",
            muon={"momentum": 0.9, "nesterov": nesterov, "scale": scale},
            adamW={"beta1": 0.8, "beta2": 0.9, "epsilon": 1e-6},
        ),
        reference,
        hidden=MATRICES,
    )

    assert all(torch.equal(ours[name], theirs[name]) for name in MATRICES)
    for name in SHAPES:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-7)
    assert optimizer.states["gradient_mean"].keys() == set(MATRICES)
    assert optimizer.states["second_moment"].keys() == SHAPES.keys() - set(MATRICES)


def test_muon_updates_matrices_of_blocks_only() -> None:
    tied = Model(gpt=GptModel(num_layers=2, hidden_size=16, num_heads=2, tie_embeddings=True))
    whole = build_part(tied, plan(4).data, stretches=[(0, 4)], seed=0)
    last = build_part(tied, plan(4).data, stretches=[(2, 4)], seed=0)

    found = hidden_matrices(whole, 4)

    assert found == {
        f"layers.{block}.{name}.weight"
        for block in (1, 2)
        for name in ("qkv", "attention_out", "feed_forward_in", "feed_forward_out")
    }
    assert hidden_matrices(last, 4) == {name for name in found if name.startswith("layers.2.")}


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD", "Adafactor", "Muon"])
def test_parameters_without_elements_do_no_harm(optimizer: str) -> None:
    empty = {"rows": nn.Parameter(torch.zeros(0, 3)), "columns": nn.Parameter(torch.zeros(3, 0))}
    scale = {"muon": {"scale": "Original"}} if optimizer == "Muon" else {}
    made = make_optimizer(training(optimizer=optimizer, **scale), empty.items(), hidden=tuple(empty))
    for each in empty.values():
        each.grad = torch.zeros_like(each)

    made.step(rate=0.1)

    assert {int(count) for count in made.counts.values()} == {1}


@pytest.mark.parametrize("optimizer", ["Adafactor", "Muon"])
def test_complex_parameters_are_refused_by_name(optimizer: str) -> None:
    weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))

    with pytest.raises(UserError, match=rf"spec\.training\.optimizer {optimizer}: layers\.1\.a is complex, and torch"):
        make_optimizer(training(optimizer=optimizer), [("layers.1.a", weight)], hidden=["layers.1.a"])


def test_the_first_group_that_matches_counts() -> None:
    _, ours, theirs = trained_both_ways(
        training(
            groups=[
                {"match": "wi*", "learningRateScale": 0.5},
                {"match": "w*", "weightDecay": 0.9},
                {"match": "vec?or", "weightDecay": 0.3},
            ]
        ),
        lambda of: [
            torch.optim.AdamW(
                [
                    {"params": [of["wide"]], "lr": 0.01, "weight_decay": 0.1},
                    {"params": [of["vector"]], "weight_decay": 0.3},
                    {"params": [of[name] for name in ("tall", "square", "cube")], "weight_decay": 0.1},
                    {"params": [of["scalar"]], "weight_decay": 0.0},
                ],
                lr=0.02,
                betas=(0.9, 0.95),
            )
        ],
    )

    for name in SHAPES:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-7)


def test_frozen_parameters_have_no_state_and_a_tied_one_is_frozen_everywhere() -> None:
    tied = Model(gpt=GptModel(num_layers=2, hidden_size=16, num_heads=2, tie_embeddings=True))
    part = build_part(tied, plan(4).data, stretches=[(0, 4)], seed=0)
    settings = training(groups=[{"match": "layers.0.*", "frozen": True}, {"match": "*bias", "frozen": True}])

    freeze(part.named_parameters(), settings.groups)
    optimizer = make_optimizer(settings, part.named_parameters().items())

    modules = [layer.module for layer in part.layers]
    assert not modules[3].logits.weight.requires_grad
    assert modules[3].norm.weight.requires_grad
    assert all(not name.startswith("layers.0.") and not name.endswith("bias") for name in optimizer.parameters)
    assert all(of.keys() == optimizer.parameters.keys() for of in optimizer.states.values())


@pytest.mark.parametrize(
    ("groups", "why"),
    [
        (
            ["layers.9.*"],
            r"groups\[0\]\.match 'layers\.9\.\*' matches no parameter of any stage; names are like layers",
        ),
        (["*", "layers.0.*"], r"groups\[1\]\.match 'layers\.0\.\*' matches only what an earlier group has taken"),
    ],
)
def test_a_group_without_parameters_is_refused_by_name(groups: list[str], why: str) -> None:
    settings = training(groups=[{"match": match, "weightDecay": 0.0} for match in groups])
    alone: Any = SimpleNamespace(sum=lambda values: values.tolist())

    with pytest.raises(UserError, match=why):
        check_groups(settings.groups, ["layers.0.weight", "layers.1.weight"], alone)


def test_a_group_that_another_rank_matches_is_none_that_matches_nothing() -> None:
    settings = training(groups=[{"match": "layers.9.*", "weightDecay": 0.0}])
    two: Any = SimpleNamespace(sum=lambda values: (values + 1).tolist())

    check_groups(settings.groups, ["layers.0.weight"], two)


def state_of(settings: Training) -> tuple[Any, Optimizer]:
    part = build_part(TINY, plan(4).data, stretches=[(0, 4)], seed=0)
    freeze(part.named_parameters(), settings.groups)
    return part, make_optimizer(settings, part.named_parameters().items(), hidden=hidden_matrices(part, 4))


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD", "Adafactor", "Muon"])
def test_a_snapshot_restores_every_optimizer(optimizer: str) -> None:
    settings = training(optimizer=optimizer, **({"sgd": {"momentum": 0.9}} if optimizer == "SGD" else {}))
    part, before = state_of(settings)
    for parameter in part.named_parameters().values():
        parameter.grad = torch.randn_like(parameter)
    before.step(rate=0.1)
    taken = snapshot.take(part, before, step=1).tensors
    other, after = state_of(settings)

    assert snapshot.restore(other, after, taken) == ()

    again = snapshot.take(other, after, step=1).tensors
    assert taken.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in taken.items())


def test_adapters_are_restored_without_the_parameters_that_no_checkpoint_keeps() -> None:
    settings = training(lora={"targets": ["qkv"]})
    part, other = (build_part(TINY, plan(4).data, stretches=[(0, 4)], seed=0, lora=settings.lora) for _ in range(2))
    before, after = (make_optimizer(settings, each.named_parameters().items()) for each in (part, other))
    for tensor in snapshot.take(part, before, step=1).tensors.values():
        tensor.add_(1)
    taken = snapshot.take(part, before, step=1).tensors

    assert snapshot.restore(other, after, taken) == ()

    again = snapshot.take(other, after, step=1).tensors
    assert 0 < sum(name.startswith("parameter/") for name in taken) < len(part.named_parameters())
    assert all(torch.equal(tensor, again[name]) for name, tensor in taken.items())


def test_a_checkpoint_of_another_optimizer_is_refused_by_name() -> None:
    part, adamw = state_of(training())
    taken = snapshot.take(part, adamw, step=1).tensors
    other, sgd = state_of(training(optimizer="SGD", sgd={"momentum": 0.9}))

    with pytest.raises(
        UserError, match=r"it keeps a momentum of layers\.0\.token\.weight, and the checkpoint has none"
    ):
        snapshot.restore(other, sgd, taken)


def test_what_was_frozen_begins_anew() -> None:
    part, frozen = state_of(training(groups=[{"match": "layers.0.*", "frozen": True}]))
    taken = snapshot.take(part, frozen, step=1).tensors
    other, thawed = state_of(training())

    assert snapshot.restore(other, thawed, taken) == ("layers.0.token.weight", "layers.0.position.weight")


def test_groups_are_updated_in_pieces_of_a_megabyte_whatever_their_order() -> None:
    large = {str(number): (300, 1000) for number in range(3)}
    _, ours, theirs = trained_both_ways(
        training(), lambda of: [torch.optim.AdamW(grouped(of), lr=0.02, betas=(0.9, 0.95))], shapes=large
    )

    assert all(math.isfinite(float(each.detach().sum())) for each in ours.values())
    for name in large:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-7)


KINDS = {
    "AdamW": {"optimizer": "AdamW"},
    "SGD": {"optimizer": "SGD"},
    "momentum": {"optimizer": "SGD", "sgd": {"momentum": 0.9}},
    "Adafactor": {"optimizer": "Adafactor"},
    "Muon": {"optimizer": "Muon"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_planner_counts_each_layers_state_to_the_byte(kind: str) -> None:
    settings, sizes = training(**KINDS[kind]), Model(gpt=GptModel(num_layers=2, hidden_size=32, num_heads=4))
    data, schedule = plan(4).data, ScheduleSpec(micro_batches=2, micro_batch_size=2)
    part = build_part(sizes, data, stretches=[(0, 4)], seed=0)
    optimizer = make_optimizer(settings, part.named_parameters().items(), hidden=hidden_matrices(part, 4))

    counted = analytic_profile(sizes, data, schedule, settings, device=Device.CPU).layers

    for layer, cost in enumerate(counted):
        held = sum(
            tensor.nbytes
            for of in optimizer.states.values()
            for name, tensor in of.items()
            if name.startswith(f"layers.{layer}.")
        )
        few = 4 * 2 * 32 if kind == "Adafactor" else 0  # one column factor of queries, keys and values, not three
        assert held <= cost.optimizer_bytes <= held + few
    assert {each.optimizer_s > 0 for each in counted} == {True}
