"""The command line as its users call it, for all tests of commands that touch nothing."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelinejob_operator.cli import main

EXAMPLE = Path(__file__).parents[2] / "examples" / "stdlib-gpt.yaml"


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "140")

    def run(*arguments: str | Path) -> Result:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(int(ended.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def manifest(tmp_path: Path):
    def write(**changes: Any) -> Path:
        content = yaml.safe_load(EXAMPLE.read_text())
        for path, value in changes.items():
            *parents, last = path.split("__")
            target = content["spec"]
            for parent in parents:
                target = target[parent]
            target[last] = value
        file = tmp_path / "job.yaml"
        file.write_text(yaml.safe_dump(content))
        return file

    return write
