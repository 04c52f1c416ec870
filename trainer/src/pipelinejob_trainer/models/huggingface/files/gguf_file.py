"""Reads single tensors of a GGUF file, as transformers makes a model of one.

The file is mapped into memory, and only what is asked for of it is read and turned into plain
numbers. Which of its tensors make which of the model, and how, is asked of transformers: its
names, its permutations, its fused experts.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelinejob_trainer.models.huggingface.files.folder import bad, few, refuse_without_library
from pipelinejob_trainer.models.portions import Portion

_UNREADABLE = (OSError, ValueError, IndexError, KeyError, TypeError, NotImplementedError, AttributeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dequantised:
    """A tensor of the model, or a rank's part of it, that is made of a file's when it is read. Always fp32."""

    file: Path
    name: str
    shape: tuple[int, ...]
    made: "GgufFile"
    portion: Portion | None = None
    dtype: torch.dtype = torch.float32

    def part(self, portion: Portion) -> "Dequantised":
        """Return a rank's portion of a whole tensor, which is read whole all the same."""
        own = replace(portion, shape=self.shape)
        return replace(self, shape=own.own_shape, portion=own)

    @torch.no_grad()
    def read_into(self, tensor: torch.Tensor) -> None:
        """Copy its values into a tensor of as many elements, of whatever type, on the CPU."""
        tensor.detach().view(-1).copy_(self._values().reshape(-1))

    @torch.no_grad()
    def equals(self, tensor: torch.Tensor) -> bool:
        """Tell whether a contiguous tensor on the CPU has its values, in its own type."""
        flat = tensor.detach().view(-1)
        return torch.equal(self._values().reshape(-1).to(flat.dtype), flat)

    def _values(self) -> torch.Tensor:
        whole = self.made.values(self.name)
        return whole if self.portion is None else self.portion.of(whole)


class GgufFile:
    """The tensors of a file, by the names that transformers gives them in a model.

    Raises UserError where it is no such file, or of an architecture that transformers reads in
    another way.
    """

    def __init__(self, file: Path, model: Any, said: Mapping[str, Any]) -> None:
        """Find out which of the file's tensors make which of the model, whose values do not matter.

        `said` is the config that transformers reads of the file.
        """
        refuse_without_library(file)
        from gguf import GGUFReader  # noqa: PLC0415  # for such files alone
        from transformers.modeling_gguf_pytorch_utils import (  # noqa: PLC0415  # as above
            TENSOR_PROCESSORS,
            TensorProcessor,
            get_gguf_hf_weights_map,
        )

        self._file = file
        try:
            reader = GGUFReader(str(file))
            architecture = reader.fields["general.architecture"].contents()
            self._processor: Any = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=dict(said))
            self._names_there: Mapping[str, str] = get_gguf_hf_weights_map(model, self._processor)
        except _UNREADABLE as error:
            raise bad(f"{file} cannot be read as GGUF: {_sentence(error)}; download it again") from error
        self._sources: dict[str, list[Any]] = {}
        for each in reader.tensors:
            name = self._names_there.get(each.name) or self._names_there.get(each.name.removesuffix(".weight"))
            self._sources.setdefault(name or each.name, []).append(each)

    @property
    def names(self) -> Iterable[str]:
        """The model's names of the file's tensors; of those that make nothing in it, the file's own."""
        return self._sources.keys()

    @cached_property
    def described(self) -> str:
        """What says which tensors there are."""
        return str(self._file)

    def stored(self, name: str) -> Dequantised:
        """Return where a tensor is. Raises UserError where it cannot be made."""
        return Dequantised(file=self._file, name=name, shape=self._made(name, _without_values).shape, made=self)

    def values(self, name: str) -> torch.Tensor:
        """Return a tensor as plain numbers. Raises UserError where the file's cannot be turned into them."""
        from gguf import dequantize  # noqa: PLC0415  # for such files alone

        made = self._made(name, lambda each: dequantize(each.data, each.tensor_type))
        return torch.from_numpy(np.array(made, dtype=np.float32, order="C"))  # a copy: the file's own is mapped

    def _made(self, name: str, read: Any) -> Any:
        """Let transformers make a tensor of the file's; of several, as those of fused experts, it fills one."""
        gathered: dict[str, dict[str, Any]] = {"tensors": {}}
        made = None
        try:
            for each in self._sources[name]:
                found = self._processor.process(
                    weights=read(each),
                    name=each.name,
                    tensor_key_mapping=self._names_there,
                    parsed_parameters=gathered,
                )
                made = found.weights if found.name is not None else None
            return gathered["tensors"][name].numpy() if made is None else made
        except _UNREADABLE as error:
            sources = few(each.name for each in self._sources[name])
            raise bad(
                f"{self._file}: {sources} cannot be made into {name} as transformers does: {_sentence(error)};"
                " download it again, or use a file of another kind of quantisation"
            ) from error


def _without_values(tensor: Any) -> Any:
    """Return zeros of a tensor's shape that take no memory."""
    shape = tuple(int(each) for each in reversed(tensor.shape))
    expected = math.prod(shape)
    if expected != int(tensor.n_elements):
        raise ValueError(f"{tensor.name} has {tensor.n_elements} values for the shape {shape}")
    return np.broadcast_to(np.float32(0), shape)


def _sentence(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
