"""What a manifest says of a Hugging Face folder, and how the two are held against each other."""

from typing import Any

import pytest

from pipelinejob.base.errors import SpecError
from pipelinejob.models.huggingface import decoder_of_config
from pipelinejob.models.sizes import Difference, blocks_of_config, differences, sizes_of_config

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 256,
    "tie_word_embeddings": False,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
}
SIZES = {name: LLAMA[name] for name in LLAMA if name not in {"architectures", "head_dim", "rms_norm_eps"}}
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 3, "n_positions": 128, "vocab_size": 256}


def test_the_sizes_are_those_by_which_layers_are_counted_and_nothing_else() -> None:
    assert sizes_of_config(LLAMA) == SIZES
    assert vars(decoder_of_config(SIZES)) == vars(decoder_of_config(LLAMA))
    assert sizes_of_config(GPT2 | {"activation_function": "gelu_new"}) == GPT2


def test_of_a_model_of_images_and_text_the_text_counts() -> None:
    both = {"model_type": "mllama", "text_config": LLAMA | {"model_type": "llama"}, "vision_config": {"hidden_size": 7}}

    assert sizes_of_config(both) == SIZES
    assert blocks_of_config(both) == 4
    assert differences(SIZES, both) == ()


@pytest.mark.parametrize(
    ("config", "blocks"),
    [
        (LLAMA, 4),
        (GPT2, 3),
        ({"n_layers": 5}, 5),
        ({"num_hidden_layers": "many"}, None),
        ({"num_layers": 0}, None),
        ({}, None),
    ],
)
def test_the_blocks_stand_under_several_names(config: dict[str, Any], blocks: int | None) -> None:
    assert blocks_of_config(config) == blocks


def test_what_a_folder_has_otherwise_is_named_with_both_values() -> None:
    assert differences(SIZES, LLAMA) == ()
    assert differences(SIZES | {"hidden_size": 128}, LLAMA) == (Difference(field="hidden_size", said=128, found=64),)
    other = differences(SIZES | {"model_type": "qwen2"}, LLAMA)
    assert other == (Difference(field="model_type", said="qwen2", found="llama"),)


def test_what_one_of_them_lacks_counts_where_it_changes_the_layers() -> None:
    short = {name: value for name, value in SIZES.items() if name != "tie_word_embeddings"}

    assert differences(short, LLAMA) == ()  # as the default is
    tied = LLAMA | {"tie_word_embeddings": True}
    assert differences(short, tied) == (Difference(field="tie_word_embeddings", said=None, found=True),)
    grouped = SIZES | {"num_key_value_heads": 2}
    assert differences(grouped, LLAMA) == (Difference(field="num_key_value_heads", said=2, found=None),)


def test_sizes_that_are_none_are_refused_by_name() -> None:
    with pytest.raises(SpecError, match="hidden_size"):
        sizes_of_config(LLAMA | {"hidden_size": "wide"})
