"""The built-in decoder is what transformers calls llama, mistral, qwen2, qwen3, mixtral or qwen3_moe.

The same weights give the same logits and gradients, tied or not, from tiny configs of each.
"""

from typing import Any

import pytest
import torch
from torch.nn import functional

from pipelinejob.spec.families.decoder_config import decoder_model_of
from pipelinejob.spec.job import Data, DecoderModel, Model
from pipelinejob_trainer.models.decoder.names import theirs_of_ours
from pipelinejob_trainer.models.part import Part, build_part

LENGTH = 24
BOUND = 1e-5  # of logits of size 1, and of gradients relative to the largest entry of their tensor
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "initializer_range": 0.2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES: dict[str, dict[str, Any]] = {
    "llama": {"rms_norm_eps": 1e-5},
    "llama of equal heads": {"num_key_value_heads": 4},
    "llama with one key for all": {"num_key_value_heads": 1},
    "llama of wide heads": {"head_dim": 12},
    "llama scaled as 3.1": {"rope_parameters": LLAMA3},
    "llama scaled linearly": {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}},
    "mistral": {"sliding_window": 7},
    "mistral without a window": {"sliding_window": None},
    "qwen2": {},
    "qwen2 with a window": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0},
    "qwen3": {"head_dim": 16},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "head_dim": 8},
    "qwen3_moe normalized": {
        "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "norm_topk_prob": True, "head_dim": 8,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers")


@pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("case", CASES)
def test_the_same_weights_give_the_same_logits_and_gradients(transformers: Any, case: str, is_tied: bool) -> None:
    theirs = their_model(transformers, case, tie_word_embeddings=is_tied)
    model = decoder_model_of(theirs.config.to_dict())
    assert isinstance(model, DecoderModel), model
    ours = our_part(model, theirs)
    tokens = torch.randint(300, (2, LENGTH + 1), generator=torch.Generator().manual_seed(1))

    expected = theirs(input_ids=tokens[:, :-1]).logits
    logits = run(ours, tokens[:, :-1])
    for each in (expected, logits):
        functional.cross_entropy(each.flatten(0, 1), tokens[:, 1:].flatten()).backward()

    assert expected.abs().max() > 0.5  # or a bound would say nothing
    assert (logits - expected).abs().max() < BOUND
    parameters = ours.named_parameters()
    gradients = {name: each.grad for name, each in theirs.named_parameters()}
    assert set(gradients) == set(theirs_of_ours(model).values())
    for name, theirs_name in theirs_of_ours(model).items():
        mine, expected_gradient = parameters[name].grad, gradients[theirs_name]
        assert mine is not None
        assert float((mine - expected_gradient).abs().max() / expected_gradient.abs().max()) < BOUND, name


def test_packed_documents_see_themselves_alone(transformers: Any) -> None:
    """As each document by itself would, here and in transformers."""
    theirs = their_model(transformers, "mistral", tie_word_embeddings=False)
    model = decoder_model_of(theirs.config.to_dict())
    assert isinstance(model, DecoderModel)
    ours = our_part(model, theirs)
    tokens = torch.randint(300, (1, 9 + 15), generator=torch.Generator().manual_seed(2))
    positions = torch.cat((torch.arange(9), torch.arange(15)))[None]

    packed = run(ours, tokens, positions)

    apart = [theirs(input_ids=each).logits for each in tokens.split((9, 15), dim=1)]
    assert (packed - torch.cat(apart, dim=1)).abs().max() < BOUND


@pytest.mark.parametrize(
    ("case", "changes", "why"),
    [
        ("llama", {"model_type": "gemma"}, 'model_type is "gemma"'),
        ("llama", {"attention_bias": True}, "attention_bias is True"),
        ("llama", {"mlp_bias": True}, "mlp_bias is True"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act is gelu"),
        ("llama", {"attention_dropout": 0.1}, "attention_dropout is 0.1"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, 'rope_type is "yarn"'),
        ("llama", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "lack low_freq_factor"),
        ("llama", {"num_key_value_heads": 3}, "4 heads cannot share 3 keys"),
        ("llama", {"hidden_size": None}, "hidden_size"),
        ("llama", {"vocab_size": 2_000_000}, "vocabularySize"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 1, "layer_types": None}, "max_window_layers is 1"),
        ("mistral", {"layer_types": ["full_attention", "sliding_attention"]}, "only some blocks"),
        ("mixtral", {"router_jitter_noise": 0.1}, "router_jitter_noise"),
        ("mixtral", {"intermediate_size": 44}, "multiple of 8"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "mlp_only_layers"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step"),
    ],
)
def test_what_the_decoder_cannot_be_is_refused_with_the_reason(
    transformers: Any, case: str, changes: dict[str, Any], why: str
) -> None:
    found = decoder_model_of(their_config(transformers, case).to_dict() | changes)

    assert isinstance(found, str)
    assert why in found


def test_configs_of_transformers_4_are_read_too() -> None:
    scaling = {name: value for name, value in LLAMA3.items() if name != "rope_theta"}
    old = SIZES | {"model_type": "llama", "hidden_act": "silu", "rope_theta": 500_000.0, "rope_scaling": scaling}

    model = decoder_model_of(old)

    assert isinstance(model, DecoderModel)
    assert model.rope_theta == 500_000.0
    assert model.rope_scaling is not None
    assert model.rope_scaling.factor == 8.0


def their_config(transformers: Any, case: str, **changes: Any) -> Any:
    return transformers.AutoConfig.for_model(case.split(maxsplit=1)[0], **SIZES | CASES[case] | changes)


def their_model(transformers: Any, case: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = their_config(transformers, case, **changes)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    for name, parameter in model.named_parameters():  # norms and biases at ones and zeros would hide mistakes
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
    return model


def our_part(model: DecoderModel, theirs: Any) -> Part:
    data = Data(corpus="python-stdlib", sequence_length=LENGTH)
    part = build_part(Model(decoder=model), data, stretches=[(0, model.num_layers + 2)], seed=0)
    names = {theirs: ours for ours, theirs in theirs_of_ours(model).items()}
    weights = {key: value for key, value in theirs.state_dict().items() if key in names}
    assert set(weights) == set(names)
    part.fill({names[key]: value.detach().clone() for key, value in weights.items()})
    return part


def run(part: Part, tokens: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
    first, *others = part.layers
    stream: Any = first.module(tokens, positions)
    for layer in others:
        stream = layer.module(stream)
    logits: torch.Tensor = stream
    return logits
