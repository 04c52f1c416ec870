"""Reads a stage's own tensors of a Hugging Face folder, as transformers converts them.

A folder's names are not always a model's: transformers renames keys, adds and drops prefixes,
fuses experts and cuts fused matrices apart as it loads. Which tensors of the folder make which of
the model is asked of its own `WeightConverter`s; what is read here is only where the bytes go.
Plain tensors are read into their place piece by piece, experts one at a time, so that a stage
never holds more than its own layers and one conversion.
"""

import copy
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from pipelinejob_trainer.base.user_code import error_text
from pipelinejob_trainer.models.huggingface.files.checkpoint_files import CheckpointFiles
from pipelinejob_trainer.models.huggingface.files.folder import CONFIG, ModelFolder, bad, few
from pipelinejob_trainer.models.huggingface.files.gguf_file import Dequantised, GgufFile
from pipelinejob_trainer.models.huggingface.files.safetensors_file import Stored
from pipelinejob_trainer.models.portions import Portion

_Readable = Stored | Dequantised


@dataclass(slots=True, kw_only=True)
class _Conversion:
    """What makes tensors of the model, `targets`, of tensors of the folder.

    `sources` are the folder's names, by the pattern of the converter that they matched. Without a
    converter there is one of each, and only the names differ.
    """

    targets: tuple[str, ...]
    converter: Any = None
    sources: dict[str, list[str]] = field(default_factory=dict)

    @property
    def source_names(self) -> list[str]:
        return [name for names in self.sources.values() for name in names]


class FolderWeights:
    """The weights of a folder for one model, of which other ranks' layers may be stubs."""

    def __init__(self, folder: ModelFolder, model: nn.Module, portions: Mapping[str, Portion]) -> None:
        """Find out what the folder holds for the model, whose values do not matter.

        Of tensors that are divided, by their full names, this rank's portion is read.

        Opens the index, or the one file. Raises UserError if there is nothing to read, or if it is
        another model's.
        """
        self._path = folder.path
        self._model: Any = model
        self._files = _files_of(folder, model)
        self._shapes: dict[str, torch.Tensor] = model.state_dict()
        self._by_target: dict[str, _Conversion] = {}
        self._unexpected: list[str] = []
        self._sort_out()
        self._ties = _ties(model)
        self._portions = portions
        if not self._by_target:
            raise bad(
                f"{self._files.described} holds no tensor of a {self._kind}, but {few(self._files.names)}; these are "
                f"another model's weights, or {CONFIG} is another model's"
            )

    @property
    def remark(self) -> str | None:
        """What the folder holds in vain."""
        if not self._unexpected:
            return None
        return (
            f"{self._path}: {len(self._unexpected)} tensors belong to nothing in a {self._kind} and are not read: "
            f"{few(self._unexpected)}"
        )

    def fill(self, wanted: Mapping[str, torch.Tensor]) -> None:
        """Copy the folder's values into tensors, by transformers' names in the model, on the CPU.

        A tied tensor may go by the name of any of its places. Raises UserError, before anything is
        read, for a tensor that the folder does not have or has in another shape.
        """
        places: dict[str, list[torch.Tensor]] = {}
        for name, tensor in wanted.items():
            places.setdefault(self._name_there(name), []).append(tensor)
        absent = [name for name in places if name not in self._by_target]
        if absent:
            raise bad(self._absent(absent))
        given = {name: tensors[0] for name, tensors in places.items()}
        conversions = {id(each): each for each in map(self._by_target.__getitem__, given)}.values()
        for each in conversions:
            self._check_shapes(each, given)
        for each in conversions:
            self._convert(each, given)
        for name, (tensor, *others) in places.items():
            self._check_ties(name, tensor)
            for other in others:
                other.detach().copy_(tensor.detach())

    @property
    def _kind(self) -> str:
        return type(self._model).__name__

    def _sort_out(self) -> None:
        """Ask transformers, for each of the folder's names, what of the model it becomes."""
        from transformers.conversion_mapping import get_model_conversion_mapping  # noqa: PLC0415  # slow, and for such models alone
        from transformers.core_model_loading import (  # noqa: PLC0415  # as above
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )

        transforms = get_model_conversion_mapping(self._model)
        renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
        converters = [each for each in transforms if isinstance(each, WeightConverter)]
        by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
        known = {"base_model_prefix": self._model.base_model_prefix, "meta_state_dict": self._shapes}
        for name in sorted(self._files.names, key=dot_natural_key):
            target, pattern = rename_source_key(name, renamings, converters, **known)
            if target not in self._shapes and name in self._shapes:
                target, pattern = rename_source_key(name, [], [], **known)
            if target in self._shapes:
                self._add(name, target, pattern, by_pattern)
            else:
                self._unexpected.append(name)
        ignored = _ignored(self._model)
        self._unexpected = [name for name in self._unexpected if not any(each.search(name) for each in ignored)]

    def _add(self, name: str, target: str, pattern: str | None, by_pattern: Mapping[str, Any]) -> None:
        converter = None if pattern is None else by_pattern[pattern]
        conversion = self._by_target.get(target)
        if conversion is None:
            targets = (target,) if converter is None else _targets(target, converter.target_patterns)
            conversion = _Conversion(targets=targets, converter=converter)
            self._by_target |= dict.fromkeys(targets, conversion)
        conversion.sources.setdefault(pattern or name, []).append(name)

    def _name_there(self, name: str) -> str:
        """Return the name by which the folder has a tensor: its own, or that of one tied to it."""
        others = (other for other in self._ties.get(name, ()) if other in self._by_target)
        return name if name in self._by_target else next(others, name)

    def _absent(self, names: Sequence[str]) -> str:
        hint = (
            f"; it has {few(self._unexpected)} instead, so {CONFIG} may be another model's" if self._unexpected else ""
        )
        return (
            f"{self._files.described} has nothing for {few(names)}, which a {self._kind} needs{hint}; download the "
            "folder again, or name the folder of the whole model"
        )

    def _check_shapes(self, conversion: _Conversion, wanted: Mapping[str, torch.Tensor]) -> None:
        stored = {name: self._files.stored(name) for name in conversion.source_names}
        made = self._made(conversion, {name: partial(_without_values, each) for name, each in stored.items()})
        for target in conversion.targets:
            if target in wanted and target not in made:
                raise bad(self._absent([target]))
            if target in wanted and made[target].shape != self._shapes[target].shape:
                of = "" if conversion.source_names == [target] else f" (of {few(conversion.source_names)})"
                found, expected = (tuple(each[target].shape) for each in (made, self._shapes))
                raise bad(
                    f"{next(iter(stored.values())).file}: {target}{of} has the shape {found}, and "
                    f"{expected} by {CONFIG}; one of the two is another model's: download both again"
                )

    def _convert(self, conversion: _Conversion, wanted: Mapping[str, torch.Tensor]) -> None:
        if conversion.converter is None:
            (target,) = conversion.targets
            self._part_of(target, self._files.stored(conversion.source_names[0])).read_into(wanted[target])
            return
        if _is_by_expert(conversion):
            (target,) = conversion.targets
            all_sources = list(zip(*conversion.sources.values(), strict=True))
            portion = self._portions.get(target, Portion((len(all_sources),), ()))
            experts, of_each = portion.of_first()
            for index, expert in enumerate(experts):
                sources = zip(conversion.sources, all_sources[expert], strict=True)
                one = _Conversion(
                    targets=conversion.targets,
                    converter=conversion.converter,
                    sources={pattern: [name] for pattern, name in sources},
                )
                self._copy(one, {target: wanted[target][index : index + 1]}, {target: of_each})
            return
        self._copy(conversion, wanted, self._portions)

    def _copy(self, conversion: _Conversion, into: Mapping[str, torch.Tensor], portions: Mapping[str, Portion]) -> None:
        reads = {name: partial(_as_master, self._files.stored(name)) for name in conversion.source_names}
        for target, tensor in self._made(conversion, reads).items():
            if target in into:
                into[target].detach().copy_(portions[target].of(tensor) if target in portions else tensor)

    def _part_of(self, target: str, stored: _Readable) -> _Readable:
        """Return where this rank's part of a tensor is."""
        return stored.part(self._portions[target]) if target in self._portions else stored

    def _made(self, conversion: _Conversion, reads: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Let transformers convert what `reads` return, by the folder's names."""
        first = conversion.targets[0]
        if conversion.converter is None:
            return {first: reads[conversion.source_names[0]]()}
        converter = copy.deepcopy(conversion.converter)
        for pattern, names in conversion.sources.items():
            for name in names:
                converter.add_tensor(first, name, pattern, reads[name])
        try:
            made = converter.convert(first, model=self._model, config=self._model.config)
        except (RuntimeError, ValueError, IndexError, KeyError, AttributeError, TypeError) as error:
            raise bad(
                f"{self._files.described}: {few(conversion.source_names)} cannot be made into {first} as transformers "
                f"does: {error_text(error)}; download the folder again"
            ) from error
        return {name: each[0] if isinstance(each, list) else each for name, each in made.items()}

    def _check_ties(self, name: str, tensor: torch.Tensor) -> None:
        """Refuse a folder in which tied tensors differ: transformers would not tie them, against the config."""
        for other in self._ties.get(name, ()):
            conversion = self._by_target.get(other)
            if conversion is None or other == name or conversion.converter is not None:
                continue
            stored = self._part_of(name, self._files.stored(conversion.source_names[0]))
            if stored.shape != tensor.shape or not stored.equals(tensor):
                raise bad(
                    f"{stored.file}: {stored.name} differs from {name}, to which {CONFIG} ties it "
                    "(tie_word_embeddings); set that to false there if they are two"
                )


def _files_of(folder: ModelFolder, model: Any) -> CheckpointFiles | GgufFile:
    if folder.gguf is not None:
        return GgufFile(folder.gguf, model, folder.said)
    return CheckpointFiles(folder.path, named=getattr(folder.config, "transformers_weights", None))


def _targets(first: str, patterns: Sequence[str]) -> tuple[str, ...]:
    """Name all that a converter makes, by the first of them."""
    before, _, behind = first.partition(patterns[0])
    return tuple(dict.fromkeys((first, *(f"{before}{pattern}{behind}" for pattern in patterns[1:]))))


def _is_by_expert(conversion: _Conversion) -> bool:
    """Tell whether a conversion stacks experts, and otherwise treats each by itself."""
    from transformers.core_model_loading import Concatenate, MergeModulelist  # noqa: PLC0415  # slow, and for such models alone

    merge, *others = conversion.converter.operations
    counts = {len(names) for names in conversion.sources.values()}
    return (
        isinstance(merge, MergeModulelist)
        and merge.dim == 0
        and all(isinstance(each, Concatenate) and each.dim > 0 for each in others)
        and len(counts) == 1
        and len(conversion.targets) == 1
    )


def _as_master(stored: _Readable) -> torch.Tensor:
    """Read a tensor, what is floating-point as fp32, as transformers does before it converts into such a model."""
    tensor = torch.empty(stored.shape, dtype=torch.float32 if stored.dtype.is_floating_point else stored.dtype)
    stored.read_into(tensor)
    return tensor


def _without_values(stored: _Readable) -> torch.Tensor:
    return torch.empty(stored.shape, dtype=stored.dtype, device="meta")


def _ties(model: Any) -> dict[str, tuple[str, ...]]:
    """Return for each tied tensor the names of all its places, as transformers ties them."""
    groups: dict[str, list[str]] = {}
    for name, source in dict(getattr(model, "all_tied_weights_keys", None) or {}).items():
        groups.setdefault(source, [source]).append(name)
    return {name: tuple(names) for names in groups.values() for name in names}


def _ignored(model: Any) -> tuple[re.Pattern[str], ...]:
    """Return what names transformers expects in vain without a word: layers for further tokens, old buffers."""
    patterns: Collection[str] = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    buffers = [name for name, _ in model.named_buffers()]
    further = {"rotary_emb.inv_freq": r"rotary_emb\.inv_freq", "position_ids": r"(^|\.)position_ids$"}
    old = [pattern for end, pattern in further.items() if any(name.endswith(end) for name in buffers)]
    return tuple(re.compile(pattern) for pattern in (*patterns, *old))
