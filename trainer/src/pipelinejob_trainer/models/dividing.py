"""Which groups of ranks divide which parameters of a rank's layers, and this rank's portion of them."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from pipelinejob.spec.job import Model
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.communication.expert_group import ExpertGroup
from pipelinejob_trainer.communication.layer_group import LayerGroup
from pipelinejob_trainer.communication.tensor_group import TensorGroup
from pipelinejob_trainer.models.expert_parallel import divide_experts
from pipelinejob_trainer.models.families import family_of
from pipelinejob_trainer.models.portions import Portion, portions
from pipelinejob_trainer.models.tensor_parallel import Slice, share

if TYPE_CHECKING:
    from pipelinejob_trainer.models.part import LayerEntry


def divide(
    model: Model,
    entries: Mapping[int, "LayerEntry"],
    made: Mapping[str, Portion] | None,
    *,
    tensor_group: TensorGroup,
    expert_group: ExpertGroup,
) -> dict[str, Portion]:
    """Keep this rank's portion of each parameter that groups divide; return what it is, by global name.

    Layers may be `made` divided: how, by their parameters' own names. Raises UserError for layers
    of which nobody knows how.
    """
    if made is not None:
        named = (each for entry in entries.values() for each in entry.places())
        return {name: made[place.name] for name, place in named if place.name in made}
    of_experts = _divide_experts(model, entries, expert_group) if expert_group.is_split else {}
    slices = _divide(model, entries, tensor_group) if tensor_group.is_split else {}
    return portions((of_experts, expert_group), (slices, tensor_group))


def _divide(model: Model, entries: Mapping[int, "LayerEntry"], group: TensorGroup) -> dict[str, Slice]:
    """Keep this rank's part of each parameter that its layers divide; return how, by global name."""
    sizes = model.built_in
    slices_of = None if sizes is None else family_of(sizes).slices
    if sizes is None or slices_of is None:
        raise UserError(
            "NotDivided",
            f"spec.parallelism.tensor: {group.size} ranks are to share each layer, and how is known of built-in models"
            " (spec.model.gpt, spec.model.decoder) and of Hugging Face folders; use tensor: 1 and more pipeline stages"
            " or replicas",
        )
    found: dict[str, Slice] = {}
    for index, entry in entries.items():
        share(entry.module, group)
        found |= _cut(entry, slices_of(sizes, index), group, found)
    return found


def _divide_experts(model: Model, entries: Mapping[int, "LayerEntry"], group: ExpertGroup) -> dict[str, Slice]:
    """Keep this rank's experts of each layer; return how they are divided, by global name."""
    sizes = model.built_in
    assert sizes is not None, "other layers are refused before"
    slices_of = family_of(sizes).expert_slices
    assert slices_of is not None, "families without experts are refused before"
    found: dict[str, Slice] = {}
    for index, entry in entries.items():
        divide_experts(entry.module, group)
        found |= _cut(entry, slices_of(sizes, index), group, found)
    return found


def _cut(
    entry: "LayerEntry", slices: Mapping[str, Slice], group: LayerGroup, done: Collection[str]
) -> dict[str, Slice]:
    """Keep this rank's part of a layer's tensors, but of those that were `done` as another layer's."""
    found: dict[str, Slice] = {}
    for name, place in entry.places():
        if place.local in slices and name not in done and name not in found:
            assert place.tensor is not None, "a built-in layer's slots are filled"
            found[name] = replace(slices[place.local], shape=tuple(place.tensor.shape))
            place.tensor.data = found[name].of(place.tensor.data, group)
    return found
