"""The forms of a result: a table for people, or JSON or YAML for programs."""

import json
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

import typer
import yaml


class Format(StrEnum):
    """Forms of a result."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


FormatOption = Annotated[
    Format, typer.Option("--output", "-o", help="table for people; json or yaml for programs.", case_sensitive=False)
]


def write(result: Any, form: Format, for_people: Callable[[], None]) -> None:
    """Write the result in the form that was asked for."""
    if form is Format.TABLE:
        for_people()
    elif form is Format.JSON:
        typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        typer.echo(to_yaml(result), nl=False)


def to_yaml(value: Any) -> str:
    """Write YAML as people do: in the order given, no aliases."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  # the base class's signature
        return True
