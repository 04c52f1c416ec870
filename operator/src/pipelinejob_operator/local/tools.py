"""The trainer's tools, run on this machine for a local run: measuring layers, sampling from the trained model."""

import asyncio
import contextlib
import hashlib
import json
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from pipelinejob.base.errors import PipelineJobError
from pipelinejob.contract.plan import Plan
from pipelinejob.costs.layers import Profile
from pipelinejob.planning.planner import counted
from pipelinejob.planning.playing import schedule_of
from pipelinejob.spec.job import PipelineJobSpec
from pipelinejob_operator.local.node.machine import Machine
from pipelinejob_operator.local.node.stage_process import launched
from pipelinejob_operator.local.runfolder import RunFolder

# Of processor time for each thread: on a busy machine a tool takes longer, which says nothing of
# its work.
_PROFILE_LIMIT_S = 180
_SAMPLE_LIMIT_S = 300
_FEW_TOKENS = 40  # of models that are not small
_HANG_S = 1800  # a tool that has not even used its processor time by then waits for what will not come
_LAST_WORDS = 300


class ToolError(PipelineJobError):
    """A tool of the trainer did not do its work; the run can do without."""


def counted_profile(spec: PipelineJobSpec, machine: Machine) -> Profile:
    """Return what a job's layers cost as counted, and how many of its ranks compute at once on this machine."""
    return counted(spec).model_copy(update={"concurrency": machine.concurrency(spec)})


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
        written = await _trainer(("profile", "--plan", str(plan_file)), plan, folder, machine, _PROFILE_LIMIT_S)
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
    arguments = ["sample", "--plan", str(folder.plan), "--checkpoints", str(checkpoints), "--prompt", prompt]
    if plan.model.hugging_face is not None:
        arguments += ["--tokens", str(_FEW_TOKENS)]
    return (await _trainer(arguments, plan, folder, machine, _SAMPLE_LIMIT_S)).decode(errors="replace").rstrip("\n")


def _digest(plan: Plan, machine: Machine) -> str:
    """Name everything that a measurement depends on."""
    parts = (
        plan.model.dump(),
        plan.data.sequence_length,
        plan.schedule.micro_batches,
        plan.schedule.micro_batch_size,
        schedule_of(plan).is_split,
        plan.training.precision,
        plan.training.lora.dump() if plan.training.lora else None,
        plan.device,
        len(plan.stages),
        plan.parallelism.dump(),
        machine.cores,
        machine.gpus,
        machine.hostname,
    )
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


async def _trainer(arguments: Sequence[str], plan: Plan, folder: RunFolder, machine: Machine, limit_s: int) -> bytes:
    folder.logs.mkdir(parents=True, exist_ok=True)
    log = folder.logs / f"{arguments[0]}.log"
    num_threads = machine.threads(len(plan.stages) * plan.parallelism.data)
    environment = {**machine.environment, "OMP_NUM_THREADS": str(num_threads)}
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *launched((sys.executable, "-m", "pipelinejob_trainer", *arguments)),
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    patience_s = _limited(process.pid, limit_s * num_threads) or limit_s
    try:
        output, _ = await asyncio.wait_for(process.communicate(), patience_s)
    except TimeoutError as error:
        raise ToolError(f"`{arguments[0]}` took longer than {patience_s} s; see {log}") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == -signal.SIGXCPU:
        raise ToolError(f"`{arguments[0]}` took more than {limit_s} s of each processor; see {log}")
    if process.returncode:
        words = log.read_bytes()[-_LAST_WORDS:].decode(errors="replace").strip().splitlines()
        raise ToolError(
            f"`{arguments[0]}` ended with {process.returncode}: {words[-1] if words else 'no word'}; see {log}"
        )
    return output


def _limited(pid: int, seconds: int) -> int | None:
    """Limit a process's processor time; give how long to wait for it then, None where the system cannot limit it."""
    if sys.platform != "linux":
        return None
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        resource.prlimit(pid, resource.RLIMIT_CPU, (seconds, seconds + 1))
    return _HANG_S
