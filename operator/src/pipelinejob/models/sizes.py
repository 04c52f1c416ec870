"""What a manifest says of a Hugging Face folder: the fields of its `config.json` that its layers are counted by."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from pipelinejob.models.config_fields import MAX_BLOCKS
from pipelinejob.models.decoder import Decoder
from pipelinejob.models.huggingface import decoder_of_config, read_decoder, text_part

# What the configuration classes of `transformers` call the number of blocks; most map all others
# to the first.
_BLOCKS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A field that two configs have otherwise; None where one of them lacks it."""

    field: str
    said: Any
    found: Any


def sizes_of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields by which the layers of a `config.json` are counted, in its order.

    Of a model of images and text, those of its text. Raises SpecError naming the field that is
    missing, or is no size.
    """
    watched = _Watched(text_part(config))
    read_decoder(watched)
    return {
        name: value
        for name, value in watched.items()
        if name in watched.read and value is not None and not isinstance(value, Mapping)
    }


def blocks_of_config(config: Mapping[str, Any]) -> int | None:
    """Return the number of blocks, between embedding and head; None if it stands under no usual name."""
    part = text_part(config)
    numbers = (part.get(name) for name in _BLOCKS)
    return next((each for each in numbers if isinstance(each, int) and 1 <= each <= MAX_BLOCKS), None)


def differences(said: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[Difference, ...]:
    """Name what the sizes in a manifest have otherwise than a folder's `config.json`.

    A field that only one of them has, and which changes nothing (it equals the default), is no
    difference. Raises SpecError for a config of either that cannot be counted.
    """
    part, counted = text_part(found), sizes_of_config(found)
    others = [
        Difference(field=name, said=value, found=part[name])
        for name, value in text_part(said).items()
        if name in part and part[name] != value
    ]
    if others or _equal(decoder_of_config(said), decoder_of_config(found)):
        return tuple(others)
    lacking = [Difference(field=name, said=None, found=value) for name, value in counted.items() if name not in said]
    further = [
        Difference(field=name, said=value, found=None)
        for name, value in sizes_of_config(said).items()
        if name not in part
    ]
    return (*lacking, *further)


def _equal(one: Decoder, other: Decoder) -> bool:
    return all(getattr(one, field.name) == getattr(other, field.name) for field in fields(Decoder))


class _Watched(dict[str, Any]):
    """A config that knows which of its fields were read."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)
