"""`pipelinejob run`: the manifest trained on this machine, by the reconcile that a cluster's operator runs."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from pipelinejob.base.errors import InvalidManifestError, NoPlacementError, PipelineJobError, SpecError
from pipelinejob.contract.plan import Plan
from pipelinejob.costs.layers import Profile
from pipelinejob.planning.planner import refuse_unrunnable
from pipelinejob.search.found import title
from pipelinejob.siting.door import plan_job
from pipelinejob.siting.request import Request
from pipelinejob.spec.job import Mode
from pipelinejob.spec.reported.conditions import State
from pipelinejob.spec.status import PipelineJobStatus
from pipelinejob_operator.cli.exits import Exit
from pipelinejob_operator.cli.given.costs import ProfileOption, costs_of
from pipelinejob_operator.cli.given.decided import decided
from pipelinejob_operator.cli.given.manifests import FileArgument, GivenJob, given_job, jobs_among, read_documents
from pipelinejob_operator.cli.given.model_folder import with_its_model
from pipelinejob_operator.cli.given.together import refuse
from pipelinejob_operator.cli.shown.console import console_for_people
from pipelinejob_operator.cli.shown.output import to_yaml
from pipelinejob_operator.local import interruption
from pipelinejob_operator.local.beginning import Beginning, Way, begin
from pipelinejob_operator.local.display import Display, display_for, print_summary
from pipelinejob_operator.local.node.machine import Machine, read_machine
from pipelinejob_operator.local.results import write_results
from pipelinejob_operator.local.run import Ending, LocalRun
from pipelinejob_operator.local.runfolder import RunFolder
from pipelinejob_operator.local.tools import ToolError, counted_profile, measured_profile, sample
from pipelinejob_operator.report.summary import RunSummary
from pipelinejob_operator.validation.validate import Manifest, validate_change

_PROMPT = "def "


def run(
    file: FileArgument,
    *,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for everything the run writes.", show_default="runs/<name>"),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete what an earlier run left in the folder.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Train this many steps instead of the manifest's.")] = None,
    profile: ProfileOption = None,
    no_profile: Annotated[
        bool, typer.Option("--no-profile", help="Predict from counted operations; do not measure the layers first.")
    ] = False,
    prompt: Annotated[
        str | None,
        typer.Option(help="What the trained model continues at the end; nothing if empty.", show_default=_PROMPT),
    ] = None,
) -> None:
    """Train the manifest's job on this machine, one process a stage; no cluster needed.

    Ctrl-C writes a checkpoint and stops; the same command goes on from there.
    """
    if no_profile:
        refuse(
            given=profile, option=f"--profile {profile}", why="--no-profile asks for counted costs; give one of them"
        )
    documents = read_documents(file)
    job = _only_job(documents, file, steps)
    if job.spec.model.entrypoint is not None:
        refuse(given=prompt or None, option=f"--prompt {prompt!r}", why="nothing says what its tokens mean")
    machine = read_machine()
    machine.check_devices(job.spec)
    costs = costs_of(job, documents, profile)
    folder = RunFolder(output or Path("runs") / job.name)
    folder.create()
    with folder.lock():
        session = _Session(
            _decided(job, machine),
            folder,
            console_for_people(),
            machine=machine,
            costs=costs,
            measures=not no_profile,
            prompt=_PROMPT if prompt is None else prompt,
        )
        raise typer.Exit(session.run(fresh=fresh))


class UsageError(PipelineJobError):
    """The command asks for what it cannot have."""


def _only_job(documents: Sequence[Manifest], file: Path, steps: int | None) -> GivenJob:
    manifests = jobs_among(documents, file)
    if len(manifests) != 1:
        raise UsageError(
            f"{file}: holds {len(manifests)} PipelineJobs; `run` takes one at a time, in a file of its own"
        )
    manifest = with_its_model(manifests[0])
    job = given_job(manifest if steps is None else _with_steps(manifest, steps))
    refuse_unrunnable(job.spec)
    if job.spec.mode is not Mode.TRAIN:
        raise UsageError(f"{file}: spec.mode is {job.spec.mode}; use `pipelinejob serve`")
    if job.spec.suspend:
        raise UsageError(f"{file}: spec.suspend is true, so nothing would run; set it to false")
    return job


def _decided(job: GivenJob, machine: Machine) -> GivenJob:
    """Choose what is open, and say so."""
    chosen, choice = decided(job, machine)
    if choice is not None:
        typer.echo(f"chosen for this machine: {title(choice)}", err=True)
    return chosen


def _with_steps(manifest: Mapping[str, Any], steps: int) -> Mapping[str, Any]:
    given_job(manifest)  # so that its own errors are named first
    spec = manifest["spec"]
    return {**manifest, "spec": {**spec, "training": {**spec["training"], "steps": steps}}}


class _Session:
    """One call of the command."""

    def __init__(
        self,
        job: GivenJob,
        folder: RunFolder,
        console: Console,
        *,
        machine: Machine,
        costs: Profile | None,
        measures: bool,
        prompt: str,
    ) -> None:
        self._job = job
        self._folder = folder
        self._console = console
        self._costs = costs
        self._measures = measures
        self._prompt = prompt
        self._machine = machine

    def run(self, *, fresh: bool) -> Exit:
        beginning = self._begin(fresh=fresh)
        if beginning.message:
            self._console.print(beginning.message, markup=False, soft_wrap=True)
        if beginning.way is Way.REFUSED:
            return Exit.FOLDER
        if beginning.way is Way.FINISHED:
            self._show_earlier_results(beginning.job)
            return Exit.OK
        if beginning.way is Way.NEW:
            self._folder.clear()
        self._folder.write(self._folder.manifest, to_yaml(self._job.manifest))
        try:
            return asyncio.run(self._train(beginning.job))
        except asyncio.CancelledError:  # by a signal, while layers were measured or results were written
            self._console.print("Stopped; the same command goes on")
            return Exit.INTERRUPTED

    def _begin(self, *, fresh: bool) -> Beginning:
        previous = None if fresh else self._folder.read_job()
        has_checkpoints = any(path.is_file() for path in self._folder.checkpoints.rglob("*"))
        return begin(
            self._job.stored,
            previous,
            is_fresh=fresh,
            has_checkpoints=has_checkpoints,
            changes=_impossible_changes(previous, self._job.stored) if previous else (),
            folder=self._folder.relative(),
        )

    async def _train(self, job: Mapping[str, Any]) -> Exit:
        with display_for(self._console) as display:
            with interruption.cancelling():
                profile = await self._profile(display)
            plan = self._plan(profile)
            self._folder.clear_results()
            self._folder.write(self._folder.plan, plan.to_json())
            self._folder.write(self._folder.costs, profile.model_dump_json(by_alias=True, exclude_none=True, indent=1))
            ending = await LocalRun(job, self._folder, self._machine, display).run(plan, profile)
            if ending.plan is not plan:
                plan = ending.plan
                self._folder.write(self._folder.plan, plan.to_json())
        if ending.was_killed:
            return self._end_killed()
        if ending.status.state is State.WAITING:
            raise NoPlacementError(_why_waiting(ending.status))
        with interruption.cancelling():
            text = await self._sample(plan, ending)
        summary = write_results(self._folder, plan=plan, profile=profile, status=ending.status, sample=text)
        return self._end(summary, ending, text)

    def _plan(self, profile: Profile | None) -> Plan:
        job = self._job
        return plan_job(Request(namespace=job.namespace, name=job.name, spec=job.spec, measured=profile)).plan

    async def _profile(self, display: Display) -> Profile:
        """Return the costs that were named, or measure what the layers cost here; the plan is only as good as that."""
        if self._costs is not None:
            return self._costs
        counted = counted_profile(self._job.spec, self._machine)
        if not self._measures:
            return counted
        if self._job.spec.parallelism.expert > 1:
            display.note("Layers would be measured with all of their experts; predictions are counted, not profiled")
            return counted
        display.note("Measuring the layers on this machine")
        try:
            return await measured_profile(self._plan(counted), self._folder, self._machine)
        except ToolError as error:
            display.note(f"The layers could not be measured ({error}); predictions are counted, not profiled")
            return counted

    async def _sample(self, plan: Plan, ending: Ending) -> str | None:
        if ending.status.state is not State.SUCCEEDED or plan.model.entrypoint is not None or not self._prompt:
            return None
        try:
            return await sample(plan, self._folder, self._machine, ending.checkpoints, self._prompt)
        except ToolError as error:
            self._console.print(f"No sample: {error}", markup=False)
            return None

    def _end(self, summary: RunSummary, ending: Ending, text: str | None) -> Exit:
        if summary.steps:
            print_summary(self._console, summary)
            self._say_how_true(summary)
        if text:
            self._console.print("A sample of the trained model:", style="dim")
            self._console.print(text + "\n", markup=False, soft_wrap=True)
        self._say_where()
        if ending.status.state is State.SUSPENDED or ending.was_interrupted:
            self._console.print(
                f"Stopped after step {summary.steps} of {summary.steps_wanted}; the same command goes on"
            )
            return Exit.INTERRUPTED
        if ending.status.state is State.FAILED:
            self._console.print(f"Failed: {summary.reason}: {summary.message}", style="red", markup=False)
            return Exit.JOB_FAILED
        return Exit.OK

    def _say_how_true(self, summary: RunSummary) -> None:
        if summary.off_plan is None:
            return
        words = f"The step took {abs(summary.off_plan):.1%} {'longer' if summary.off_plan > 0 else 'less'} than planned"
        where = self._folder.relative()
        self._console.print(
            f"{words}; to plan with what was measured: `pipelinejob profile --run {where} -o profile.json`, then "
            "`plan` or `run` with `--profile profile.json`",
            markup=False,
            soft_wrap=True,
        )

    def _end_killed(self) -> Exit:
        self._console.print("Stopped at once; the same command goes on from the last checkpoint, if there is one")
        return Exit.INTERRUPTED

    def _show_earlier_results(self, job: Mapping[str, Any]) -> None:
        """Show what came out; where the run was interrupted before it was written, write it now."""
        try:
            if not self._folder.has_results():
                self._write_earlier_results(PipelineJobStatus.model_validate(job["status"]))
            print_summary(self._console, RunSummary.model_validate_json(self._folder.summary.read_bytes()))
        except (OSError, ValidationError):  # the message has said what counts
            return
        self._say_where()

    def _write_earlier_results(self, status: PipelineJobStatus) -> None:
        plan = Plan.from_json(self._folder.plan.read_bytes())
        profile = Profile.model_validate_json(self._folder.costs.read_bytes())
        write_results(self._folder, plan=plan, profile=profile, status=status, sample=None)

    def _say_where(self) -> None:
        where = self._folder.relative()
        self._console.print(
            f"{where}/: report.html (open it in a browser), summary.json, trace.json (ui.perfetto.dev), "
            "checkpoints/, logs/",
            markup=False,
            soft_wrap=True,
        )


def _impossible_changes(previous: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[SpecError, ...]:
    """Name the changes that checkpoints cannot follow: those that the API server would refuse of a suspended job."""
    suspended = {**previous["spec"], "suspend": True}
    old = {name: previous[name] for name in ("apiVersion", "kind", "metadata")} | {"spec": suspended}
    try:
        validate_change(old, wanted)
    except InvalidManifestError as error:
        return error.errors
    return ()


def _why_waiting(status: PipelineJobStatus) -> str:
    said = next((each.message for each in status.conditions if each.type == "Placed"), "")
    return said or "the job does not fit on this machine"
