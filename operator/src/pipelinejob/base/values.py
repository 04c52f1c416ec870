"""The base of every value that is read from or written to JSON or YAML: frozen, camelCase outside."""

from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

OPEN: Any = None
"""What stands in a field of a spec that is still to be chosen.

Its type says what will stand there: only `search`, and who asks `is_open`, look at a spec before
(`chosen.resolved`).
"""


class Value(BaseModel):
    """A frozen value; `dump()` gives the JSON-ready form that `model_validate` reads back."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, validate_by_name=True)

    def dump(self) -> dict[str, object]:
        """Return the JSON-ready form, camelCase keys, nothing that is unset."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
