"""The base of every value that is read from or written to JSON or YAML: frozen, camelCase outside."""

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Value(BaseModel):
    """A frozen value; `dump()` gives the JSON-ready form that `model_validate` reads back."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, validate_by_name=True)

    def dump(self) -> dict[str, object]:
        """Give the JSON-ready form, camelCase keys, nothing that is unset."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
