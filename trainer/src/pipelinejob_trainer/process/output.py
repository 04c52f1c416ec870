"""What a run writes besides checkpoints: steps.jsonl, timelines, lines on stdout."""

import sys
import time
from collections import deque
from pathlib import Path

from pipelinejob.base import names
from pipelinejob.base.timeline import StageTimeline, Timeline
from pipelinejob.contract.progress import StepRecord
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.process.config import Config
from pipelinejob_trainer.process.stage_status import StepOutcome

_KEPT_TIMELINES = 3
_TIMELINES_EVERY_S = 5.0
_LINE_EVERY_S = 2.0


class Output:
    """Files below `config.output`, if there is one, and stdout."""

    def __init__(self, config: Config, *, is_spokesman: bool, num_steps: int) -> None:
        """Make the folders.

        Only the spokesman writes steps.jsonl. Raises UserError if they cannot be written.
        """
        self._attempt = config.attempt
        self._num_steps = num_steps
        self._is_spokesman = is_spokesman
        self._steps: Path | None = None
        self._timelines: Path | None = None
        self._last: deque[StageTimeline] = deque(maxlen=_KEPT_TIMELINES)
        self._line_due = self._timelines_due = 0.0
        if config.output is not None and config.tensor == 0:  # of those that share layers one speaks
            self._timelines = config.output / names.TIMELINES_FOLDER / f"{config.pod}.json"
            self._steps = config.output / names.STEPS_FILE if is_spokesman else None
            _make_folder(self._timelines.parent)

    def add_step(self, outcome: StepOutcome) -> None:
        """Write a step's record; print a line every few seconds."""
        if self._steps is not None:
            with self._steps.open(
                "a", encoding="utf-8"
            ) as file:  # one write: a killed writer tears the last line at most
                file.write(self._record(outcome).model_dump_json(by_alias=True, exclude_none=True) + "\n")
        is_due = time.monotonic() >= self._line_due or outcome.evaluation_loss is not None
        if is_due or outcome.step == self._num_steps:
            self._line_due = time.monotonic() + _LINE_EVERY_S
            say(self._line(outcome))

    def add_timeline(self, timeline: StageTimeline) -> None:
        """Keep a step's timeline; write the last ones every few seconds."""
        self._last.append(timeline)
        if time.monotonic() >= self._timelines_due:
            self._timelines_due = time.monotonic() + _TIMELINES_EVERY_S
            self.write_timelines()

    def write_timelines(self) -> None:
        """Write the last timelines, atomically."""
        if self._timelines is None or not self._last:
            return
        temporary = self._timelines.with_name(f".{self._timelines.name}.new")
        timeline = Timeline(source="measured", stages=tuple(self._last))
        temporary.write_text(timeline.model_dump_json(by_alias=True, exclude_none=True), encoding="utf-8")
        temporary.replace(self._timelines)

    def forget_timelines(self) -> None:
        """Drop what was measured by another schedule."""
        self._last.clear()
        if self._timelines is not None:
            self._timelines.unlink(missing_ok=True)

    def _record(self, outcome: StepOutcome) -> StepRecord:
        return StepRecord(
            step=outcome.step,
            loss=outcome.loss,
            evaluation_loss=outcome.evaluation_loss,
            skipped=outcome.skipped,
            gradient_norm=outcome.gradient_norm,
            learning_rate=outcome.learning_rate,
            step_s=outcome.step_s,
            tokens_per_s=outcome.tokens_per_s,
            time=time.time(),
            attempt=self._attempt,
        )

    def _line(self, outcome: StepOutcome) -> str:
        evaluation = "" if outcome.evaluation_loss is None else f"  evaluation loss {outcome.evaluation_loss:.4f}"
        return (
            f"step {outcome.step}/{self._num_steps}  loss {outcome.loss:.4f}{evaluation}"
            f"  gradient norm {outcome.gradient_norm:.3f}  {outcome.step_s:.3f} s  {outcome.tokens_per_s:.0f} tokens/s"
        )


def say(line: str) -> None:
    """Print a line to stdout."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def warn(line: str) -> None:
    """Print a warning to stderr."""
    sys.stderr.write(f"warning: {line}\n")
    sys.stderr.flush()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            "OutputUnwritable", f"output folder {folder}: {error.strerror}; make it writable, or choose another"
        ) from error
