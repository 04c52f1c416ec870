"""The built-in decoder on the real runtime: split as unsplit, counted as made, its auxiliary loss as in one process."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from pipelinejob.costs.layers import analytic_profile
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.job import Data, DecoderModel, Device, Experts, Model, Precision, ScheduleSpec, Training
from pipelinejob_trainer.data.micro_batch import MicroBatch
from pipelinejob_trainer.models.decoder.experts import MixtureOfExperts
from pipelinejob_trainer.models.decoder.layers import Attention, Block
from pipelinejob_trainer.models.part import build_part, num_layers
from pipelinejob_trainer.profile.profile import measure
from support.training.gangs import plan
from support.training.pipelines import Job, Outcome, keep_gradients, run_gloo, run_threads, run_unsplit

DENSE = DecoderModel(
    num_layers=5, hidden_size=16, num_heads=4, num_key_value_heads=2, feed_forward_size=24,
    attention_bias=True, head_norms=True, sliding_window=5,
)  # fmt: skip
SPARSE = DecoderModel(
    num_layers=5, hidden_size=16, num_heads=4, feed_forward_size=24, experts=Experts(num=5, auxiliary_loss=0.1)
)
MODELS = {
    "dense": DENSE,
    "tied": DENSE.model_copy(update={"tie_embeddings": True}),
    "experts": SPARSE,
    "tied experts": SPARSE.model_copy(update={"tie_embeddings": True}),
}
BOUND = 2e-6  # of a gradient's error, relative to the largest entry of its tensor
SCHEDULES = [
    (ScheduleName.ONE_F_ONE_B, 2),
    (ScheduleName.ONE_F_ONE_B, 3),
    (ScheduleName.ZB_H1, 3),
    (ScheduleName.ZB_V, 2),
    (ScheduleName.INTERLEAVED, 2),
    (ScheduleName.DUALPIPE_V, 2),
]


def job(text: Path, model: DecoderModel, **changes: Any) -> Job:
    base = Job(text=text, model=Model(decoder=model), micro_batches=4, unequal_rows=(2, 1, 2, 1), sequence_length=12)
    return replace(base, **changes)


@pytest.mark.parametrize(("name", "stages"), SCHEDULES)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_split_decoder_gives_the_unsplit_ones_gradients(
    text: Path, name: ScheduleName, stages: int, model: DecoderModel
) -> None:
    trained = job(text, model, schedule=name, stages=stages)

    assert_close(run_threads(trained), run_unsplit(trained), bound=BOUND)


@pytest.mark.parametrize("name", [ScheduleName.ONE_F_ONE_B, ScheduleName.ZB_H1])
@pytest.mark.parametrize(
    "changes",
    [{"recompute": True}, {"replicas": 2}, {"precision": Precision.BF16}],
    ids=["recompute", "replicas", "bf16"],
)
@pytest.mark.parametrize("model", [DENSE, SPARSE], ids=["dense", "experts"])
def test_recomputation_replicas_and_bf16_do_too(
    text: Path, name: ScheduleName, changes: dict[str, Any], model: DecoderModel
) -> None:
    trained = job(text, model, schedule=name, stages=2, **changes)

    assert_close(run_threads(trained), run_unsplit(trained), bound=BOUND)


@dataclass(frozen=True, kw_only=True)
class Packed(Job):
    """A job of which each row holds three documents, the first from its middle on."""

    def dataset(self) -> Any:
        data, starts = super().dataset(), (0, 3, 8)
        place = torch.tensor([i - max(s for s in starts if s <= i) + 5 * (i < 3) for i in range(self.sequence_length)])

        def batch(step: int, replica: int, micro_batch: int) -> MicroBatch:
            read = data.batch(step, replica, micro_batch)
            return MicroBatch(read.tokens, read.targets, place.expand(len(read.tokens), -1).clone())

        return SimpleNamespace(batch=batch)


@pytest.mark.parametrize("name", [ScheduleName.ONE_F_ONE_B, ScheduleName.ZB_H1, ScheduleName.DUALPIPE_V])
@pytest.mark.parametrize("recompute", [False, True])
def test_packed_documents_do_too(text: Path, name: ScheduleName, recompute: bool) -> None:
    trained = job(text, DENSE, schedule=name, stages=2, recompute=recompute)
    packed = Packed(**{each.name: getattr(trained, each.name) for each in fields(trained)})

    split = run_threads(packed)

    assert_close(split, run_unsplit(packed), bound=BOUND)
    assert split.losses != pytest.approx(run_unsplit(trained).losses, rel=1e-4)  # documents do part what they see


def test_processes_over_gloo_do_too(text: Path) -> None:
    trained = job(text, MODELS["tied experts"], schedule=ScheduleName.ZB_H1, stages=2, replicas=2)

    assert_close(run_gloo(trained), run_unsplit(trained), bound=BOUND)


@pytest.mark.parametrize(
    "changes",
    [{}, {"schedule": ScheduleName.ZB_H1}, {"recompute": True}, {"schedule": ScheduleName.ZB_H1, "replicas": 2}],
    ids=["whole", "halves", "recompute", "replicas"],
)
def test_the_auxiliary_loss_is_a_summand_of_the_loss(text: Path, changes: dict[str, Any]) -> None:
    """Its gradients are those of loss + coefficient * terms of all blocks, written out for the whole model."""
    trained = job(text, SPARSE, stages=3, **changes)

    split, written_out = run_threads(trained), with_terms_written_out(trained, coefficient=0.1)

    assert_close(split, written_out, bound=BOUND)
    without = run_unsplit(replace(trained, model=Model(decoder=without_term(SPARSE))))
    assert differs(split, without, "layers.2.feed_forward.router.weight", by=0.01)


def test_the_term_is_one_where_no_expert_is_preferred() -> None:
    experts = MixtureOfExperts(Experts(num=4, per_token=4, auxiliary_loss=1.0), hidden=8, inner=8)
    torch.nn.init.zeros_(experts.router.weight)
    for each in (experts.gate_up, experts.down):
        torch.nn.init.normal_(each)
    seen: list[torch.Tensor] = []
    experts.router.register_forward_hook(lambda _, __, logits: seen.append(logits))

    experts(torch.randn(2, 3, 8))

    assert float(term_of(seen[0], per_token=4).detach()) == pytest.approx(1.0)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_parameters_are_counted_exactly(model: DecoderModel) -> None:
    whole = Model(decoder=model.model_copy(update={"head_size": 6, "rope_theta": 100.0}))
    data = Data(corpus="python-stdlib", sequence_length=8)
    layers = list(build_part(whole, data, stretches=[(0, num_layers(whole))], seed=1).layers)
    counted = analytic_profile(whole, data, ScheduleSpec(micro_batches=2), Training(steps=1), device=Device.CPU)

    made = [sum(4 * each.numel() for _, each in layer.named_parameters()) for layer in layers]
    assert [cost.parameter_bytes for cost in counted.layers] == made
    sizes = whole.layer_sizes(8)
    assert sizes is not None
    tied = sizes.tied_parameters
    assert sizes.parameters == sum(made) // 4 - tied
    assert [cost.name for cost in counted.layers] == [layer.name for layer in layers]


def test_it_is_profiled_layer_by_layer_and_what_it_keeps_is_what_was_counted() -> None:
    model = DecoderModel(
        num_layers=2, hidden_size=96, num_heads=4, num_key_value_heads=2, feed_forward_size=256, vocabulary_size=500
    )
    wanted = plan(2, 2, model=Model(decoder=model), data=Data(corpus="python-stdlib", sequence_length=64))
    measured = measure(wanted)
    counted = analytic_profile(wanted.model, wanted.data, wanted.schedule, wanted.training, device=wanted.device)

    assert [layer.name for layer in measured.layers] == ["embedding", "block-0", "block-1", "head"]
    for found, expected in zip(measured.layers, counted.layers, strict=True):
        assert found.parameter_bytes == expected.parameter_bytes
        # Beside what grows with the width: norms' roots, attention's sums, and the tables of
        # turns.
        few = 64 * (8 + 4 * (2 * 2 + 4) * 2) + 2 * 4 * 64 * 24
        assert found.activation_bytes == pytest.approx(expected.activation_bytes, abs=few)


def test_a_window_as_long_as_the_sequence_is_no_window() -> None:
    torch.manual_seed(3)
    narrow, wide = (
        Block(DENSE.model_copy(update={"sliding_window": window, "head_norms": False})) for window in (8, None)
    )
    wide.load_state_dict(narrow.state_dict())
    hidden = torch.randn(2, 8, 16)

    assert torch.equal(narrow(hidden), wide(hidden))
    longer = torch.randn(2, 9, 16)
    assert not torch.equal(narrow(longer)[:, -1], wide(longer)[:, -1])


def test_a_token_depends_on_none_behind_it_nor_outside_its_window_and_document() -> None:
    torch.manual_seed(3)
    attention = Attention(DENSE)
    hidden = torch.randn(1, 12, 16, requires_grad=True)

    def seen_by(query: int, positions: torch.Tensor | None) -> list[int]:
        (gradient,) = torch.autograd.grad(attention(hidden, positions)[0, query].sum(), hidden)
        return gradient[0].abs().sum(-1).nonzero().flatten().tolist()

    two_documents = torch.tensor([[3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 7]])  # the first goes on from an earlier row

    assert seen_by(6, None) == [2, 3, 4, 5, 6]
    assert seen_by(6, two_documents) == [4, 5, 6]
    assert seen_by(11, two_documents) == [7, 8, 9, 10, 11]
    assert seen_by(2, two_documents) == [0, 1, 2]


def with_terms_written_out(trained: Job, *, coefficient: float) -> Outcome:
    """Train the whole model by plain torch: loss plus coefficient times the sum of all blocks' terms."""
    assert trained.model.decoder is not None
    assert trained.model.decoder.experts is not None
    model = Model(decoder=without_term(trained.model.decoder))
    part = build_part(model, trained.data, stretches=[(0, num_layers(model))], seed=trained.seed)
    seen: list[torch.Tensor] = []
    for layer in part.layers:
        if isinstance(layer.module, Block):
            layer.module.feed_forward.router.register_forward_hook(lambda _, __, logits: seen.append(logits))
    outcome = Outcome()
    for step in range(1, trained.steps + 1):
        losses = []
        for sample in range(trained.replicas * trained.micro_batches):
            seen.clear()
            replica, k = divmod(sample, trained.micro_batches)
            stream, targets, _ = trained.dataset().batch(step, replica, k)
            for layer in part.layers:
                stream = layer.module(stream)
            weight = trained.rows[k] / (trained.replicas * sum(trained.rows))
            loss = functional.cross_entropy(stream.flatten(0, -2), targets.flatten()) * weight
            terms = sum(term_of(each, per_token=trained.model.decoder.experts.per_token) for each in seen)
            loss = loss + weight * coefficient * terms
            loss.backward()
            losses.append(loss.detach())
        outcome.losses.append(float(torch.stack(losses).sum()))
        keep_gradients(part, outcome)
    return outcome


def term_of(logits: torch.Tensor, *, per_token: int) -> torch.Tensor:
    """Return num * sum of f * P over the experts, as Switch Transformer's equations 4 to 6 have it."""
    tokens, num = logits.shape
    probabilities = logits.softmax(-1)
    f = torch.zeros(num)
    for chosen in logits.topk(per_token).indices.flatten().tolist():
        f[chosen] += 1 / (tokens * per_token)
    return num * (f * probabilities.mean(0)).sum()


def without_term(model: DecoderModel) -> DecoderModel:
    assert model.experts is not None
    return model.model_copy(update={"experts": model.experts.model_copy(update={"auxiliary_loss": 0.0})})


def differs(here: Outcome, there: Outcome, name: str, *, by: float) -> bool:
    expected = there.gradients[name]
    return float((here.gradients[name] - expected).abs().max() / expected.abs().max()) > by


def assert_close(here: Outcome, there: Outcome, *, bound: float) -> None:
    assert here.losses == pytest.approx(there.losses, rel=bound)
    assert here.gradients.keys() == there.gradients.keys()
    for name, expected in there.gradients.items():
        error = float((here.gradients[name] - expected).abs().max() / expected.abs().max())
        assert error <= bound, name
