"""Whole runs of two stages and two replicas in halves, against torch's own optimisers in a plain loop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipelinejob.contract.plan import Plan
from pipelinejob.spec.job import Data, Model, ScheduleName, ScheduleSpec
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.training.preparation import Preparation
from support.training.gangs import TINY, plan
from support.training.masks import Masked, masked
from support.training.threadgangs import train, train_plainly

Named = dict[str, nn.Parameter]
HIDDEN = tuple(f"layers.{layer}.{name}.weight" for layer in (1, 2) for name in ("up", "down"))


def job(text: Path, **training: Any) -> Plan:
    return plan(
        2,
        2,
        replicas=2,
        model=Model(entrypoint="layers.poisoned_models:layers", num_layers=4),
        data=Data(paths=(str(text),), sequence_length=8),
        schedule=ScheduleSpec(name=ScheduleName.ZB_H1, micro_batches=2, micro_batch_size=2),
        training={"steps": 5, "learning_rate": 0.05, "warmup_steps": 1, "clip_norm": 0.5, **training},
    )


@pytest.fixture
def mild_text(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.write_bytes(bytes((i * i * 31 + i // 7) % 250 for i in range(20_000)))
    return path


def split(of: Named) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    return [each for each in of.values() if each.dim() > 1], [each for each in of.values() if each.dim() <= 1]


def adamw(of: Named) -> list[torch.optim.Optimizer]:
    matrices, vectors = split(of)
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return [torch.optim.AdamW(groups, betas=(0.9, 0.95))]


def sgd(of: Named) -> list[torch.optim.Optimizer]:
    matrices, vectors = split(of)
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return [torch.optim.SGD(groups, lr=1.0, momentum=0.8, nesterov=True)]


def adafactor(of: Named) -> list[torch.optim.Optimizer]:
    matrices, vectors = split(of)
    return [torch.optim.Adafactor([{"params": matrices, "weight_decay": 0.1}, {"params": vectors}])]


def muon(of: Named) -> list[torch.optim.Optimizer]:
    rest = {name: each for name, each in of.items() if name not in HIDDEN}
    return [
        torch.optim.Muon([of[name] for name in HIDDEN], weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        *adamw(rest),
    ]


def groups(of: Named) -> list[torch.optim.Optimizer]:
    frozen = [each for name, each in of.items() if name.startswith("layers.0.") or name == "layers.2.up.bias"]
    for each in frozen:
        each.requires_grad_(False)
    slow = [of["layers.3.weight"], of["layers.3.bias"]]
    rest = {name: each for name, each in of.items() if each.requires_grad and not name.startswith("layers.3.")}
    matrices, vectors = split(rest)
    return [
        torch.optim.AdamW(
            [
                {"params": slow, "weight_decay": 0.3, "scale": 0.1},
                {"params": matrices, "weight_decay": 0.1},
                {"params": vectors, "weight_decay": 0.0},
            ],
            betas=(0.9, 0.95),
        )
    ]


RUNS: dict[str, tuple[dict[str, Any], Callable[[Named], list[torch.optim.Optimizer]]]] = {
    "AdamW": ({}, adamw),
    "SGD": ({"optimizer": "SGD", "sgd": {"momentum": 0.8, "nesterov": True}, "decay": {"kind": "Linear"}}, sgd),
    "Adafactor": ({"optimizer": "Adafactor", "decay": {"kind": "Constant"}}, adafactor),
    "Muon": ({"optimizer": "Muon", "decay": {"kind": "WSD", "decay_steps": 2}}, muon),
    "groups": (
        {
            "groups": [
                {"match": "layers.[0]*", "frozen": True},
                {"match": "layers.2.up.bias", "frozen": True},
                {"match": "layers.3.*", "learning_rate_scale": 0.1, "weight_decay": 0.3},
            ]
        },
        groups,
    ),
}
# Adam divides by the gradient's size, Muon rounds to bf16 what it iterates: both make much of last
# bits.
BOUNDS = {"SGD": 1e-5, "Muon": 2e-2}


@pytest.mark.parametrize("is_masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_ends_with_the_weights_of_a_plain_loop(
    mild_text: Path, tmp_path: Path, name: str, is_masked: bool
) -> None:
    settings, optimizers = RUNS[name]
    wanted = job(mild_text, **settings)
    mask = masked if is_masked else (lambda targets: targets)
    losses, weights = train_plainly(wanted, optimizers, mask=mask)

    def change(prepared: Preparation) -> None:
        if is_masked and prepared.batches is not None:
            prepared.batches = Masked(batches=prepared.batches)  # type: ignore[assignment]

    trained = train(wanted, tmp_path / "run", change=change)

    bound = BOUNDS.get(name, 1e-3)
    assert [record.loss for record in trained.steps] == pytest.approx(losses, rel=bound)
    for parameter, expected in weights.items():
        error = (trained.weight(parameter) - expected).abs().max() / expected.abs().max()
        assert float(error) < bound, parameter
    if name == "groups":
        assert "updates/layers.0.table.weight" not in trained.checkpoint
        assert "updates/layers.2.up.bias" not in trained.checkpoint


def test_a_batch_that_counts_nothing_is_skipped_and_said(
    mild_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = job(mild_text, optimizer="SGD")
    _, weights = train_plainly(
        wanted,
        lambda of: [torch.optim.SGD([{"params": split(of)[0], "weight_decay": 0.1}, {"params": split(of)[1]}])],
        steps=[(1, 1), (2, 2), (4, 4), (5, 5)],
        mask=masked,
    )

    def change(prepared: Preparation) -> None:
        if prepared.batches is not None:
            prepared.batches = Masked(batches=prepared.batches, counts_nothing=frozenset({3}))  # type: ignore[assignment]

    trained = train(wanted, tmp_path / "run", change=change)

    assert [record.skipped for record in trained.steps] == [None, None, "NothingCounts", None, None]
    assert trained.steps[2].loss == trained.steps[1].loss
    assert "step 3: skipped, as none of its targets counts: all are -100" in capsys.readouterr().out
    for parameter, expected in weights.items():
        torch.testing.assert_close(trained.weight(parameter), expected, rtol=1e-5, atol=1e-6)


def test_a_group_that_no_rank_has_is_refused(mild_text: Path, tmp_path: Path) -> None:
    wanted = job(mild_text, groups=[{"match": "layers.3.weigth", "frozen": True}])

    with pytest.raises(UserError, match=r"spec\.training\.groups\[0\]\.match 'layers\.3\.weigth' matches no parameter"):
        train(wanted, tmp_path / "run")


def test_a_preflight_knows_what_is_frozen(mild_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frozen = [{"match": "layers.0.*", "frozen": True}, {"match": "*.norm.*", "frozen": True}]
    wanted = job(mild_text, preflight=True, steps=1, groups=frozen).model_copy(update={"model": TINY})

    train(wanted, tmp_path / "run")

    assert "preflight: one step's gradients agree with a single process's" in capsys.readouterr().out
