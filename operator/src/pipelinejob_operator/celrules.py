"""Evaluates the CEL rules that stand in the CRD, as the API server does: on every value whose schema carries some."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import cel

from pipelinejob.errors import SpecError

Schema = Mapping[str, Any]

# What Kubernetes adds to CEL and our rules use.
_FUNCTIONS = {"sum": sum, "format": lambda text, values: text % tuple(values)}
_EVALUATION_ERRORS = (RuntimeError, ValueError, TypeError, KeyError, ArithmeticError)


class _Absent(NamedTuple):
    """Stands for the old value where there is none: rules on changes are left out."""


ABSENT = _Absent()


def rule_errors(value: Any, schema: Schema, *, old: Any = ABSENT, is_sound: bool = True) -> Iterator[SpecError]:
    """Say which rules `value` breaks, as a change of `old` where that is given.

    A value that is not `is_sound` broke its schema already: rules that cannot be evaluated on it are left out.
    """
    yield from _walk("", value, old, schema, is_sound=is_sound)


def _walk(path: str, value: Any, old: Any, schema: Schema, *, is_sound: bool) -> Iterator[SpecError]:
    for rule in schema.get("x-kubernetes-validations", ()):
        if old is not ABSENT or "oldSelf" not in rule["rule"]:
            yield from _judge(path, value, old, rule, is_sound=is_sound)
    if isinstance(value, Mapping):
        for name, field in schema.get("properties", {}).items():
            if name in value:
                before = old.get(name, ABSENT) if isinstance(old, Mapping) else ABSENT
                here = f"{path}.{name}" if path else name
                yield from _walk(here, value[name], before, field, is_sound=is_sound)
    elif isinstance(value, list) and "items" in schema:
        # Items of a list have no old self, unless it is a map; no rule of ours on an item asks for one.
        for index, item in enumerate(value):
            yield from _walk(f"{path}[{index}]", item, ABSENT, schema["items"], is_sound=is_sound)


def _judge(path: str, value: Any, old: Any, rule: Mapping[str, str], *, is_sound: bool) -> Iterator[SpecError]:
    context = cel.Context({"self": value} if old is ABSENT else {"self": value, "oldSelf": old}, _FUNCTIONS)
    try:
        if not _compiled(rule["rule"]).execute(context):
            yield SpecError(f"{path}{rule.get('fieldPath', '')}".removeprefix("."), _message(rule, context))
    except _EVALUATION_ERRORS:
        if is_sound:
            raise


def _message(rule: Mapping[str, str], context: cel.Context) -> str:
    if "messageExpression" not in rule:
        return rule["message"]
    message = str(_compiled(rule["messageExpression"]).execute(context))
    # A value with a line break in it must not forge a line of its own; the API server sees it so, too.
    return rule["message"] if "\n" in message else message


@cache
def _compiled(expression: str) -> cel.Program:
    return cel.compile(expression)
