"""Programs that no test runs (benchmarks, sweeps, soaks, examples) import only names that there are.

They need libraries that are not always installed, and hours; so what they import of ours is read,
not run.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
FOLDERS = (TESTS, *sorted(path for path in (TESTS / "bench").iterdir() if path.is_dir()), TESTS / "gpu")
PROGRAMS = [file for folder in FOLDERS for file in sorted(folder.glob("*.py")) if file.name != "conftest.py"]
OURS = ("pipelinejob", "pipelinejob_operator", "pipelinejob_trainer", "support")


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda file: str(file.relative_to(TESTS)))
def test_a_program_imports_names_that_there_are(program: Path) -> None:
    missing = [f"{module}: {name}" for module, name in imported(program) if not is_there(program, module, name)]

    assert not missing


def imported(program: Path) -> Iterator[tuple[str, str]]:
    """Yield module and name of what a program imports from another module, wherever it does."""
    for node in ast.walk(ast.parse(program.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            yield from ((node.module, each.name) for each in node.names)


def is_there(program: Path, module: str, name: str) -> bool:
    if module.split(".", maxsplit=1)[0] in OURS:
        return hasattr(importlib.import_module(module), name) or is_module(f"{module}.{name}")
    beside = program.parent / f"{module}.py"
    return not beside.exists() or name in defined(beside)


def is_module(name: str) -> bool:
    try:
        return bool(importlib.import_module(name))
    except ModuleNotFoundError:
        return False


def defined(file: Path) -> set[str]:
    """Return the names that a module has once it is loaded."""
    tree = ast.parse(file.read_text())
    bound = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    made = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    aliases = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    return bound | made | aliases
