"""`pipelinejob schedule`, as its users call it."""

from typing import Any

import pytest

from pipelinejob_operator.cli import main


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: Any) -> Result:
        with pytest.raises(SystemExit) as ended:
            main(["schedule", *map(str, arguments)])
        captured = capsys.readouterr()
        return Result(int(ended.value.code or 0), captured.out, captured.err)

    return run
