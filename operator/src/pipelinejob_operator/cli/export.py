"""`pipelinejob export`: a checkpoint as others read it. The trainer does the work; here it is found what is meant."""

import signal
import subprocess
import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from pipelinejob.base import names
from pipelinejob.base.errors import PipelineJobError
from pipelinejob.contract.plan import Plan
from pipelinejob.contract.trained import Trained
from pipelinejob_operator.cli.given.manifests import given_job, jobs_among, read_documents
from pipelinejob_operator.cli.given.model_folder import with_its_model
from pipelinejob_operator.local.runfolder import RunFolder

_LEVELS = 3  # a run's folder above one of its checkpoints


class Dtype(StrEnum):
    """The type of what is written."""

    FP32 = "fp32"
    BF16 = "bf16"


class ExportError(PipelineJobError):
    """A checkpoint could not be exported; the message says why, and what to do."""


def export(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT", help="A run's folder, its checkpoints (the newest is taken), or one step's folder."
        ),
    ],
    *,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The folder to write; it must not exist yet.")],
    plan: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The plan that was trained by.", show_default="plan.json of the run"),
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The manifest that was trained by, instead of a plan.")
    ] = None,
    adapters_only: Annotated[
        bool, typer.Option("--adapters-only", help="Write the adapters of spec.training.lora alone, as PEFT does.")
    ] = False,
    dtype: Annotated[Dtype, typer.Option(help="The type of what is written; training holds fp32.")] = Dtype.FP32,
) -> None:
    """Write a checkpoint, of any split and schedule, as a folder that transformers loads.

    Adapters are merged into the weights that they stand beside, unless they are wanted alone.
    """
    if plan is not None and manifest is not None:
        raise ExportError("--plan and --manifest are both given; keep one of them")
    trained = _of_manifest(manifest) if manifest else _of_plan(plan or _plan_beside(checkpoint))
    run = RunFolder(checkpoint)
    folder = run.checkpoints if run.plan.is_file() and run.checkpoints.is_dir() else checkpoint
    with tempfile.TemporaryDirectory(prefix="pipelinejob-export-") as temporary:
        file = Path(temporary) / "trained.json"
        file.write_text(trained.to_json(), encoding="utf-8")
        options = ["--trained", file, "--checkpoint", folder, "--to", to, "--dtype", dtype.value]
        _run([*map(str, options), *(["--adapters-only"] if adapters_only else [])])


def _plan_beside(checkpoint: Path) -> Path:
    """Return the plan of the run that wrote a checkpoint.

    Raises ExportError.
    """
    above = [checkpoint, *checkpoint.resolve().parents][:_LEVELS]
    found = next((folder / names.PLAN_FILE for folder in above if (folder / names.PLAN_FILE).is_file()), None)
    if found is None:
        missing = "" if checkpoint.exists() else " is not there, and"
        raise ExportError(
            f"{checkpoint}:{missing} has no {names.PLAN_FILE} in it or above it, which says what model it is of; name"
            " the job's manifest with --manifest, or its plan with --plan"
        )
    return found


def _of_plan(file: Path) -> Trained:
    try:
        return Trained.of(Plan.from_json(file.read_bytes()))
    except OSError as error:
        raise ExportError(f"{file}: cannot be read: {error.strerror}; name another with --plan") from error
    except ValidationError as error:
        raise ExportError(f"{file}: is no plan of this version: {error.errors()[0]['msg']}") from error


def _of_manifest(file: Path) -> Trained:
    jobs = jobs_among(read_documents(file), file)
    if len(jobs) != 1:
        raise ExportError(f"{file}: holds {len(jobs)} PipelineJobs; keep the one that was trained in a file of its own")
    return Trained.of(given_job(with_its_model(jobs[0])).spec)


def _run(options: list[str]) -> None:
    """Run the trainer's export; its last word is the error's sentence."""
    command = [sys.executable, "-m", "pipelinejob_trainer", "export", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            _, errors = process.communicate()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)  # it deletes what it has half-written
            process.wait()
            raise
    if process.returncode:
        lines = errors.strip().splitlines()
        raise ExportError(lines[-1] if lines else f"the export ended with {process.returncode} and without a word")
    sys.stderr.write(errors)
