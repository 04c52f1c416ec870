"""What layers a model is made of."""

from pathlib import Path

import pytest
import torch
from torch import nn

from pipelinejob.spec.job import Data, GptModel, Model
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.models.part import LayerEntry, build_part, num_layers
from support.training.pipelines import TINY_GPT, Job, run_threads, run_unsplit

DATA = Data(paths=("unused",), sequence_length=16)


def build_layers(model: Model, data: Data, *, first: int, end: int, seed: int) -> list[LayerEntry]:
    """Make the layers [first, end) of the global list."""
    return list(build_part(model, data, stretches=[(first, end)], seed=seed).chunks[0])


def parameters(model: Model, *, first: int, end: int, seed: int = 5) -> dict[str, torch.Tensor]:
    layers = build_layers(model, DATA, first=first, end=end, seed=seed)
    return {f"{layer.index}.{name}": p for layer in layers for name, p in layer.module.named_parameters()}


@pytest.mark.parametrize(
    "model",
    [
        TINY_GPT,
        Model(entrypoint="layers.user_models:mlp", num_layers=5, arguments={"width": "6"}),
        Model(entrypoint="layers.user_models:lazy_mlp", num_layers=3, arguments={"width": "6"}),
    ],
    ids=["gpt", "modules", "functions"],
)
def test_initial_weights_depend_on_seed_and_place_alone(model: Model) -> None:
    layers = num_layers(model)
    whole = parameters(model, first=0, end=layers)
    torch.rand(7)  # what was drawn before must not matter
    split = {k: v for i in range(layers) for k, v in parameters(model, first=i, end=i + 1).items()}

    assert split.keys() == whole.keys()
    assert all(torch.equal(split[name], whole[name]) for name in whole)


def test_another_seed_gives_other_weights() -> None:
    here, there = (parameters(TINY_GPT, first=1, end=2, seed=seed)["1.qkv.weight"] for seed in (1, 2))

    assert not torch.equal(here, there)


def test_building_layers_leaves_torchs_random_state_alone() -> None:
    before = torch.get_rng_state()
    build_layers(TINY_GPT, DATA, first=0, end=6, seed=1)

    assert torch.equal(torch.get_rng_state(), before)


def test_a_gpt_is_embedding_blocks_head() -> None:
    names = [layer.name for layer in build_layers(TINY_GPT, DATA, first=0, end=6, seed=1)]

    assert names == ["embedding", "block-0", "block-1", "block-2", "block-3", "head"]


def test_a_gpt_starts_as_knowing_nothing(text: Path) -> None:
    outcome = run_unsplit(Job(text=text, steps=1))

    assert outcome.losses[0] == pytest.approx(torch.log(torch.tensor(256.0)).item(), abs=0.05)


TIED = Model(gpt=GptModel(num_layers=2, hidden_size=16, num_heads=2, tie_embeddings=True))
TIED_BY_USER = Model(entrypoint="layers.user_models:tied", num_layers=3)
tied_models = pytest.mark.parametrize(
    ("model", "table"),
    [(TIED, "layers.0.token.weight"), (TIED_BY_USER, "layers.0.weight")],
    ids=["gpt", "entrypoint"],
)


@tied_models
def test_a_tied_head_goes_by_the_embeddings_name_and_starts_with_its_bits(model: Model, table: str) -> None:
    end = num_layers(model)
    embedding = build_part(model, DATA, stretches=[(0, 1)], seed=5)
    head = build_part(model, DATA, stretches=[(end - 1, end)], seed=5)
    original, copy = (part.named_parameters()[table] for part in (embedding, head))

    assert head.shared == embedding.shared == {table: (0, end - 1)}
    assert torch.equal(original, copy)
    assert not any("logits" in name for name in head.named_parameters())


@tied_models
def test_a_rank_with_embedding_and_head_in_two_chunks_holds_one_table(model: Model, table: str) -> None:
    end = num_layers(model)
    part = build_part(model, DATA, stretches=[(0, 1), (end - 1, end)], seed=5)
    (embedding,), (head,) = part.chunks

    assert dict(head.named_parameters())[table] is dict(embedding.named_parameters())[table]
    assert list(part.named_parameters()).count(table) == 1


def test_a_tied_head_multiplies_with_the_embeddings_table() -> None:
    (embedding,), (head,) = build_part(TIED, DATA, stretches=[(0, 1), (3, 4)], seed=5).chunks
    stream = torch.randn(1, 4, 16)

    assert torch.equal(head.module(stream), head.module.norm(stream) @ embedding.module.token.weight.T)


def test_a_layer_that_stands_in_two_chunks_is_one_object() -> None:
    part = build_part(TINY_GPT, DATA, stretches=[(1, 3), (2, 3)], seed=5)

    assert part.chunks[0][1] is part.chunks[1][0]


@pytest.fixture
def dropping() -> Model:
    return Model(gpt=GptModel(num_layers=1, hidden_size=16, num_heads=2, dropout=0.5))


def test_dropout_is_on_while_training_and_off_while_evaluating(dropping: Model) -> None:
    embedding, block, _ = (layer.module for layer in build_layers(dropping, DATA, first=0, end=3, seed=1))
    tokens, stream = torch.arange(8).view(1, 8), torch.randn(1, 8, 16)

    assert (embedding(tokens) == 0).float().mean() == pytest.approx(0.5, abs=0.15)
    assert not torch.equal(block(stream), block(stream))
    assert torch.equal(block.eval()(stream), block(stream))
    assert (embedding.eval()(tokens) == 0).sum() == 0


def test_a_block_drops_from_both_of_its_branches(dropping: Model) -> None:
    block = build_layers(dropping, DATA, first=1, end=2, seed=1)[0].module
    for branch in (block.attention_out, block.feed_forward_out):
        nn.init.zeros_(branch.weight)
        nn.init.ones_(branch.bias)

    # Each branch adds 1 / (1 - 0.5) where it is kept.
    assert block(torch.zeros(1, 8, 16)).unique().tolist() == [0, 2, 4]


def test_attention_drops_probabilities_while_training(dropping: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    block = build_layers(dropping, DATA, first=1, end=2, seed=1)[0].module
    shares = []

    def spy(*tensors: torch.Tensor, is_causal: bool, dropout_p: float) -> torch.Tensor:
        shares.append(dropout_p)
        return attention(*tensors, is_causal=is_causal, dropout_p=dropout_p)

    attention = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", spy)
    block(torch.zeros(1, 8, 16))
    block.eval()(torch.zeros(1, 8, 16))

    assert shares == [0.5, 0.0]


def test_attention_sees_no_later_token() -> None:
    block = build_layers(TINY_GPT, DATA, first=1, end=2, seed=1)[0].module
    stream = torch.randn(1, 8, 16)
    changed = stream.clone()
    changed[:, 5:] += 1

    assert torch.equal(block(stream)[:, :5], block(changed)[:, :5])
    assert not torch.equal(block(stream)[:, 5:], block(changed)[:, 5:])


def test_functions_of_other_stages_layers_are_not_called() -> None:
    layers = build_layers(
        Model(entrypoint="layers.user_models:lazy_mlp", num_layers=3, arguments={"width": "6"}),
        DATA,
        first=2,
        end=3,
        seed=1,
    )

    assert [(layer.index, type(layer.module)) for layer in layers] == [(2, nn.Linear)]


@pytest.mark.parametrize(
    ("entrypoint", "arguments", "layers", "sentence"),
    [
        ("no_such_module:f", {}, 1, "there is no module 'no_such_module' in this image"),
        ("layers.user_models.deeper:f", {}, 1, "there is no module 'layers.user_models.deeper' in this image"),
        ("layers.user_models:nothing", {}, 1, "module layers.user_models has no 'nothing'"),
        ("layers.user_models:NOT_A_FUNCTION", {}, 1, "NOT_A_FUNCTION is 3 of type int; name a function"),
        ("layers.user_models:raises", {}, 1, r"called with \(\) it raised ValueError: the weights are on holiday"),
        ("layers.user_models:mlp", {"hight": "3"}, 5, r"called with \(hight='3'\) it raised TypeError"),
        ("layers.user_models:returns_number", {}, 1, "returned 5 of type int; return a list of torch.nn.Module"),
        ("layers.user_models:returns_strings", {}, 2, "layer 0 is 'a' of type str; each must be a torch.nn.Module"),
        ("layers.user_models:makes_numbers", {}, 2, "layer 0 made 5 of type int; it must make a torch.nn.Module"),
        (
            "layers.user_models:mlp",
            {"width": "4"},
            7,
            "returned 5 layers but spec.model.numLayers says 7; write 5 there",
        ),
    ],
)
def test_a_bad_entrypoint_is_an_error_of_its_own(
    entrypoint: str, arguments: dict[str, str], layers: int, sentence: str
) -> None:
    model = Model(entrypoint=entrypoint, num_layers=layers, arguments=arguments)

    with pytest.raises(UserError, match=sentence) as caught:
        build_layers(model, DATA, first=0, end=layers, seed=0)
    assert caught.value.reason == "BadEntrypoint"
    assert str(caught.value).startswith(f"spec.model.entrypoint {entrypoint}: ")


@pytest.mark.parametrize(
    ("function", "layers", "sentence"),
    [
        (
            "returns_objects",
            3,
            r"layer 1 \(Boxed\) returned list: output\[1\] is builtins.object; between",
        ),
        (
            "returns_pairs",
            3,
            r"the last layer returned tuple; it must return logits, one tensor, or spec",
        ),
        ("no_logits", 2, r"the last layer returned shape \(2, 128\); it must return logits of shape \(2, 16, 'vocab"),
    ],
)
def test_layers_that_do_not_fit_each_other_are_a_users_error(
    text: Path, function: str, layers: int, sentence: str
) -> None:
    job = Job(text=text, model=Model(entrypoint=f"layers.user_models:{function}", num_layers=layers), stages=1)

    with pytest.raises(UserError, match=sentence) as caught:
        run_threads(job)
    assert caught.value.reason == "BadModel"


def test_a_first_stage_without_parameters_passes_tokens_on(text: Path) -> None:
    model = Model(entrypoint="layers.user_models:without_parameters_in_front", num_layers=3)
    job = Job(text=text, model=model, stages=3)

    assert run_threads(job).losses == run_unsplit(job).losses


def test_dropout_draws_the_same_when_a_run_is_repeated(text: Path) -> None:
    model = Model(entrypoint="layers.user_models:with_dropout", num_layers=3)
    job = Job(text=text, model=model, stages=1)
    first = run_threads(job)
    torch.rand(3)  # the process's own state must not matter

    assert run_threads(job).losses == first.losses
