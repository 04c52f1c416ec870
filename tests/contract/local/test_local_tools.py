"""The trainer's tools on this machine: limited by the processor time that they take, not by a clock."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipelinejob.planning.planner import make_plan
from pipelinejob.spec.job import (
    Data,
    Device,
    GptModel,
    Model,
    Parallelism,
    PipelineJobSpec,
    ScheduleName,
    ScheduleSpec,
    Training,
)
from pipelinejob_operator.local import tools
from pipelinejob_operator.local.node.machine import Machine, read_machine
from pipelinejob_operator.local.runfolder import RunFolder
from pipelinejob_operator.local.tools import ToolError, counted_profile, sample
from support.training.gangs import plan


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setattr(tools, "_SAMPLE_LIMIT_S", 1)
    folder = RunFolder(tmp_path / "run")
    folder.create()
    return folder


def trainer(tmp_path: Path, code: str) -> Machine:
    """Return this machine, with a trainer that does something else."""
    package = tmp_path / "path" / "pipelinejob_trainer"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(code)
    machine = read_machine()
    environment = {**machine.environment, "PYTHONPATH": str(package.parent)}
    return replace(machine, cores=1, environment=environment)


@pytest.mark.parametrize(("cores", "concurrency", "shares"), [(1, 1, True), (2, 2, True), (4, 4, False), (9, 4, False)])
def test_counted_costs_know_how_many_stages_compute_at_once_on_this_machine(cores, concurrency, shares) -> None:
    spec = PipelineJobSpec(
        model=Model(gpt=GptModel(num_layers=8, hidden_size=64, num_heads=4)),
        data=Data(corpus="python-stdlib", sequence_length=32),
        parallelism=Parallelism(pipeline=4),
        schedule=ScheduleSpec(name=ScheduleName.ONE_F_ONE_B, micro_batches=8),
        training=Training(steps=1),
        device=Device.CPU,
    )

    profile = counted_profile(spec, Machine(hostname="here", cores=cores, memory_bytes=2**34))

    assert profile.concurrency == concurrency
    made = make_plan(namespace="default", name="four-stages", spec=spec, profile=profile)
    assert made.shares_processors is shares
    assert (made.prediction.bubble_ratio > 0.4) is shares


async def test_a_tool_that_reckons_for_too_long_is_ended(folder: RunFolder, tmp_path: Path) -> None:
    machine = trainer(tmp_path, "while True: pass")

    with pytest.raises(ToolError, match=r"`sample` took more than 1 s of each processor; see .*sample\.log"):
        await sample(plan(4), folder, machine, tmp_path, "a")


async def test_a_tool_that_a_busy_machine_keeps_waiting_is_waited_for(folder: RunFolder, tmp_path: Path) -> None:
    machine = trainer(tmp_path, "import time; time.sleep(1.5); print('a text')")

    assert await sample(plan(4), folder, machine, tmp_path, "a") == "a text"
