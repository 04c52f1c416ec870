"""A folder's model as the trainer's layers: what `models.part` asks for.

Nothing here imports transformers before such a model is asked for: it takes seconds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from pipelinejob.spec.job import Model, Weights
from pipelinejob_trainer.communication.expert_group import UNDIVIDED, ExpertGroup
from pipelinejob_trainer.communication.tensor_group import ALONE, TensorGroup
from pipelinejob_trainer.models.huggingface.files.folder import ModelFolder, open_folder
from pipelinejob_trainer.models.huggingface.files.weights import FolderWeights
from pipelinejob_trainer.models.huggingface.positions import check_length
from pipelinejob_trainer.models.identity import Made, Place, of_layer, places
from pipelinejob_trainer.models.portions import Portion, portions
from pipelinejob_trainer.models.walk import Runner

if TYPE_CHECKING:
    from pipelinejob_trainer.models.huggingface.cut import Cut


class Narrow(NamedTuple):
    """How many ranks can share each layer of a narrow copy, and how many replicas its experts."""

    tensor: int = 1
    expert: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """Each layer's name and factory, which tensors are tied, and what runs a rank's layers together.

    `remarks` are for the user's eyes. `portions` are what this rank holds of tensors that are
    divided, by their own global names, and `vocabulary` of how many tokens the logits are that a
    tensor group divides.
    """

    parts: Sequence[tuple[str, Callable[[], Made]]]
    tied: Mapping[str, str]
    runner: Runner
    remarks: tuple[str, ...] = ()
    portions: Mapping[str, Portion] = field(default_factory=dict)
    vocabulary: int | None = None


def layers_of(
    model: Model,
    own: frozenset[int],
    *,
    sequence_length: int,
    narrow: Narrow | None = None,
    tensor_group: TensorGroup = ALONE,
    expert_group: ExpertGroup = UNDIVIDED,
) -> Layers:
    """Return the layers of a folder's model, of which this rank holds `own`, or its part of them.

    A narrow one has as many layers, with few hidden units and random weights, as the check before
    step 1 has them.

    Raises UserError where the folder cannot be used, or its model not be cut or not be divided.
    """
    assert model.hugging_face is not None, "asked for such models only"
    folder = open_folder(model)
    return layers_of_config(
        folder.config,
        own,
        trust_remote_code=folder.trust_remote_code,
        folder=folder if model.hugging_face.weights is Weights.LOAD and narrow is None else None,
        sequence_length=sequence_length,
        narrow=narrow,
        remarks=folder.remarks,
        tensor_group=tensor_group,
        expert_group=expert_group,
    )


def layers_of_config(
    config: Any,
    own: frozenset[int],
    *,
    trust_remote_code: bool = False,
    folder: ModelFolder | None = None,
    sequence_length: int = 1,
    narrow: Narrow | None = None,
    remarks: tuple[str, ...] = (),
    tensor_group: TensorGroup = ALONE,
    expert_group: ExpertGroup = UNDIVIDED,
) -> Layers:
    """Return the layers of a model of this config, with a folder's weights, or random ones.

    Raises UserError where it cannot be cut or divided, or is not what the folder holds.
    """
    from pipelinejob_trainer.models.huggingface.build import checked  # noqa: PLC0415  # as above
    from pipelinejob_trainer.models.huggingface.chunk import Runner as OwnForward  # noqa: PLC0415  # as above
    from pipelinejob_trainer.models.huggingface.cut import cut  # noqa: PLC0415  # as above
    from pipelinejob_trainer.models.huggingface.division import division_of, install  # noqa: PLC0415  # as above
    from pipelinejob_trainer.models.huggingface.experts import divided_experts, install_experts  # noqa: PLC0415  # as above
    from pipelinejob_trainer.models.huggingface.shrink import narrowed  # noqa: PLC0415  # as above

    found = checked(config, trust_remote_code=trust_remote_code)
    if narrow is not None:
        config = narrowed(config, found.sizes, tensor=narrow.tensor, expert=narrow.expert)
    make = partial(cut, config, anatomy=found.anatomy, trust_remote_code=trust_remote_code)
    here = make(own)
    length = check_length(here.model, config, sequence_length)
    division = division_of(here.model, config, tensor_group) if tensor_group.is_split else None
    experts = divided_experts(here.model, config, expert_group) if expert_group.is_split else None
    held = portions(*((each.slices, each.group) for each in (experts, division) if each))
    weights = FolderWeights(folder, here.model, held) if folder else None
    runner = OwnForward(here, takes_documents=found.keeps_documents_apart)
    modules = frozenset(module for index in own for module in here.layers[index].modules())
    if experts:
        install_experts(experts, here.model, modules)
    if division:
        install(division, here.model, modules, runner.reads_tokens)
    said = (*remarks, found.sentence, length, *(each.remark for each in (weights, division) if each))

    def made(index: int) -> Made:
        # Another rank's layer is made to take a tied tensor from it, and must leave nothing
        # behind.
        return _made(here if index in own else make({index}), index, weights, held)

    return Layers(
        parts=[(here.layer_name(index), partial(made, index)) for index in range(len(here.layers))],
        tied=here.tied,
        runner=runner,
        remarks=tuple(remark for remark in said if remark),
        portions=_by_own_names(here, held),
        vocabulary=division.vocabulary if division else None,
    )


def _by_own_names(cut: "Cut", held: Mapping[str, Portion]) -> dict[str, Portion]:
    """Return what a rank holds of parameters that are divided, by their own global names."""
    names = (place.name for index, layer in enumerate(cut.layers) for place in places(index, layer))
    return {name: held[full] for name in names if (full := cut.names.full(name)) in held}


def _made(cut: "Cut", index: int, weights: FolderWeights | None, held: Mapping[str, Portion]) -> Made:
    from pipelinejob_trainer.models.huggingface.cut import initialise, materialise  # noqa: PLC0415  # as above

    if weights is not None:
        module = materialise(cut, index, held)
        weights.fill({cut.names.full(place.name): tensor for place, tensor in _filled(index, module)})
        return Made(module=module, tied=of_layer(index, cut.tied))
    module = materialise(cut, index)
    initialise(cut, index)  # whole, so that all shapes start from the same values
    for place, tensor in _filled(index, module) if held else ():
        portion = held.get(cut.names.full(place.name))
        if portion is not None:
            tensor.data = portion.of(tensor.data)
    return Made(module=module, tied=of_layer(index, cut.tied))


def _filled(index: int, module: nn.Module) -> Iterator[tuple[Place, torch.Tensor]]:
    """Return what a folder fills of a layer: all that a checkpoint keeps, but what is an earlier layer's."""
    for place in places(index, module):
        tensor = place.tensor
        if tensor is not None and not tensor.is_meta and (not place.is_buffer or place.is_kept):
            yield place, tensor
