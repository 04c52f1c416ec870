"""One stage of a model that is served: its own weights alone, and its part of the cache."""

from dataclasses import dataclass
from typing import Any

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
    model: Model,
    stretch: tuple[int, int],
    *,
    num_blocks: int,
    block: int,
    trained: TrainedWeights | None = None,
    apart: bool = False,
) -> StageModel:
    """Make layers [first, end) of a model, with the values of its folder, or of what was trained.

    With `apart` sequences of a pass are computed one by one. Raises UserError for a model that
    cannot be served, or not be read.
    """
    filled = _of_checkpoint(model, stretch, trained) if trained else _of_folder(model, stretch)
    text = filled.cut.config.get_text_config()
    pool = Pool(num_blocks=num_blocks, block=block)
    positions, limit = _positions(text)
    return StageModel(
        forward=OwnForward(filled.cut, *stretch, pool, mixes_lengths=filled.servable.mixes_lengths, apart=apart),
        width=text.hidden_size,
        positions=positions,
        remarks=(*filled.remarks, filled.servable.sentence, *limit),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Filled:
    """Layers with their values, and what was found out of them."""

    cut: Cut
    servable: Servable
    remarks: tuple[str, ...]


def _of_folder(model: Model, stretch: tuple[int, int]) -> _Filled:
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
    return _Filled(cut=runner.cut, servable=servable, remarks=tuple(part.remarks))


def _of_checkpoint(model: Model, stretch: tuple[int, int], trained: TrainedWeights) -> _Filled:
    trusts, config = trusts_code(model), trained.config
    servable = check_decoding(config, trust_remote_code=trusts)
    cut = build(config, *stretch, trust_remote_code=trusts)
    trained.fill(cut, *stretch)
    return _Filled(cut=cut, servable=servable, remarks=(f"weights of step {trained.step}",))


def _positions(text: Any) -> tuple[int | None, tuple[str, ...]]:
    """Return how long a text may be, None if nothing says, and a remark where that is less than the model's most.

    Positions of the kind `longrope` are turned otherwise once a text is longer than in
    pretraining: all in a batch, as soon as one is, while keys in the cache stay as they were
    turned. Within that length nobody feels the others.
    """
    most = getattr(text, "max_position_embeddings", None)
    parameters = getattr(text, "rope_parameters", None) or {}
    each = [one for one in (parameters, *parameters.values()) if isinstance(one, dict)]
    originals = [one["original_max_position_embeddings"] for one in each if one.get("rope_type") == "longrope"]
    known = [one for one in (most, *originals) if isinstance(one, int)]
    if not known:
        return None, ()
    if min(known) == most:
        return most, ()
    remark = (
        f"texts are at most {min(known)} tokens long, not {most}: positions of the kind longrope are turned otherwise"
        " beyond, for all in a batch once one is longer, and a cache does not follow"
    )
    return min(known), (remark,)


def trusts_code(model: Model) -> bool:
    """Return whether code of the model's folder may be run."""
    return model.hugging_face is not None and model.hugging_face.trust_remote_code


_NO_DATA = Data.model_construct(sequence_length=1)
