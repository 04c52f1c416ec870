"""Replicas that divide a model's experts among them (`spec.parallelism.expert`), and what goes with it."""

from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.rules import Reason, Rule
from pipelinejob.spec.schedules.facts import ASYNCHRONOUS, BOTH_WAYS

_FIELD = ".parallelism.expert"
_HAS_EXPERTS = "has(self.model.decoder) && has(self.model.decoder.experts)"
_MAY_HAVE_EXPERTS = f"{_HAS_EXPERTS} || has(self.model.huggingFace)"


def _else(rule: str) -> str:
    """Return what must hold where experts are divided."""
    return f"self.parallelism.expert == 1 || ({rule})"


EXPERT_RULES = (
    Rule(
        rule=_else(_MAY_HAVE_EXPERTS),
        message="expert divides the experts of spec.model.decoder, or of a folder's model; this model has none, or is "
        "made of layers that hold all of theirs; leave expert out",
        field=_FIELD,
    ),
    Rule(
        rule=_else("!has(self.model.huggingFace) || !has(self.training.preflight) || self.training.preflight"),
        message="with expert, a Hugging Face model's experts are divided by its family's own plan, which only the "
        "preflight holds against the whole model: leave preflight on, or expert out",
        field=".training.preflight",
    ),
    Rule(
        rule=_else(f"!({_HAS_EXPERTS}) || self.model.decoder.experts.num % self.parallelism.expert == 0"),
        message="expert must divide model.decoder.experts.num, so that each replica of a group has as many",
        says="%d replicas cannot share %d experts equally; use a divisor of %d",
        values=(
            "self.parallelism.expert",
            f"({_HAS_EXPERTS} ? self.model.decoder.experts.num : 1)",
            f"({_HAS_EXPERTS} ? self.model.decoder.experts.num : 1)",
        ),
        field=_FIELD,
    ),
    Rule(
        rule=_else("!has(self.parallelism.gpus)"),
        message="a search of degrees does not look at expert yet: give pipeline and data, and leave gpus out",
        field=_FIELD,
    ),
    Rule(
        rule=_else("!has(self.training.lora)"),
        message="expert divides what is trained, and adapters stand beside all experts; use no adapters, or no expert",
        field=_FIELD,
    ),
    Rule(
        rule=_else(
            f"!(self.schedule.name in {BOTH_WAYS.cel} || self.schedule.name in {ASYNCHRONOUS.cel}"
            " || self.schedule.name == 'custom')"
        ),
        message="expert goes with synchronous schedules that hold each stage on one rank of a pipeline, and custom may "
        f"be another; use {ScheduleName.DUALPIPE_V} instead of {BOTH_WAYS.either}, 1F1B instead of one that updates "
        "within a step",
        says="%s updates within a step, or holds each stage on two ranks, or may do so, which expert does not go with; "
        f"use {ScheduleName.DUALPIPE_V} or 1F1B",
        values=("self.schedule.name",),
        field=_FIELD,
    ),
    Rule(
        rule=_else("!has(self.scheduling.minReplicas)"),
        message="with expert a job does not go on with fewer replicas: these would have to take over experts; leave "
        "minReplicas out",
        field=".scheduling.minReplicas",
        reason=Reason.FORBIDDEN,
    ),
)
