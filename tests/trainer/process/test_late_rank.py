"""A late-bound rank waits for its number, is well meanwhile, and trains as whoever it is told to be."""

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
from pipelinejob.contract.progress import ExitCode, StepRecord, Termination
from support.local.processes import HANG_S, free_ports, wait_until
from support.training.gangs import plan


@dataclass
class Waiting:
    """A rank's process that was told everything but which rank it is."""

    name: str
    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def told(self) -> Path:
        return self.folder / self.name

    @property
    def log(self) -> str:
        return (self.folder / f"{self.name}.log").read_text()

    def tell(self, rank: str, rendezvous: str) -> None:
        for file, words in ((names.RANK_FILE, rank), (names.RENDEZVOUS_FILE, rendezvous)):
            (self.told / file).write_text(words)

    def status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0

    def wait_until_well(self) -> None:
        wait_until(lambda: self.status("/healthz") == 200, f"{self.name} waits\n{self.log}")


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[list[Waiting]]:
    """Two processes of a gang of two stages."""
    (tmp_path / "plan.json").write_text(plan(2, 2, training={"steps": 3}).to_json())
    started = [start(tmp_path, name, port) for name, port in zip(("p0", "p1"), free_ports(2), strict=True)]
    yield started
    for each in started:
        each.process.kill()
        each.process.wait()


def start(folder: Path, name: str, port: int) -> Waiting:
    (folder / name).mkdir()
    for file in (names.RANK_FILE, names.RENDEZVOUS_FILE):  # what a kubelet shows of annotations that are not there
        (folder / name / file).touch()
    variables = {
        names.ENV_PLAN: folder / "plan.json",
        names.ENV_NAMESPACE: "default",
        names.ENV_JOB: "job",
        names.ENV_RANK: folder / name,
        names.ENV_ATTEMPT: 1,
        names.ENV_METRICS_PORT: port,
        names.ENV_CHECKPOINTS: folder / "checkpoints",
        names.ENV_OUTPUT: folder,
        names.ENV_TERMINATION_LOG: folder / f"{name}.termination",
        names.ENV_GRACE_S: 30,
        "OMP_NUM_THREADS": 1,
    }
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelinejob_trainer", "run"],
            env=os.environ | {key: str(value) for key, value in variables.items()},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    return Waiting(name, folder, port, process)


def test_ranks_are_well_and_not_ready_until_they_have_a_number_and_then_train(ranks: list[Waiting]) -> None:
    for each in ranks:
        each.wait_until_well()
        assert each.status("/readyz") == 503

    (rendezvous,) = free_ports(1)
    for each, rank in zip(ranks, ("0/1", "0/0"), strict=True):  # against the order of their names
        each.tell(rank, f"127.0.0.1:{rendezvous}")

    for each in ranks:
        assert each.process.wait(HANG_S) == ExitCode.OK, each.log
    steps = (ranks[0].folder / names.STEPS_FILE).read_text().splitlines()
    assert [StepRecord.model_validate_json(line).step for line in steps] == [1, 2, 3]


def test_a_rank_that_is_stopped_before_it_has_a_number_says_so(ranks: list[Waiting]) -> None:
    waiting = ranks[0]
    waiting.wait_until_well()

    waiting.process.send_signal(signal.SIGTERM)

    assert waiting.process.wait(HANG_S) == ExitCode.STOPPED
    words = Termination.model_validate_json((waiting.folder / "p0.termination").read_bytes())
    assert (words.reason, words.message) == (
        "Stopped",
        "asked to stop before it had a number; there was nothing to save",
    )


def test_a_number_that_is_none_is_a_users_error(ranks: list[Waiting]) -> None:
    waiting = ranks[0]
    waiting.wait_until_well()

    waiting.tell("first", "127.0.0.1:1")

    assert waiting.process.wait(HANG_S) == ExitCode.USER_ERROR
    words = Termination.model_validate_json((waiting.folder / "p0.termination").read_bytes())
    assert "'first', not replica/stage" in words.message
