"""Who is told of each step besides the log: TensorBoard, and a user's own tracker.

Only the spokesman tells them. What goes wrong there is said once and never stops the training;
what can be known to be wrong before it is refused.
"""

import importlib
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from pipelinejob.contract.plan import Plan
from pipelinejob.spec.training import Tracking
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.process.config import Config
from pipelinejob_trainer.process.output import warn
from pipelinejob_trainer.process.stage_status import StepOutcome

_FLUSH_S = 5
_WAITING_STEPS = 1024  # for a tracker that is slower than the training
_CLOSING_S = 30.0

Values = Mapping[str, float]
Description = Mapping[str, Any]


class Tracker(Protocol):
    """One who is told of each step."""

    def begin(self, description: Description) -> None:
        """Take note of the run."""

    def add(self, step: int, values: Values) -> None:
        """Take note of a step."""

    def close(self) -> None:
        """Finish; nothing comes after it."""


class Trackers:
    """All who are told of a run's steps; none on ranks that are no spokesman."""

    def __init__(self, tracking: Tracking, config: Config, *, is_spokesman: bool) -> None:
        """Find them. Raises UserError for one that is not there, or cannot write."""
        self._trackers: list[Tracker] = []
        if is_spokesman and tracking.tensor_board is not None:
            folder = (config.output or config.checkpoints) / tracking.tensor_board.path
            self._trackers.append(_TensorBoard(folder))
        if is_spokesman and tracking.tracker is not None:
            self._trackers.append(_InThread(tracking.tracker, _function(tracking.tracker)))

    def begin(self, plan: Plan, *, attempt: int, step: int) -> None:
        """Tell of the run, which goes on after a step."""
        for tracker in self._trackers:
            tracker.begin(_description(plan, attempt=attempt, step=step))

    def add_step(self, outcome: StepOutcome) -> None:
        """Tell of a step."""
        for tracker in self._trackers:
            tracker.add(outcome.step, _values(outcome))

    def close(self) -> None:
        """Let them finish."""
        for tracker in self._trackers:
            tracker.close()


def _description(plan: Plan, *, attempt: int, step: int) -> Description:
    parts = ("model", "data", "parallelism", "schedule", "training", "evaluation", "checkpoint")
    spec = plan.dump()
    return {
        "namespace": plan.namespace,
        "name": plan.name,
        "attempt": attempt,
        "step": step,
        "spec": {part: spec[part] for part in parts if part in spec},
    }


def _values(outcome: StepOutcome) -> Values:
    values = {
        "loss": outcome.loss,
        "gradient_norm": outcome.gradient_norm,
        "learning_rate": outcome.learning_rate,
        "step_s": outcome.step_s,
        "tokens_per_s": outcome.tokens_per_s,
        "skipped": float(outcome.skipped is not None),
    }
    return values if outcome.evaluation_loss is None else values | {"evaluation_loss": outcome.evaluation_loss}


class _TensorBoard:
    """TensorBoard's event files, by its own writer, which has a thread of its own and needs no TensorFlow.

    torch.utils.tensorboard, which wraps it, imports the whole of torch's exporters beside it.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2  # noqa: PLC0415 # 1.5 s, where it is wanted
            from tensorboard.summary.writer.event_file_writer import EventFileWriter  # noqa: PLC0415 # as above
        except ImportError as error:
            raise UserError(
                "NoTensorBoard",
                f"spec.training.tracking.tensorBoard: this image cannot import tensorboard: {error}; install it, or"
                " leave tensorBoard out",
            ) from error
        self._event, self._session, self._summary = event_pb2.Event, event_pb2.SessionLog, summary_pb2.Summary
        self._has_failed = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventFileWriter(str(folder), flush_secs=_FLUSH_S)
        except OSError as error:
            raise UserError(
                "TensorBoardUnwritable",
                f"spec.training.tracking.tensorBoard: {folder}: {error.strerror or error}; make it writable, or change"
                " path",
            ) from error

    def begin(self, description: Description) -> None:
        # Of a run that goes on from a checkpoint, or went back to one, steps after it do not count
        # any more.
        start = self._session(status=self._session.START)
        self._write(self._event(wall_time=time.time(), step=description["step"] + 1, session_log=start))

    def add(self, step: int, values: Values) -> None:
        found = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(self._event(wall_time=time.time(), step=step, summary=self._summary(value=found)))

    def close(self) -> None:
        self._guarded(self._writer.close)

    def _write(self, event: object) -> None:
        self._guarded(lambda: self._writer.add_event(event))

    def _guarded(self, work: Callable[[], object]) -> None:
        if self._has_failed:
            return
        try:
            work()
        except Exception as error:  # noqa: BLE001 # whatever it is, training goes on
            self._has_failed = True
            warn(f"spec.training.tracking.tensorBoard: {error}; nothing more is written, training goes on")


class _InThread:
    """A user's tracker in a thread of its own, so that a slow server does not slow the training."""

    def __init__(self, name: str, function: Callable[..., object]) -> None:
        self._name = name
        self._function = function
        self._said: set[str] = set()
        self._jobs: queue.Queue[Callable[[], object] | None] = queue.Queue(maxsize=_WAITING_STEPS)
        self._told: Any = None
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._thread.start()

    def begin(self, description: Description) -> None:
        self._put(lambda: self._call(description))

    def add(self, step: int, values: Values) -> None:
        self._put(lambda: None if self._told is None else self._told(step, values))

    def close(self) -> None:
        """Wait until it knows of all steps, but not for ever."""
        self._put(self._close)
        self._put(None)
        self._thread.join(_CLOSING_S)
        if self._thread.is_alive():
            self._say("slow", f"is not done {_CLOSING_S:g} s after the last step; it is left behind")

    def _call(self, description: Description) -> None:
        if self._told is None:
            self._told = self._function(description)

    def _close(self) -> None:
        close = getattr(self._told, "close", None)
        if close is not None:
            close()

    def _put(self, job: Callable[[], object] | None) -> None:
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            self._say("full", f"is {_WAITING_STEPS} steps behind; it is not told of some")

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except BaseException as error:  # noqa: BLE001 # a user's code may raise anything
                self._say("raised", f"raised {type(error).__name__}: {error}; training goes on")

    def _say(self, kind: str, what: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            warn(f"spec.training.tracking.tracker {self._name} {what}")


def _function(tracker: str) -> Callable[..., object]:
    module_name, _, function_name = tracker.partition(":")
    try:
        found: object = getattr(importlib.import_module(module_name), function_name)
    except BaseException as error:  # a user's module may raise anything
        raise UserError(
            "BadTracker",
            f"spec.training.tracking.tracker {tracker}: {type(error).__name__}: {error}; give package.module:function"
            " of this image",
        ) from error
    if not callable(found):
        raise UserError("BadTracker", f"spec.training.tracking.tracker {tracker} is {found!r:.80}; give a function")
    return found
