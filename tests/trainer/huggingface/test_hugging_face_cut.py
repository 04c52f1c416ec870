"""The cut of transformers models: names, kinds of models that are cut, kinds that are refused, documents in a row."""

from functools import wraps
from typing import Any

import pytest
import torch
from transformers import MixtralForCausalLM

from families import EQUAL, verdict
from pipelinejob_trainer.base.errors import LayerError, UserError
from pipelinejob_trainer.models.huggingface.build import build, checked
from pipelinejob_trainer.models.huggingface.check import compare, small_whole
from pipelinejob_trainer.models.huggingface.chunk import Runner
from pipelinejob_trainer.models.huggingface.cut import initialise, materialise
from pipelinejob_trainer.models.huggingface.names import Names
from pipelinejob_trainer.models.identity import places

LENGTH = 12


def config_of(family: str, **sizes: Any) -> Any:
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[family](**sizes)


def tiny(family: str = "llama", **sizes: Any) -> Any:
    return config_of(
        family,
        **{
            "vocab_size": 64,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 64,
        }
        | sizes,
    )


def runner_of(config: Any, first: int, end: int) -> Runner:
    """Return a runner of layers [first, end), with the weights that the seed gives."""
    cut = build(config, first, end)
    for index in range(first, end):
        materialise(cut, index)
        torch.manual_seed(index)
        initialise(cut, index)
    return Runner(cut, takes_documents=checked(config).keeps_documents_apart)


def directly(index: int, layer: Any, given: Any, call: Any = None) -> Any:
    return (call or layer)(given)


@pytest.mark.parametrize(
    "family",
    [
        "bloom",  # ALiBi, tied
        "cohere",  # attention and feed-forward layer side by side, tied
        "deepseek_v3",  # latent attention, experts, dense first layers
        "falcon",  # ALiBi or rotary, one key for all heads, layers that return tuples
        "gemma2",  # sliding and full layers in turn, scaled embeddings, tied
        "gpt2",  # learned positions, tied
        "gpt_neox",  # side by side, not tied
        "mistral",  # a sliding window
        "mixtral",  # experts
        "mpt",  # ALiBi, layers that return tuples
        "opt",  # learned positions that begin with an offset
        "phi",  # part of each head is rotated
        "qwen3_moe",  # experts, normed queries
    ],
)
def test_cut_in_2_in_3_and_after_every_layer_a_model_is_bit_for_bit_the_same(family: str) -> None:
    found = verdict(family)

    assert found.word == EQUAL, found.sentence


@pytest.mark.parametrize(
    ("family", "sizes", "reason"),
    [
        ("bart", {}, "encoder-decoder"),
        ("dory", {}, "a small copy of it differs from the whole one"),
        ("bert", {}, "tokens that come later"),
        ("deepseek_v3", {"output_router_logits": True}, "nothing says what that adds to the loss"),
        ("opt", {"layerdrop": 0.1}, "layerdrop 0.1 skips layers"),
    ],
)
def test_what_a_cut_would_change_is_refused_with_the_reason(family: str, sizes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason) as raised:
        checked(config_of(family, **sizes))

    assert raised.value.reason == "NotCuttable"


@pytest.mark.parametrize("family", ["mixtral", "jamba"])  # all blocks have experts, and some of them
def test_experts_balancing_loss_is_the_whole_models_bit_for_bit(family: str) -> None:
    config = config_of(family, output_router_logits=True, router_aux_loss_coef=0.5)

    checked(config)

    whole = small_whole(config)
    without = small_whole(config_of(family))
    assert 0.5 < float(whole.balance) < 2  # 0.5 * perToken where no expert is preferred
    assert any(not torch.equal(each, without.gradients[name]) for name, each in whole.gradients.items())


def test_a_model_that_adds_something_else_to_its_loss_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = MixtralForCausalLM.forward

    @wraps(forward)
    def with_one_more(model: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(model, *args, **kwargs)
        if output.loss is not None and kwargs["output_router_logits"]:
            output.loss = output.loss + 1
        return output

    monkeypatch.setattr(MixtralForCausalLM, "forward", with_one_more)

    with pytest.raises(UserError, match=r"output_router_logits adds 1\.00\d+ to a loss, and not the 0\.00\d+"):
        checked(config_of("mixtral", output_router_logits=True))


def test_a_model_that_loses_what_passes_beside_the_hidden_state_differs() -> None:
    """Were the check left out, dory would be trained wrongly in silence."""
    whole = small_whole(config_of("dory"))

    assert "logits" in compare(whole, range(whole.config.num_hidden_layers + 3))


NAMES = Names(blocks="model.layers", num_blocks=2, head=frozenset({"model.norm.weight", "lm_head.weight"}))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("layers.0.model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("layers.1.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("layers.2.self_attn.q_proj.bias", "model.layers.1.self_attn.q_proj.bias"),
        ("layers.3.model.norm.weight", "model.norm.weight"),
        ("layers.3.lm_head.weight", "lm_head.weight"),
    ],
)
def test_a_name_has_one_counterpart_in_either_direction(ours: str, theirs: str) -> None:
    assert NAMES.full(ours) == theirs
    assert NAMES.of_full(theirs) == ours


def test_a_stage_holds_its_own_layers_and_nothing_else() -> None:
    cut = runner_of(tiny(), 1, 3).cut

    held = sum(each.untyped_storage().nbytes() for each in cut.model.parameters() if not each.is_meta)
    own = sum(each.nbytes for index in (1, 2) for each in cut.layers[index].parameters())
    assert own <= held <= own + 64  # zeros stand for what is another stage's embedding
    assert all(each.tensor is None or each.tensor.is_meta for each in places(3, cut.layers[3]))


def test_initial_weights_depend_on_seed_and_layer_alone() -> None:
    whole, part = (
        dict(runner_of(tiny(), first, end).cut.layers[2].named_parameters()) for first, end in ((0, 5), (2, 3))
    )

    assert whole.keys() == part.keys()
    assert all(torch.equal(whole[name], each) for name, each in part.items())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("window", [None, 3])
def test_documents_of_a_row_are_kept_apart_on_every_stage(attention: str, window: int | None) -> None:
    family = "llama" if window is None else "mistral"
    sizes = {} if window is None else {"sliding_window": window}
    config = tiny(family, attn_implementation=attention, **sizes)
    torch.manual_seed(0)
    tokens = torch.randint(64, (2, LENGTH))
    positions = torch.cat([torch.arange(5), torch.arange(7)]).expand(2, -1)
    stages = [(range(first, end), runner_of(config, first, end)) for first, end in ((0, 2), (2, 3), (3, 5))]

    def logits(tokens: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        stream: Any = None
        for layers, runner in stages:
            if layers.start == 0:
                stream = runner.walk(
                    layers,
                    tokens,
                    lambda index, layer, given, call=None: (
                        (call or layer)(given) if index else layer(given, positions=positions)
                    ),
                )
            else:
                stream = runner.walk(layers, stream, directly)
        assert stages[0][1].cut.model.config._attn_implementation == attention
        result: torch.Tensor = stream
        return result

    together = logits(tokens, positions)

    alone = torch.cat([logits(part, None) for part in tokens.split([5, 7], dim=1)], dim=1)
    assert torch.allclose(together, alone, atol=1e-5)
    assert not torch.allclose(together, logits(tokens, None), atol=1e-3)


def test_rows_of_several_documents_are_refused_where_a_model_mixes_them() -> None:
    runner = runner_of(config_of("bloom", vocab_size=64, hidden_size=16, n_head=2, n_layer=2), 0, 4)
    positions = torch.cat([torch.arange(5), torch.arange(7)]).expand(1, -1)

    with pytest.raises(UserError, match="a bloom does not keep apart"):
        runner.cut.layers[0](torch.zeros(1, LENGTH, dtype=torch.int64), positions=positions)


def test_an_error_in_a_models_own_layer_names_that_layer() -> None:
    runner = runner_of(tiny(), 1, 4)
    hidden = torch.zeros(1, LENGTH, 17)  # one too wide

    with pytest.raises(LayerError, match="layer 1 "):
        runner.walk(range(1, 4), hidden, directly)
