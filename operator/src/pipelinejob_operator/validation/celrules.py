"""Evaluates the CRD's CEL rules as the API server does, on every value whose schema has some."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from pipelinejob.base.errors import SpecError
from pipelinejob_operator.validation.cel_library import evaluator

if TYPE_CHECKING:
    import cel
else:
    cel = evaluator()

Schema = Mapping[str, Any]

# What Kubernetes adds to CEL and our rules use.
_FUNCTIONS = {"sum": sum, "format": lambda text, values: text % tuple(values)}
_READ = re.compile(r"\bself\b((?:\.\w+\b(?!\())*)")  # a field that a rule reads, less the method called on it


class _Absent:
    """Stands for the old value where there is none: rules on changes are left out."""


ABSENT = _Absent()


def rule_errors(value: Any, schema: Schema, *, old: Any = ABSENT, unsound: Collection[str] = ()) -> Iterator[SpecError]:
    """Yield the rules that `value` breaks, as a change of `old` where that is given.

    `unsound` are the paths of values that already break the schema; rules that read them are left
    out, as their messages would mislead.
    """
    yield from _Walk(tuple(unsound)).at("", value, old, schema)


@dataclass(frozen=True, slots=True)
class _Walk:
    unsound: tuple[str, ...]

    def at(self, path: str, value: Any, old: Any, schema: Schema) -> Iterator[SpecError]:
        for rule in schema.get("x-kubernetes-validations", ()):
            if self._applies(path, old, rule["rule"]):
                yield from _judge(path, value, old, rule)
        if isinstance(value, Mapping):
            for name, field in schema.get("properties", {}).items():
                if name in value:
                    before = old.get(name, ABSENT) if isinstance(old, Mapping) else ABSENT
                    yield from self.at(f"{path}.{name}".removeprefix("."), value[name], before, field)
        elif isinstance(value, list) and "items" in schema:
            # Items of a list have no old self, unless it is a map; no rule of ours on an item asks
            # for one.
            for index, item in enumerate(value):
                yield from self.at(f"{path}[{index}]", item, ABSENT, schema["items"])

    def _applies(self, path: str, old: Any, rule: str) -> bool:
        if old is ABSENT and "oldSelf" in rule:
            return False
        read = {f"{path}{field}".removeprefix(".") for field in _READ.findall(rule)}
        return not any(_contains(a, b) or _contains(b, a) for a in read for b in self.unsound)


def _contains(path: str, other: str) -> bool:
    return path in {"", other} or other.startswith((f"{path}.", f"{path}["))


def _judge(path: str, value: Any, old: Any, rule: Mapping[str, str]) -> Iterator[SpecError]:
    context = cel.Context({"self": value} if old is ABSENT else {"self": value, "oldSelf": old}, _FUNCTIONS)
    if not _compiled(rule["rule"]).execute(context):
        yield SpecError(f"{path}{rule.get('fieldPath', '')}".removeprefix("."), _message(rule, context))


def _message(rule: Mapping[str, str], context: cel.Context) -> str:
    if "messageExpression" not in rule:
        return rule["message"]
    message = str(_compiled(rule["messageExpression"]).execute(context))
    # A value with a line break in it must not forge a line of its own; the API server sees it so,
    # too.
    return rule["message"] if "\n" in message else message


@cache
def _compiled(expression: str) -> cel.Program:
    return cel.compile(expression)
