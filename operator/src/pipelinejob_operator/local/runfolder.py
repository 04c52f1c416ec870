"""The folder of a local run: where everything is, read and written whole or not at all."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from pipelinejob.base import names
from pipelinejob.base.errors import PipelineJobError
from pipelinejob.base.timeline import StageTimeline, Timeline
from pipelinejob.contract.progress import StepRecord

_LOCK = ".lock"
_MARK = "a folder of pipelinejob run\n"  # in the lock: written first, so that a run interrupted at any moment is known


class RunFolderError(PipelineJobError):
    """The folder cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """All files of one run, below `root`, but for checkpoints that are another run's."""

    root: Path
    others_checkpoints: Path | None = None

    @property
    def manifest(self) -> Path:
        """The manifest that is being run."""
        return self.root / "manifest.yaml"

    @property
    def job(self) -> Path:
        """The job with its status: what a cluster's API server would remember."""
        return self.root / "job.json"

    @property
    def plan(self) -> Path:
        """The plan that the stages play."""
        return self.root / names.PLAN_FILE

    @property
    def profile(self) -> Path:
        """The measured costs, and the digest of what they were measured for."""
        return self.root / "profile.json"

    @property
    def costs(self) -> Path:
        """The costs that the plan was made from, measured or not."""
        return self.root / "costs.json"

    @property
    def summary(self) -> Path:
        """What came out, as data."""
        return self.root / "summary.json"

    @property
    def report(self) -> Path:
        """What came out, to look at."""
        return self.root / "report.html"

    @property
    def trace(self) -> Path:
        """Timelines for Perfetto or chrome://tracing."""
        return self.root / "trace.json"

    @property
    def checkpoints(self) -> Path:
        """The checkpoints."""
        return self.others_checkpoints or self.own_checkpoints

    @property
    def own_checkpoints(self) -> Path:
        """Those that this run writes."""
        return self.root / "checkpoints"

    @property
    def logs(self) -> Path:
        """What the stages printed, a file for each attempt."""
        return self.root / "logs"

    @property
    def steps(self) -> Path:
        """One StepRecord a line."""
        return self.root / names.STEPS_FILE

    @property
    def timelines(self) -> Path:
        """The last steps of each rank, measured."""
        return self.root / names.TIMELINES_FOLDER

    def create(self) -> None:
        """Make the folder, and mark it as a run's.

        Raises RunFolderError if it cannot be written, or holds files that no run wrote.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._refuse_foreign()
            (self.root / _LOCK).write_text(_MARK)
        except OSError as error:
            raise RunFolderError(
                f"{self.root}: cannot be written ({error.strerror}); choose another with --output"
            ) from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep the folder to this process.

        Raises RunFolderError if another one works in it.
        """
        with (self.root / _LOCK).open("a") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RunFolderError(
                    f"{self.root}: another `pipelinejob run` works here; stop it or choose another folder with --output"
                ) from error
            yield

    def clear(self) -> None:
        """Delete the results of an earlier run, and only what a run writes.

        What says that there was a run goes first: should this be interrupted, nothing is taken for
        finished.
        """
        for file in (self.job, self.plan, self.costs, self.summary, self.report, self.trace, self.steps, self.manifest):
            file.unlink(missing_ok=True)
        for folder in (self.own_checkpoints, self.logs, self.timelines):
            shutil.rmtree(folder, ignore_errors=True)

    def has_results(self) -> bool:
        """Tell whether the last run came to write what came out."""
        return all(file.exists() for file in (self.summary, self.report, self.trace))

    def clear_results(self) -> None:
        """Delete what came out of an earlier run that is now gone on with."""
        for file in (self.summary, self.report, self.trace):
            file.unlink(missing_ok=True)

    def _refuse_foreign(self) -> None:
        """Refuse a folder with files that no run wrote."""
        lock = self.root / _LOCK
        if self.job.exists() or (lock.exists() and lock.read_text() == _MARK):
            return
        if any(entry.name != _LOCK for entry in self.root.iterdir()):
            raise RunFolderError(f"{self.root}: holds files that no run wrote; choose an empty folder with --output")

    def write(self, path: Path, content: str | bytes) -> None:
        """Write a file so that a reader sees the old content or the new, never half."""
        data = content.encode() if isinstance(content, str) else content
        beside = path.with_name(f".{path.name}.new")
        beside.write_bytes(data)
        beside.replace(path)

    def write_job(self, job: Mapping[str, Any]) -> None:
        """Remember the job and its status."""
        self.write(self.job, orjson.dumps(job, option=orjson.OPT_INDENT_2))

    def read_job(self) -> dict[str, Any] | None:
        """Return the job of an earlier run here, or None.

        Raises RunFolderError if the file is damaged.
        """
        return self._read_json(self.job)

    def read_running_job(self) -> dict[str, Any]:
        """Return the job of the run that goes on here.

        Raises RunFolderError if none does.
        """
        job = self.read_job() if self.root.is_dir() else None
        if job is None or not self._is_locked():
            raise RunFolderError(f"{self.root}: no run goes on here; name the folder of one that does, as runs/<name>")
        return job

    def ask_for(self, wish: str) -> None:
        """Ask the run that goes on here for another shape, as JSON."""
        self.write(self._wish, wish)

    def take_wish(self) -> str | None:
        """Return what was asked for since this was called last, if anything was."""
        if not self._wish.exists():
            return None
        text = self._wish.read_text()
        self._wish.unlink()
        return text

    def _is_locked(self) -> bool:
        """Tell whether a process works here."""
        try:
            with self.lock():
                return False
        except RunFolderError:
            return True

    @property
    def _wish(self) -> Path:
        return self.root / "wish.json"

    def read_profile(self) -> dict[str, Any] | None:
        """Return the cached costs, or None."""
        return self._read_json(self.profile)

    def read_steps(self) -> tuple[StepRecord, ...]:
        """Return each step once, in order; of a step repeated after a restart the last record counts."""
        if not self.steps.exists():
            return ()
        records: dict[int, StepRecord] = {}
        for line in self.steps.read_bytes().splitlines():
            try:
                record = StepRecord.model_validate_json(line)
            except ValidationError:  # a line torn by a killed writer
                continue
            records[record.step] = record
        return tuple(records[step] for step in sorted(records))

    def read_timelines(self) -> Timeline:
        """Return what all ranks measured."""
        found: list[StageTimeline] = []
        for file in sorted(self.timelines.glob("*.json")):
            try:
                found += Timeline.model_validate_json(file.read_bytes()).stages
            except ValidationError:  # a file torn by a killed writer; the others still tell the story
                continue
        return Timeline(source="measured", stages=tuple(found))

    def _read_json(self, path: Path) -> dict[str, Any] | None:
        if not path.exists():
            return None
        try:
            found: dict[str, Any] = json.loads(path.read_bytes())
        except json.JSONDecodeError as error:
            raise RunFolderError(f"{path}: damaged ({error}); start anew with --fresh") from error
        return found

    def relative(self) -> str:
        """Return the folder as a person in the current directory would write it."""
        path = os.path.relpath(self.root)
        return str(self.root) if path.startswith("..") else path
