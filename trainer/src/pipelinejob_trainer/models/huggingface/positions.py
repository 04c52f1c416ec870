"""Whether a model can take sequences of a length: it may have a table with a row for each position."""

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.models.huggingface.files.folder import CONFIG

_IS_OF_POSITIONS = re.compile(r"pos|wpe", re.IGNORECASE)

_MOST_SPARE_ROWS = 8  # OPT's table has two more than it has positions


def check_length(model: nn.Module, config: Any, length: int) -> str | None:
    """Return what is to be said of sequences of so many tokens; None if nothing.

    Raises UserError if they are longer than a table of the model.
    """
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(most, int) or length <= most:
        return None
    for name in _tables(model, most):
        raise UserError(
            "SequenceTooLong",
            f"spec.data.sequenceLength: {length} tokens are more than the {most} positions that a {config.model_type} "
            f"has learned or computed beforehand ({name}, max_position_embeddings of {CONFIG}); use at most {most}",
        )
    return (
        f"spec.data.sequenceLength: {length} tokens are more than the {most} that the model was made for "
        f"(max_position_embeddings of {CONFIG}); its positions go on beyond, but what it does there was never trained"
    )


def _tables(model: nn.Module, most: int) -> Iterator[str]:
    """Return the tables with a row for each position, and the masks made beforehand for all of them."""
    for name, module in model.named_modules():
        is_table = isinstance(module, nn.Embedding) and 0 <= module.num_embeddings - most <= _MOST_SPARE_ROWS
        if is_table and _IS_OF_POSITIONS.search(name):
            yield f"{name}.weight"
    for name, buffer in model.named_buffers():
        if most in buffer.shape and not name.endswith("inv_freq"):
            yield name
