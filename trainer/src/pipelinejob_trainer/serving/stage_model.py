"""One stage of a model that is served: its own weights alone, and its part of the cache."""

from dataclasses import dataclass

import torch

from pipelinejob.spec.job import Data, Model
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.models.huggingface.build import build
from pipelinejob_trainer.models.huggingface.chunk import Runner
from pipelinejob_trainer.models.huggingface.cut import Cut
from pipelinejob_trainer.models.huggingface.files.folder import open_folder
from pipelinejob_trainer.models.part import build_part
from pipelinejob_trainer.serving.cache import Pool
from pipelinejob_trainer.serving.check import Servable, check_decoding
from pipelinejob_trainer.serving.own_forward import OwnForward
from pipelinejob_trainer.serving.trained_weights import TrainedWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class StageModel:
    """A stage's layers, ready to run; `width` is the hidden state's.

    `positions` is how long a sequence may be; None: nothing says.
    """

    forward: OwnForward
    positions: int | None
    width: int
    remarks: tuple[str, ...]


def load_stage(
    model: Model, stretch: tuple[int, int], *, num_blocks: int, block: int, trained: TrainedWeights | None = None
) -> StageModel:
    """Make layers [first, end) of a model, with the values of its folder, or of what was trained.

    Raises UserError for a model that cannot be served, or not be read.
    """
    pool = Pool(num_blocks=num_blocks, block=block)
    return _of_checkpoint(model, stretch, pool, trained) if trained else _of_folder(model, stretch, pool)


def _of_folder(model: Model, stretch: tuple[int, int], pool: Pool) -> StageModel:
    if model.hugging_face is None:
        raise UserError(
            "NotServable",
            "spec.model: only a model of spec.model.huggingFace has weights of its own; for one that was trained, set"
            " spec.serving.fromCheckpoint",
        )
    folder = open_folder(model)
    servable = check_decoding(folder.config, trust_remote_code=folder.trust_remote_code)
    part = build_part(model, _NO_DATA, stretches=[stretch], seed=0)
    part.settle(torch.device("cpu"))
    runner = part.chunks[0][0].runner
    assert isinstance(runner, Runner), "a Hugging Face model's"
    return _stage(runner.cut, stretch, pool, servable, part.remarks)


def _of_checkpoint(model: Model, stretch: tuple[int, int], pool: Pool, trained: TrainedWeights) -> StageModel:
    trusts, config = trusts_code(model), trained.config
    servable = check_decoding(config, trust_remote_code=trusts)
    cut = build(config, *stretch, trust_remote_code=trusts)
    trained.fill(cut, *stretch)
    return _stage(cut, stretch, pool, servable, (f"weights of step {trained.step}",))


def _stage(cut: Cut, stretch: tuple[int, int], pool: Pool, servable: Servable, remarks: tuple[str, ...]) -> StageModel:
    text = cut.config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    return StageModel(
        forward=OwnForward(cut, *stretch, pool, mixes_lengths=servable.mixes_lengths),
        width=text.hidden_size,
        positions=positions if isinstance(positions, int) else None,
        remarks=(*remarks, servable.sentence),
    )


def trusts_code(model: Model) -> bool:
    """Return whether code of the model's folder may be run."""
    return model.hugging_face is not None and model.hugging_face.trust_remote_code


_NO_DATA = Data.model_construct(sequence_length=1)
