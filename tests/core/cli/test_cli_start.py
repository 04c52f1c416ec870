"""A command starts at once: it imports what it needs itself, and nothing that only other commands need."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelinejob_operator.cli.lazy import LazyCommand
from pipelinejob_operator.cli.main import app

EXAMPLE = Path(__file__).parents[3] / "examples" / "stdlib-gpt.yaml"
CALL = """
import json, sys
from pipelinejob_operator.cli import main
try:
    main(sys.argv[1:])
except SystemExit as ending:
    assert not ending.code, ending.code
print(json.dumps(sorted(sys.modules)))
"""
HEAVY = {"numpy", "aiohttp", "kubernetes", "kopf", "torch", "prompt_toolkit", "prometheus_client", "jinja2", "orjson"}
OPERATOR_ROOMS = {"admission", "controller", "kube", "local", "objects", "process", "report"}
PLANNING_ROOMS = {"placement", "search", "siting"}


def modules_after(*arguments: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", CALL, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("arguments", [["--help"], ["version"], ["--version"]])
def test_help_and_version_import_no_heavy_library_and_no_room_of_the_operator(arguments: list[str]) -> None:
    modules = modules_after(*arguments)

    assert not modules & {*HEAVY, "cel", "cel.cel", "jsonschema"}
    assert {name for name in modules if name.startswith("pipelinejob_operator.")} <= {
        f"pipelinejob_operator.cli{module}"
        for module in ("", ".main", ".exits", ".lazy", ".version", ".shown", ".shown.output")
    }


def test_validate_imports_what_judges_a_manifest_and_no_more() -> None:
    modules = modules_after("validate", str(EXAMPLE))

    assert not modules & {*HEAVY, "cel.cli", "rich"}
    assert {"cel.cel", "jsonschema", "yaml"} <= modules
    assert not modules & {f"pipelinejob_operator.{room}" for room in OPERATOR_ROOMS}
    assert not modules & {f"pipelinejob.{room}" for room in PLANNING_ROOMS}


def commands() -> dict[str, LazyCommand]:
    from typer.main import get_command

    return get_command(app).commands


@pytest.mark.parametrize("name", commands())
def test_a_command_is_listed_with_the_first_sentence_of_its_own_help(name: str) -> None:
    listed = commands()[name]
    loaded = listed.load()

    assert loaded.help.partition("\n\n")[0].replace("\n", " ") == listed.help


def test_a_command_that_is_loaded_when_it_is_called_names_itself_in_its_own_help(call) -> None:
    result = call("schedule", "show", "--help")

    assert result.code == 0
    assert "Usage: pipelinejob schedule show [OPTIONS]" in result.out
    assert "--install-completion" not in call("schedule", "--help").out


def test_a_mistyped_command_is_told_its_neighbour(call) -> None:
    result = call("validat", EXAMPLE)

    assert result.code == 2
    assert "Did you mean 'validate'" in result.err


def test_the_evaluator_that_is_imported_alone_is_the_librarys_own() -> None:
    code = """
from pipelinejob_operator.validation.cel_library import evaluator
alone = evaluator()
import cel
assert cel.compile is alone.compile
assert evaluator() is alone
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
