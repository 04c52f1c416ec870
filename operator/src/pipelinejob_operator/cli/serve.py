"""`pipelinejob serve`: the manifest's model answers on this machine, by the reconcile that an operator runs."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import typer
from rich.console import Console

from pipelinejob.base import names
from pipelinejob.base.errors import PipelineJobError
from pipelinejob.contract.plan import Plan
from pipelinejob.siting.door import plan_job
from pipelinejob.siting.request import Request
from pipelinejob.spec.job import Mode
from pipelinejob.spec.reported.conditions import UP, State
from pipelinejob_operator.cli.exits import Exit
from pipelinejob_operator.cli.given.manifests import FileArgument, GivenJob, given_job, jobs_among, read_documents
from pipelinejob_operator.cli.given.model_folder import with_its_model
from pipelinejob_operator.cli.shown.console import console_for_people
from pipelinejob_operator.cli.shown.output import to_yaml
from pipelinejob_operator.cluster import Event
from pipelinejob_operator.local.display import Lines
from pipelinejob_operator.local.node.machine import Machine, read_machine
from pipelinejob_operator.local.run import Ending, LocalRun
from pipelinejob_operator.local.runfolder import RunFolder
from pipelinejob_operator.local.tools import counted_profile
from pipelinejob_operator.report.run_view import RunView

_STOPPING = "Stopping: answers in work are finished first (again Ctrl-C: stop at once)"


def serve(
    file: FileArgument,
    *,
    model: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The model's folder, or its GGUF file, instead of the manifest's."),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the HTTP front, instead of the manifest's.")
    ] = None,
    checkpoints: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A run's folder, its checkpoints, or one step's, for serving.fromCheckpoint.",
            file_okay=False,
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Answer the requests of a file, one in a line, and end; with --answers.",
            dir_okay=False,
        ),
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The file that --prompts' answers are appended to.", dir_okay=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for logs and plan.", show_default="runs/<name>"),
    ] = None,
) -> None:
    """Answer requests with the manifest's model on this machine, over HTTP as OpenAI does, or those of a file.

    Ctrl-C stops it once the answers in work are there. Keys that clients must send are read from
    PIPELINEJOB_API_KEYS.
    """
    if (prompts is None) != (answers is None):
        raise ServeError("--prompts and --answers: one alone says nothing; give both, or neither")
    batch = None if prompts is None or answers is None else (prompts, answers)
    job = _only_job(file, _Changes(model=model, port=port, checkpoints=checkpoints, batch=batch))
    machine = read_machine()
    machine.check_devices(job.spec)
    folder = RunFolder(output or Path("runs") / job.name, _saved_in(checkpoints))
    _refuse_to_clear(folder)
    folder.create()
    with folder.lock():
        folder.clear()
        folder.write(folder.manifest, to_yaml(job.manifest))
        raise typer.Exit(asyncio.run(_serve(job, folder, machine, console_for_people())))


class ServeError(PipelineJobError):
    """The command asks for what it cannot have."""


def _saved_in(checkpoints: Path | None) -> Path | None:
    """Return the folder of checkpoints, of a run's or itself."""
    if checkpoints is None:
        return None
    if not checkpoints.is_dir():
        raise ServeError(f"--checkpoints {checkpoints}: there is no such folder; name a run's")
    run = RunFolder(checkpoints.resolve())
    return run.own_checkpoints if run.own_checkpoints.is_dir() else run.root


def _refuse_to_clear(folder: RunFolder) -> None:
    """Refuse the folder of a run that trained: what it saved would be deleted."""
    saved = folder.own_checkpoints
    if saved.is_dir() and any(saved.iterdir()):
        raise ServeError(f"{folder.root}: holds checkpoints of a run; choose another folder with --output")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Changes:
    """What the command line says instead of the manifest."""

    model: Path | None
    port: int | None
    checkpoints: Path | None
    batch: tuple[Path, Path] | None


def _only_job(file: Path, changes: _Changes) -> GivenJob:
    manifests = jobs_among(read_documents(file), file)
    if len(manifests) != 1:
        raise ServeError(f"{file}: holds {len(manifests)} PipelineJobs; `serve` takes one, in a file of its own")
    job = given_job(with_its_model(_changed(manifests[0], changes)))
    if job.spec.mode is Mode.TRAIN:
        raise ServeError(f"{file}: spec.mode is {job.spec.mode}; set it to Serve or Batch, or use `pipelinejob run`")
    if job.spec.suspend:
        raise ServeError(f"{file}: spec.suspend is true, so nothing would run; set it to false")
    serving = job.spec.serving
    if changes.checkpoints is not None and not (serving and serving.from_checkpoint):
        raise ServeError(
            f"--checkpoints {changes.checkpoints}: spec.serving.fromCheckpoint is not set; set it, or leave it out"
        )
    return job


def _changed(manifest: Mapping[str, Any], changes: _Changes) -> Mapping[str, Any]:
    given_job(manifest)  # so that its own errors are named first
    spec = dict(manifest["spec"])
    if changes.model is not None:
        folder = {**spec["model"].get("huggingFace", {}), "path": str(changes.model.resolve())}
        spec["model"] = {"huggingFace": folder}  # its sizes are read of the folder
    if changes.checkpoints is not None:
        spec.pop("checkpoint", None)
    if changes.port is not None:
        spec["serving"] = {**(spec.get("serving") or {}), "port": changes.port}
    if changes.batch is not None and spec.get("mode") in {Mode.SERVE, Mode.BATCH}:
        files = dict(zip(("input", "output"), (str(each.resolve()) for each in changes.batch), strict=True))
        spec |= {"mode": Mode.BATCH.value, "serving": {**(spec.get("serving") or {}), "batch": files}}
    return {**manifest, "spec": spec}


async def _serve(job: GivenJob, folder: RunFolder, machine: Machine, console: Console) -> Exit:
    costs = counted_profile(job.spec, machine)
    plan = plan_job(Request(namespace=job.namespace, name=job.name, spec=job.spec, measured=costs)).plan
    folder.write(folder.plan, plan.to_json())
    with _Display(console, plan) as display:
        ending = await LocalRun(_in_chains(job), folder, machine, display, stopping=_STOPPING).run(plan, costs)
    return _end(ending, folder, console)


def _in_chains(job: GivenJob) -> Mapping[str, Any]:
    """Return the job: of one replica it is its only chain itself, whose front clients ask without anything between."""
    if job.spec.parallelism.data > 1:
        return job.stored
    labels = {**(job.stored["metadata"].get("labels") or {}), names.LABEL_SERVICE: job.name}
    return {**job.stored, "metadata": {**job.stored["metadata"], "labels": labels}}


def _end(ending: Ending, folder: RunFolder, console: Console) -> Exit:
    if ending.status.state is State.FAILED:
        console.print(f"Failed: {_said(ending, 'Failed')}", style="red", markup=False, soft_wrap=True)
        return Exit.JOB_FAILED
    if ending.status.state is State.WAITING:
        console.print(f"Does not fit: {_said(ending, 'Placed')}", style="red", markup=False, soft_wrap=True)
        return Exit.DOES_NOT_FIT
    if ending.status.state is State.SUCCEEDED:
        console.print("All requests are answered", markup=False)
        return Exit.OK
    console.print(f"Stopped; {folder.relative()}/logs/ says what the stages said", markup=False)
    return Exit.OK if ending.was_interrupted else Exit.JOB_FAILED


def _said(ending: Ending, condition: str) -> str:
    return next((each.message for each in ending.status.conditions if each.type == condition), "see the logs")


class _Display(Lines):
    """Tells when the model can be asked, and how, and what happens to its stages."""

    def __init__(self, console: Console, plan: Plan) -> None:
        super().__init__(console)
        self._plan = plan
        self._was_running = self._has_told = False

    def __enter__(self) -> Self:
        self.note(f"Starting {len(self._plan.stages)} stages; each reads its own layers")
        return self

    def event(self, event: Event) -> None:
        if event.type == "Warning":
            self.note(f"! {event.reason}: {event.message}")

    def update(self, view: RunView) -> None:
        is_running = view.state in UP
        if is_running and not self._was_running:
            if self._has_told:
                self.note("All stages are there again")
            else:
                self._say_how_to_ask()
            self._has_told = True
        elif self._was_running and view.state is State.STARTING:
            self.note("A stage is missing; requests get 503 until it is back")
        self._was_running = is_running

    def _say_how_to_ask(self) -> None:
        serving = self._plan.serving
        assert serving is not None, "a job that serves"
        if serving.batch is not None:
            self.note(f"Answering {serving.batch.input} into {serving.batch.output}")
            return
        name, url = serving.model_name or self._plan.name, f"http://127.0.0.1:{serving.port}"
        is_chat = self._plan.model.hugging_face is not None  # a built-in family's tokens have no template of chats
        question = '[{"role": "user", "content": "What is the capital of France?"}]'
        asked = f'"messages": {question}' if is_chat else '"prompt": "def "'
        path = "chat/completions" if is_chat else "completions"
        body = f'{{"model": "{name}", "temperature": 0, {asked}}}'
        self.note(f"Serving {name} at {url}/v1; ask it with")
        self.note(f"  curl {url}/v1/{path} -H 'Content-Type: application/json' -d '{body}'")
