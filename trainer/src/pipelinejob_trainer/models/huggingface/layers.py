"""A folder's model as the trainer's layers: what `models.part` asks for.

Nothing here imports transformers before such a model is asked for: it takes seconds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipelinejob.spec.job import Model, Weights
from pipelinejob_trainer.models.huggingface.folder import ModelFolder, open_folder
from pipelinejob_trainer.models.huggingface.positions import check_length
from pipelinejob_trainer.models.huggingface.weights import FolderWeights
from pipelinejob_trainer.models.identity import Made, Place, of_layer, places
from pipelinejob_trainer.models.walk import Runner

if TYPE_CHECKING:
    from pipelinejob_trainer.models.huggingface.cut import Cut


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """Each layer's name and factory, which tensors are tied, and what runs a rank's layers together.

    `remarks` are for the user's eyes.
    """

    parts: Sequence[tuple[str, Callable[[], Made]]]
    tied: Mapping[str, str]
    runner: Runner
    remarks: tuple[str, ...] = ()


def layers_of(model: Model, own: frozenset[int], *, sequence_length: int, is_narrow: bool = False) -> Layers:
    """Return the layers of a folder's model, of which this rank holds `own`.

    A narrow one has as many layers, with few hidden units and random weights, as the check before
    step 1 has them.

    Raises UserError where the folder cannot be used, or its model not be cut.
    """
    assert model.hugging_face is not None, "asked for such models only"
    folder = open_folder(model)
    return layers_of_config(
        folder.config,
        own,
        trust_remote_code=folder.trust_remote_code,
        folder=folder if model.hugging_face.weights is Weights.LOAD and not is_narrow else None,
        sequence_length=sequence_length,
        is_narrow=is_narrow,
        remarks=folder.remarks,
    )


def layers_of_config(
    config: Any,
    own: frozenset[int],
    *,
    trust_remote_code: bool = False,
    folder: ModelFolder | None = None,
    sequence_length: int = 1,
    is_narrow: bool = False,
    remarks: tuple[str, ...] = (),
) -> Layers:
    """Return the layers of a model of this config, with a folder's weights, or random ones.

    Raises UserError where it cannot be cut, or is not what the folder holds.
    """
    from pipelinejob_trainer.models.huggingface.build import checked  # noqa: PLC0415  # as above
    from pipelinejob_trainer.models.huggingface.chunk import Runner as OwnForward  # noqa: PLC0415  # as above
    from pipelinejob_trainer.models.huggingface.cut import cut  # noqa: PLC0415  # as above
    from pipelinejob_trainer.models.huggingface.shrink import narrowed  # noqa: PLC0415  # as above

    found = checked(config, trust_remote_code=trust_remote_code)
    if is_narrow:
        config = narrowed(config, found.sizes)
    make = partial(cut, config, anatomy=found.anatomy, trust_remote_code=trust_remote_code)
    here = make(own)
    length = check_length(here.model, config, sequence_length)
    weights = FolderWeights(folder, here.model) if folder else None
    said = (*remarks, found.sentence, length, weights.remark if weights else None)

    def made(index: int) -> Made:
        # Another rank's layer is made to take a tied tensor from it, and must leave nothing behind.
        return _made(here if index in own else make({index}), index, weights)

    return Layers(
        parts=[(here.layer_name(index), partial(made, index)) for index in range(len(here.layers))],
        tied=here.tied,
        runner=OwnForward(here, takes_documents=found.keeps_documents_apart),
        remarks=tuple(remark for remark in said if remark),
    )


def _made(cut: "Cut", index: int, weights: FolderWeights | None) -> Made:
    from pipelinejob_trainer.models.huggingface.cut import initialise, materialise  # noqa: PLC0415  # as above

    module = materialise(cut, index)
    if weights is None:
        initialise(cut, index)
    else:
        weights.fill({cut.names.full(place.name): tensor for place, tensor in _filled(index, module)})
    return Made(module=module, tied=of_layer(index, cut.tied))


def _filled(index: int, module: nn.Module) -> Iterator[tuple[Place, torch.Tensor]]:
    """Return what a folder fills of a layer: all that a checkpoint keeps, but what is an earlier layer's."""
    for place in places(index, module):
        tensor = place.tensor
        if tensor is not None and not tensor.is_meta and (not place.is_buffer or place.is_kept):
            yield place, tensor
