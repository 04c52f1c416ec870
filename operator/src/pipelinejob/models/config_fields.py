"""The fields of a model's `config.json`, each checked as it is read."""

from collections.abc import Mapping
from typing import Any

from pipelinejob.base.errors import SpecError

PATH = "spec.model.config"
MAX_BLOCKS = 4094  # with embedding and head, the most layers that a manifest may have
_MAX_SIZE = 2**24
_SHOWN = 40  # characters of a value in a message


class Fields:
    """A config. Of several names given for a field the first that is there counts.

    Null is as good as not there.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._kind = self.text("model_type") or "model"

    def size(self, *names: str, default: int | None = None, least: int = 1, most: int = _MAX_SIZE) -> int:
        """Return a whole number.

        Raises SpecError if it is none, or is not there and has no default.
        """
        name, value = self._find(*names)
        if value is None and default is not None:
            return default
        if value is None:
            raise SpecError(f"{PATH}.{names[0]}", f"is missing; the layers of a {self._kind} cannot be counted without")
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise SpecError(f"{PATH}.{name}", f"{_shown(value)} is no whole number from {least} to {most}")
        return value

    def optional(self, *names: str) -> int | None:
        """Return a whole number, None if it is not there."""
        return None if self._find(*names)[1] is None else self.size(*names)

    def flag(self, *names: str, default: bool) -> bool:
        """Return a truth value."""
        name, value = self._find(*names)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise SpecError(f"{PATH}.{name}", f"{_shown(value)} is neither true nor false")
        return value

    def is_positive(self, *names: str) -> bool:
        """Return whether any of these numbers is greater than 0."""
        return any(isinstance(value := self._config.get(name), int | float) and value > 0 for name in names)

    def text(self, name: str) -> str:
        """Return a text; an empty one if it is not there."""
        value = self._config.get(name)
        return value if isinstance(value, str) else ""

    def items(self, name: str) -> tuple[Any, ...]:
        """Return a list; an empty one if it is not there."""
        value = self._config.get(name)
        if value is None:
            return ()
        if not isinstance(value, list | tuple):
            raise SpecError(f"{PATH}.{name}", f"{_shown(value)} is no list")
        return tuple(value)

    def blocks(self, *names: str) -> int:
        """Return the number of blocks."""
        return self.size(*(names or ("num_hidden_layers",)), most=MAX_BLOCKS)

    def heads(self, width: int, *names: str) -> int:
        """Return the number of attention heads, which must share the width unless the config gives a head's size."""
        names = names or ("num_attention_heads",)
        heads = self.size(*names)
        if width % heads and self._config.get("head_dim") is None:
            raise SpecError(f"{PATH}.{names[0]}", f"{heads} heads cannot share a width of {width} equally")
        return heads

    def _find(self, *names: str) -> tuple[str, Any]:
        there = (name for name in names if self._config.get(name) is not None)
        name = next(there, names[0])
        return name, self._config.get(name)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
