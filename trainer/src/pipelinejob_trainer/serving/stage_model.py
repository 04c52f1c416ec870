"""One stage of a model that is served: its own weights alone, and its part of the cache."""

from dataclasses import dataclass
from pathlib import Path

import torch

from pipelinejob.spec.job import Data, Model
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.models.huggingface.chunk import Runner
from pipelinejob_trainer.models.huggingface.folder import open_folder
from pipelinejob_trainer.models.part import build_part
from pipelinejob_trainer.serving.cache import Pool
from pipelinejob_trainer.serving.check import check_decoding
from pipelinejob_trainer.serving.own_forward import OwnForward


@dataclass(frozen=True, slots=True, kw_only=True)
class StageModel:
    """A stage's layers, ready to run; `width` is the hidden state's.

    `positions` is how long a sequence may be; None: nothing says.
    """

    forward: OwnForward
    positions: int | None
    width: int
    remarks: tuple[str, ...]


def load_stage(model: Model, stretch: tuple[int, int], *, num_blocks: int, block: int) -> StageModel:
    """Make layers [first, end) of a Hugging Face model, with the folder's values.

    Raises UserError for a model that cannot be served, or not be read.
    """
    if model.hugging_face is None:
        raise UserError(
            "NotServable",
            "spec.model: only a model of spec.model.huggingFace can be served; write what was trained as such a folder"
            " with `pipelinejob export`, and name that",
        )
    folder = open_folder(model)
    servable = check_decoding(folder.config, trust_remote_code=folder.trust_remote_code)
    part = build_part(model, _NO_DATA, stretches=[stretch], seed=0)
    part.settle(torch.device("cpu"))
    runner = part.chunks[0][0].runner
    assert isinstance(runner, Runner), "a Hugging Face model's"
    pool = Pool(num_blocks=num_blocks, block=block)
    first, end = stretch
    positions = getattr(folder.config.get_text_config(), "max_position_embeddings", None)
    return StageModel(
        forward=OwnForward(runner.cut, first, end, pool, mixes_lengths=servable.mixes_lengths),
        width=folder.config.get_text_config().hidden_size,
        positions=positions if isinstance(positions, int) else None,
        remarks=(*part.remarks, servable.sentence),
    )


def text_folder(model: Model) -> Path:
    """Return the folder whose tokenizer reads and writes the model's text."""
    assert model.hugging_face is not None, "asked for such models only"
    return Path(model.hugging_face.path)


_NO_DATA = Data.model_construct(sequence_length=1)
