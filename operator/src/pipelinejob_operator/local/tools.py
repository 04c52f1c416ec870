"""The trainer's tools, run on this machine for a local run: measuring layers, sampling from the trained model."""

import asyncio
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from pipelinejob.cost import Profile
from pipelinejob.errors import PipelineJobError
from pipelinejob.plan import Plan
from pipelinejob.playing import schedule_of
from pipelinejob_operator.local.machine import Machine
from pipelinejob_operator.local.runfolder import RunFolder
from pipelinejob_operator.local.stage_process import launched

_PROFILE_TIMEOUT_S = 180
_SAMPLE_TIMEOUT_S = 120
_LAST_WORDS = 300


class ToolError(PipelineJobError):
    """A tool of the trainer did not do its work; the run can do without."""


async def measured_profile(plan: Plan, folder: RunFolder, machine: Machine) -> Profile:
    """Measure what the plan's layers cost on this machine, or give what was measured for the same before.

    Raises ToolError.
    """
    digest = _digest(plan, machine)
    cached = folder.read_profile()
    if cached and cached.get("digest") == digest:
        try:
            return Profile.model_validate(cached["profile"])
        except ValidationError:  # written by another version: measure again
            pass
    plan_file = folder.root / "profile-plan.json"
    folder.write(plan_file, plan.to_json())
    try:
        written = await _trainer(("profile", "--plan", str(plan_file)), plan, folder, machine, _PROFILE_TIMEOUT_S)
    finally:
        plan_file.unlink(missing_ok=True)
    try:
        profile = Profile.model_validate_json(written)
    except ValidationError as error:
        raise ToolError(f"the profile cannot be read: {error}") from error
    folder.write(folder.profile, json.dumps({"digest": digest, "profile": profile.dump()}, indent=1))
    return profile


async def sample(plan: Plan, folder: RunFolder, machine: Machine, checkpoints: Path, prompt: str) -> str:
    """Let the trained model continue `prompt`.

    Raises ToolError.
    """
    arguments = ("sample", "--plan", str(folder.plan), "--checkpoints", str(checkpoints), "--prompt", prompt)
    return (await _trainer(arguments, plan, folder, machine, _SAMPLE_TIMEOUT_S)).decode(errors="replace").rstrip("\n")


def threads(plan: Plan, machine: Machine) -> int:
    """Give the processor threads that one rank gets."""
    return max(1, machine.cores // (len(plan.stages) * plan.parallelism.data))


def _digest(plan: Plan, machine: Machine) -> str:
    """Name everything that a measurement depends on."""
    parts = (
        plan.model.dump(),
        plan.data.sequence_length,
        plan.schedule.micro_batches,
        plan.schedule.micro_batch_size,
        schedule_of(plan).is_split,
        plan.training.precision,
        plan.device,
        len(plan.stages),
        plan.parallelism.dump(),
        machine.cores,
        machine.gpus,
        machine.hostname,
    )
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


async def _trainer(
    arguments: Sequence[str], plan: Plan, folder: RunFolder, machine: Machine, timeout_s: float
) -> bytes:
    folder.logs.mkdir(parents=True, exist_ok=True)
    log = folder.logs / f"{arguments[0]}.log"
    environment = {**machine.environment, "OMP_NUM_THREADS": str(threads(plan, machine))}
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *launched((sys.executable, "-m", "pipelinejob_trainer", *arguments)),
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), timeout_s)
    except TimeoutError as error:
        raise ToolError(f"`{arguments[0]}` took longer than {timeout_s} s; see {log}") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        words = log.read_bytes()[-_LAST_WORDS:].decode(errors="replace").strip().splitlines()
        raise ToolError(
            f"`{arguments[0]}` ended with {process.returncode}: {words[-1] if words else 'no word'}; see {log}"
        )
    return output
