"""Applies the CRD's schema as the API server does: drops nulls, fills in defaults, finds errors.

What several fields must satisfy together is in `celrules`; both are driven by the same CRD.
"""

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

from jsonschema import Draft4Validator
from jsonschema.exceptions import ValidationError

from pipelinejob.base.errors import SpecError

Schema = Mapping[str, Any]

_TYPE_NAMES = {
    dict: "mapping",
    list: "list",
    str: "text",
    bool: "boolean",
    int: "number",
    float: "number",
    type(None): "null",
}
_WANTED = {
    "object": "a mapping",
    "array": "a list",
    "string": "a text",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
}


def read_as_server(value: Any, schema: Schema) -> Any:
    """Return the value as the API server stores it: no nulls, with defaults, no unknown fields.

    A number's field holds floats and a whole number's integers, so that CEL compares like with
    like.
    """
    if isinstance(value, Mapping):
        return _read_mapping(value, schema)
    if isinstance(value, list) and "items" in schema:
        return [read_as_server(item, schema["items"]) for item in value]
    if isinstance(value, bool):
        return value
    if schema.get("type") == "number" and isinstance(value, int):
        return float(value)
    if schema.get("type") == "integer" and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _read_mapping(value: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    if "properties" not in schema:
        inner = schema.get("additionalProperties")
        if not isinstance(inner, Mapping):
            return dict(value)
        return {key: read_as_server(item, inner) for key, item in value.items() if item is not None}
    properties: Mapping[str, Schema] = schema["properties"]
    given = {key: item for key, item in value.items() if item is not None and key in properties}
    defaults = {key: field["default"] for key, field in properties.items() if "default" in field}
    return {key: read_as_server(item, properties[key]) for key, item in {**defaults, **given}.items()}


def unknown_fields(path: str, value: Any, schema: Schema) -> Iterator[SpecError]:
    """Name every field that the schema does not know, and the one that was probably meant."""
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            yield from unknown_fields(f"{path}[{index}]", item, schema["items"])
    if not isinstance(value, Mapping) or "properties" not in schema:
        return
    for key, item in value.items():
        here = f"{path}.{key}" if path else key
        if key in schema["properties"]:
            yield from unknown_fields(here, item, schema["properties"][key])
        else:
            known = schema["properties"]
            near = _nearest(key, known)
            hint = f"did you mean {near!r}?" if near else f"known are {', '.join(sorted(known))}"
            yield SpecError(here, f"there is no such field; {hint}")


def schema_errors(value: Any, schema: Schema) -> Iterator[SpecError]:
    """Yield what single fields, or lists of them, violate."""
    seen = set()
    for error in Draft4Validator(schema).iter_errors(value):
        for problem in _translated(error):
            if str(problem) not in seen:
                seen.add(str(problem))
                yield problem
    yield from _duplicates("", value, schema)


def _translated(error: ValidationError) -> Iterator[SpecError]:
    path, value, wanted = _path(error.absolute_path), cast("Any", error.instance), cast("Any", error.validator_value)
    schema = cast("Schema", error.schema)
    if error.validator != "required":
        yield SpecError(path, _SENTENCES[str(error.validator)](value, wanted, schema))
        return
    for name in wanted:
        if name not in value:
            said = schema["properties"].get(name, {}).get("description", "").rstrip(".")
            yield SpecError(f"{path}.{name}" if path else name, f"is missing; it must be given: {said}")


def _type(value: Any, wanted: str, _: Schema) -> str:
    return f"{_shown(value)} is a {_TYPE_NAMES[type(value)]}; it must be {_WANTED[wanted]}"


def _enum(value: Any, allowed: list[str], _: Schema) -> str:
    near = _nearest(str(value), allowed)
    return (
        f"{_shown(value)} is not among {', '.join(allowed)}; {f'did you mean {near!r}?' if near else 'use one of them'}"
    )


def _minimum(value: Any, least: float, schema: Schema) -> str:
    bound = f"more than {least:g}" if schema.get("exclusiveMinimum") else f"at least {least:g}"
    return f"{_shown(value)} is too small; use {bound}"


def _maximum(value: Any, most: float, schema: Schema) -> str:
    bound = f"less than {int(most)}" if schema.get("exclusiveMaximum") else f"at most {int(most)}"
    return f"{_shown(value)} is too large; use {bound}"


def _sized(few_or_many: str, bound: str, unit: str) -> Callable[[Any, int, Schema], str]:
    return lambda value, limit, _: f"{len(value)} {unit} are too {few_or_many}; use {bound} {limit}"


_SENTENCES: Mapping[str, Callable[[Any, Any, Schema], str]] = {
    "type": _type,
    "enum": _enum,
    "minimum": _minimum,
    "maximum": _maximum,
    "minLength": _sized("few", "at least", "characters"),
    "maxLength": _sized("many", "at most", "characters"),
    "minItems": _sized("few", "at least", "entries"),
    "maxItems": _sized("many", "at most", "entries"),
    "maxProperties": _sized("many", "at most", "entries"),
    "pattern": lambda value, pattern, _: f"{_shown(value)} does not look like {pattern}",
}


def _duplicates(path: str, value: Any, schema: Schema) -> Iterator[SpecError]:
    """Report what stands twice in a list that is a set, or a map by some keys."""
    if isinstance(value, Mapping):
        for key, field in schema.get("properties", {}).items():
            if key in value:
                yield from _duplicates(f"{path}.{key}" if path else key, value[key], field)
    if not isinstance(value, list):
        return
    seen = set()
    for index, item in enumerate(value):
        yield from _duplicates(f"{path}[{index}]", item, schema.get("items", {}))
        identity = _identity(item, schema)
        if identity is not None and identity in seen:
            yield SpecError(f"{path}[{index}]", f"{identity} stands here twice; keep one of them")
        seen.add(identity)


def _identity(item: Any, schema: Schema) -> str | None:
    kind = schema.get("x-kubernetes-list-type", "atomic")
    if kind == "set":
        return json.dumps(item)
    if kind == "map" and isinstance(item, Mapping):
        return ", ".join(f"{key} {json.dumps(item.get(key))}" for key in schema["x-kubernetes-list-map-keys"])
    return None


def _nearest(word: str, known: Iterable[str]) -> str | None:
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[near[0]] if near else None


def _path(parts: Iterable[str | int]) -> str:
    path = ""
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.removeprefix(".")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."  # noqa: PLR2004  # a line's width
