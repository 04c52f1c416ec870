"""The models whose layers can be counted before their code runs: the built-in GPT, and what configs describe."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pipelinejob.branches import biased_block
from pipelinejob.decoder import Decoder
from pipelinejob.huggingface import decoder_of_config
from pipelinejob.spec import GptModel, Model


def decoder_of(model: Model, *, sequence_length: int) -> Decoder | None:
    """Give the sizes of a model's layers; None of a user's own layers of which only the number is known.

    Raises SpecError naming the field of a config that is missing, or is no size.
    """
    if model.gpt is not None:
        return _gpt(model.gpt, sequence_length)
    return None if model.config is None else decoder_of_config(model.config)


def model_of(config: Mapping[str, Any]) -> Model:
    """Give the model that a Hugging Face `config.json` describes, as layers of a user's own without code.

    Raises SpecError naming the field that is missing, or is no size.
    """
    return Model(config=dict(config), num_layers=decoder_of_config(config).num_layers)


@lru_cache(maxsize=64)
def _gpt(model: GptModel, sequence_length: int) -> Decoder:
    """Read the built-in GPT, whose embedding learns a position for each token of a sequence."""
    width = model.hidden_size
    block = biased_block(width, heads=model.num_heads, inner=model.feed_forward_size or 4 * width)
    return Decoder(
        width=width,
        token_width=width,
        vocabulary=model.vocabulary_size,
        positions=sequence_length,
        blocks=(block,) * model.num_layers,
        head_vectors=2 * width,
        is_tied=model.tie_embeddings,
        has_dropout=model.dropout > 0,
    )
