"""Commands whose modules are imported when they are called, so that others start at once."""

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand


class LazyCommand(TyperCommand):
    """A command, or a group of commands, that is listed without its module.

    `target` names what it is, as `package.module:attribute`: a function, or a Typer app.
    """

    def __init__(self, name: str, target: str, *, summary: str) -> None:
        super().__init__(name, help=summary)
        self._target = target

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Load the command and parse the arguments as it does; it takes this one's place."""
        return self.load().make_context(*args, **extra)

    def load(self) -> Any:
        """Import the module and return the command."""
        module, _, attribute = self._target.partition(":")
        found = getattr(import_module(module), attribute)
        if isinstance(found, typer.Typer):
            return typer.main.get_command(found)
        single = typer.Typer(add_completion=False, rich_markup_mode="rich")
        single.command(self.name)(found)
        return typer.main.get_command(single)
