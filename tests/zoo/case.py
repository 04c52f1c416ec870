"""A case: a model of the zoo, and how it is trained, in one go or in two with a stop between."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelinejob.contract.plan import Plan
from pipelinejob.scheduler.catalogue import build
from pipelinejob.schedules.actions import Schedule
from pipelinejob.schedules.families import ASYNCHRONOUS
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.setting import Setting
from pipelinejob.spec.job import Data, Evaluation, Model, Precision, ScheduleSpec
from support.plans.schedule_oracles import adds_up_in_order
from support.training.gangs import plan
from zoo.model import bare

LEARNING_RATE = 0.01
# One weight of several layers: where these are on several ranks, each rank adds up its own use
# first.
SUMMED_ELSEWHERE = {"tied", "repeated", "repeated-counter", "shared-head", "borrowing"}
# In which order torch adds up goes by how tensors lie in memory, which a border between stages may
# change, and, in an LSTM, by whether a gradient is wanted, as it is not in the first of two
# passes.
OUT_OF_ORDER = {"strided", "expanded", "recurrent", "batch-norm", "doubled"}


@dataclass(frozen=True, kw_only=True)
class Leg:
    """One run: from where the one before it stopped, or from the start, to the end of step `until`.

    `cuts` are the numbers of layers of the stages of a route; `recompute` the ranks that
    recompute, or `again` how many first layers each of them does.
    """

    until: int
    schedule: ScheduleName
    ranks: int
    cuts: tuple[int, ...]
    replicas: int
    micro_batches: int
    micro_batch_size: int = 2
    is_last_smaller: bool = False
    recompute: tuple[int, ...] = ()
    again: tuple[int, ...] | None = None

    @property
    def built(self) -> Schedule:
        return build(self.schedule, Setting(num_ranks=self.ranks, num_micro_batches=self.micro_batches))


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained, and the runs that train it."""

    habits: tuple[str, ...]
    legs: tuple[Leg, ...]
    sequence_length: int = 6
    precision: Precision = Precision.FP32
    clip_norm: float = 1.0
    preflight: bool = False
    evaluates: bool = False
    is_masked: bool = False  # some targets do not count
    seed: int = 7

    @property
    def steps(self) -> int:
        return self.legs[-1].until

    @property
    def is_exact(self) -> bool:
        """Tell whether each sum is added up as plain torch does it, micro-batch after micro-batch on one rank."""
        habits = {bare(word) for word in self.habits}
        return (
            not self.is_masked
            and not habits & (SUMMED_ELSEWHERE | OUT_OF_ORDER)
            and all(_is_exact(leg) for leg in self.legs)
        )

    def plan(self, leg: Leg, text: Path) -> Plan:
        """Return the plan of a run."""
        return plan(
            *leg.cuts,
            ranks=leg.ranks,
            replicas=leg.replicas,
            model=Model(
                entrypoint="zoo.model:layers",
                num_layers=len(self.habits),
                arguments={"habits": " ".join(self.habits)},
            ),
            data=Data(paths=(str(text),), sequence_length=self.sequence_length),
            schedule=_schedule(leg),
            training=self._training(leg),
            evaluation=Evaluation(interval_steps=2, batches=2) if self.evaluates else None,
            checkpoint={"interval_steps": 0},
        )

    def _training(self, leg: Leg) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "learning_rate": LEARNING_RATE,
            "warmup_steps": 1,
            "weight_decay": 0.1,
            "clip_norm": 0 if leg.schedule in ASYNCHRONOUS else self.clip_norm,
            "precision": self.precision,
            "preflight": self.preflight,
            "seed": self.seed,
        }


def _is_exact(leg: Leg) -> bool:
    return leg.replicas == 1 and adds_up_in_order(leg.built)


def _schedule(leg: Leg) -> ScheduleSpec:
    sequences = leg.micro_batch_size * leg.micro_batches
    recomputed: dict[str, Any] = {"recompute_layers": leg.again}
    if leg.again is None:
        recomputed = {"recompute": bool(leg.recompute), "recompute_stages": leg.recompute or None}
    return ScheduleSpec(
        name=leg.schedule,
        micro_batches=leg.micro_batches,
        micro_batch_size=leg.micro_batch_size,
        batch_size=sequences - 1 if leg.is_last_smaller else None,
        **recomputed,
    )
