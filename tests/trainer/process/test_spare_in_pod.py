"""A spare in a pod: warm, it says so, is told whose place it takes by who knows its token, and is a stage then."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelinejob.base import names
from pipelinejob.contract.incarnation import GivenRank
from pipelinejob.contract.progress import ExitCode, Phase, Progress, Termination
from support.local.processes import HANG_S, free_ports, wait_until
from support.training.gangs import TOKEN
from support.training.recovering import recovering_plan


@dataclass
class Spare:
    """Its process, and what a kubelet and an operator ask of it."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        return (self.folder / "spare.log").read_text()

    @property
    def last_words(self) -> Termination:
        return Termination.model_validate_json((self.folder / "termination").read_bytes())

    def ask(self, path: str, body: str | None = None, token: str = TOKEN) -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {token}"}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data=body.encode() if body else None, headers=headers
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()
        except OSError:
            return 0, b""

    def progress(self) -> Progress | None:
        code, body = self.ask("/progress")
        return Progress.model_validate_json(body) if code == 200 else None

    def wait_until_warm(self) -> None:
        wait_until(lambda: self.ask("/readyz")[0] == 200, f"the spare is warm\n{self.log}")


@pytest.fixture
def spare(tmp_path: Path) -> Iterator[Spare]:
    (port,) = free_ports(1)
    found = start(tmp_path, port, token=TOKEN)
    yield found
    found.process.kill()
    found.process.wait()


def start(folder: Path, port: int, *, token: str) -> Spare:
    (folder / "plan.json").write_text(recovering_plan(2, 2).to_json())
    variables = {
        names.ENV_PLAN: folder / "plan.json",
        names.ENV_NAMESPACE: "default",
        names.ENV_JOB: "job",
        names.ENV_SPARE: 3,
        names.ENV_ATTEMPT: 2,
        names.ENV_RENDEZVOUS: "127.0.0.1:1",
        names.ENV_METRICS_PORT: port,
        names.ENV_TOKEN: token,
        names.ENV_CHECKPOINTS: folder / "checkpoints",
        names.ENV_TERMINATION_LOG: folder / "termination",
        names.ENV_GRACE_S: 30,
        "OMP_NUM_THREADS": 1,
        "PYTHONUNBUFFERED": 1,
    }
    with (folder / "spare.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelinejob_trainer", "run"],
            env=os.environ | {key: str(value) for key, value in variables.items()},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    return Spare(folder, port, process)


def given(stage: int, *, attempt: int = 2) -> str:
    return GivenRank(replica=0, stage=stage, attempt=attempt).model_dump_json(by_alias=True)


def test_a_warm_spare_becomes_the_stage_that_it_is_told_by_who_knows_its_token_and_waits_for_the_others(
    spare: Spare,
) -> None:
    wait_until(lambda: spare.ask("/healthz")[0] == 200, f"the spare is well\n{spare.log}")
    spare.wait_until_warm()
    said = spare.progress()
    assert said is not None
    assert (said.phase, said.replica, said.stage, said.attempt) == (Phase.SPARE, -1, 3, 2)

    assert spare.ask("/rank", given(1), token="guessed")[0] == 403
    assert spare.ask("/rank", given(1, attempt=1))[0] == 409
    assert spare.ask("/rank", json.dumps({"stage": "x"}))[0] == 409
    spare.ask("/rank", given(1))

    def waits() -> bool:
        account = spare.progress()
        return account is not None and account.awaits_incarnation and account.control_port is not None

    wait_until(waits, f"it waits for the others as stage 1\n{spare.log}")
    said = spare.progress()
    assert said is not None
    assert (said.replica, said.stage, said.attempt) == (0, 1, 2)
    assert spare.ask("/rank", given(0))[0] == 404  # it is a stage now
    assert "takes the place of stage 1 of replica 0" in spare.log


def test_a_spare_that_is_stopped_before_it_took_a_place_says_so(spare: Spare) -> None:
    spare.wait_until_warm()

    spare.process.send_signal(signal.SIGTERM)

    assert spare.process.wait(HANG_S) == ExitCode.STOPPED
    assert spare.last_words.message == "asked to stop before it took a stage's place; there was nothing to save"


def test_a_spare_that_could_not_know_its_operator_is_refused(tmp_path: Path) -> None:
    found = start(tmp_path, free_ports(1)[0], token="")

    assert found.process.wait(HANG_S) == ExitCode.USER_ERROR
    assert "PIPELINEJOB_TOKEN is not set" in found.last_words.message
