"""All metrics of a stage, declared here only.

Base units; labels never hold a step or a micro-batch.
"""

import math

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import generate_latest

from pipelinejob.base.timeline import WAITING, Span, SpanKind, StageTimeline
from pipelinejob.contract.plan import Plan, StagePlan
from pipelinejob.contract.progress import Skipped
from pipelinejob.schedules.causes import WaitCause

_LABELS = ("namespace", "pipelinejob", "stage", "replica")
_STEP_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 150.0, 600.0)
LOST, LEFT = "Lost", "Left"  # why others had to be replaced
_OTHER = "other"  # waiting for no other rank: mostly between steps
_CHECKPOINT_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 150.0, 600.0, 1800.0)


class Metrics:
    """One stage's metrics, in a registry of their own."""

    def __init__(self, plan: Plan, *, stage: int, replica: int, tensor: int = 0) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # untyped there; the series would say nothing here
        self._registry = CollectorRegistry()
        self._own = {
            "namespace": plan.namespace,
            "pipelinejob": plan.name,
            "stage": str(stage),
            "replica": str(replica),
        }
        self._labels: tuple[str, ...] = _LABELS
        if plan.parallelism.tensor > 1:
            self._labels = (*_LABELS, "tensor")
            self._own["tensor"] = str(tensor)
        self._declare_time()
        self._declare_training(plan)
        self._declare_checkpoints()
        self._declare_plan(plan, stage)

    def _declare_time(self) -> None:
        seconds = Counter(
            "pipelinejob_stage_seconds",
            "What this stage's seconds were spent on.",
            (*self._labels, "state"),
            registry=self._registry,
        )
        self._seconds = {kind: seconds.labels(**self._own, state=kind.value) for kind in SpanKind}
        idle = Counter(
            "pipelinejob_stage_idle_seconds",
            "What the seconds in the states send, recv and idle were lost to.",
            (*self._labels, "cause"),
            registry=self._registry,
        )
        self._idle = {cause: idle.labels(**self._own, cause=cause) for cause in (*WaitCause, _OTHER)}
        self.step_duration = Histogram(
            "pipelinejob_step_duration_seconds",
            "Wall time of an optimiser step.",
            self._labels,
            buckets=_STEP_BUCKETS,
            registry=self._registry,
        ).labels(**self._own)
        self.heartbeat = self._gauge("pipelinejob_heartbeat_timestamp_seconds", "When this stage last made progress.")

    def _declare_training(self, plan: Plan) -> None:
        self.steps = self._counter("pipelinejob_steps", "Optimiser steps completed by this process.")
        skipped = Counter(
            "pipelinejob_steps_skipped",
            "Steps that left weights and optimiser as they were, by why.",
            (*self._labels, "reason"),
            registry=self._registry,
        )
        self.skipped = {why: skipped.labels(**self._own, reason=why.value) for why in Skipped}
        self.roll_backs = self._counter(
            "pipelinejob_roll_backs", "Returns to the last checkpoint after a step that was not finite."
        )
        recoveries = Counter(
            "pipelinejob_recoveries",
            "Times that this process went on in place after others were lost, or had left because they were told to.",
            (*self._labels, "reason"),
            registry=self._registry,
        )
        self.recoveries = {why: recoveries.labels(**self._own, reason=why) for why in (LOST, LEFT)}
        self.resizes = self._counter(
            "pipelinejob_resizes",
            "Times that this process went on from memory with other replicas, stages, layers or schedule.",
        )
        self.resize_stall = self._gauge(
            "pipelinejob_resize_stall_seconds",
            "How long training stood still at the last of them; 0 if there was none.",
        )
        self.step = self._gauge("pipelinejob_step", "Optimiser steps completed over all attempts.")
        self.tokens = self._counter(
            "pipelinejob_tokens", "Tokens of the whole job that this process's steps trained on."
        )
        self.loss = self._gauge("pipelinejob_loss", "Mean loss of the last step's global batch, in nats per token.")
        self.gradient_norm = self._gauge("pipelinejob_gradient_norm", "Gradient norm over all stages, before clipping.")
        memory = Gauge(
            "pipelinejob_memory_bytes", "Memory of this stage.", (*self._labels, "kind"), registry=self._registry
        )
        self.memory = {kind: memory.labels(**self._own, kind=kind) for kind in ("peak", "parameters", "optimizer")}
        p2p = Counter(
            "pipelinejob_p2p_bytes",
            "Bytes exchanged with neighbouring stages; tensor: sent to ranks that share the stage's layers; expert: to"
            " replicas that divide its experts.",
            (*self._labels, "direction"),
            registry=self._registry,
        )
        tensor, expert = "tensor" in self._own, plan.parallelism.expert > 1
        directions = ("send", "recv", *(("tensor",) if tensor else ()), *(("expert",) if expert else ()))
        self.p2p = {direction: p2p.labels(**self._own, direction=direction) for direction in directions}

    def _declare_checkpoints(self) -> None:
        self.checkpoints = self._counter("pipelinejob_checkpoint_saves", "Checkpoints completed by this process.")
        self.failed_checkpoints = self._counter(
            "pipelinejob_checkpoint_failures", "Checkpoints that could not be written, and were gone on without."
        )
        self.checkpoint_duration = Histogram(
            "pipelinejob_checkpoint_duration_seconds",
            "Wall time of writing and verifying a checkpoint.",
            self._labels,
            buckets=_CHECKPOINT_BUCKETS,
            registry=self._registry,
        ).labels(**self._own)
        self.checkpoint_step = self._gauge("pipelinejob_checkpoint_last_success_step", "Step of the last checkpoint.")
        self.checkpoint_time = self._gauge(
            "pipelinejob_checkpoint_last_success_timestamp_seconds",
            "When the last checkpoint was completed; 0 if none was.",
        )

    def _declare_plan(self, plan: Plan, stage: int) -> None:
        if plan.evaluation is not None:
            self.evaluation_loss = self._gauge(
                "pipelinejob_evaluation_loss",
                "Mean loss of the last evaluation, in nats per token; NaN before the first.",
            )
            self.evaluation_loss.set(math.nan)
        self._predicted_bubble = self._gauge(
            "pipelinejob_stage_predicted_bubble_ratio", "Bubble that the plan predicts."
        )
        self._predicted_step: Gauge | None = None
        if plan.prediction.is_absolute:
            self._predicted_step = self._gauge(
                "pipelinejob_predicted_step_seconds", "Step time that the plan predicts."
            )
        self._info = Gauge(
            "pipelinejob_stage_info",
            "What this stage is; always 1.",
            (*self._labels, "schedule", "layers", "device"),
            registry=self._registry,
        )
        if stage < len(plan.stages):  # else it joins a gang that goes over to a plan with more stages
            self.follow(plan, stage)

    def follow(self, plan: Plan, stage: int) -> None:
        """Show what this stage is by a plan, the first one or another, and what that predicts."""
        planned = plan.stages[stage]
        self._info.clear()
        self._info.labels(
            **self._own, schedule=plan.schedule.name.value, layers=_layers(planned), device=plan.device.value
        ).set(1)
        self._predicted_bubble.set(planned.bubble_ratio)
        if self._predicted_step is not None:
            self._predicted_step.set(plan.prediction.step_s)

    def add_timeline(self, timeline: StageTimeline) -> None:
        """Count a step's seconds."""
        for span in timeline.spans:
            self._seconds[span.kind].inc(span.end_s - span.start_s)
            if span.kind in WAITING:
                self._idle[_cause(span)].inc(span.end_s - span.start_s)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, help_text: str) -> Counter:
        return Counter(name, help_text, self._labels, registry=self._registry).labels(**self._own)

    def _gauge(self, name: str, help_text: str) -> Gauge:
        return Gauge(name, help_text, self._labels, registry=self._registry).labels(**self._own)


def _cause(span: Span) -> str:
    return span.cause or (WaitCause.SEND if span.kind is SpanKind.SEND else _OTHER)


def _layers(planned: StagePlan) -> str:
    return ",".join(f"{first}-{end - 1}" for first, end in planned.chunks)
