"""What a search found: configurations that were planned, the best first, and why nothing else was chosen."""

from dataclasses import dataclass, field

from pipelinejob.costs.links import Links
from pipelinejob.fabric.hardware import DeviceKind
from pipelinejob.planning.choice import Choice
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.search.reasons import Rejected, ranges_text
from pipelinejob.search.space import Layout
from pipelinejob.spec.chosen import Chosen
from pipelinejob.spec.job import PipelineJobSpec

READABLE = 0.005  # of a step: what a searched schedule must save at least, as nobody can read it off its name


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An option that was planned. `devices` and `links` are what it was planned for, by stage.

    No schedule of its layout takes less than `floor_s`. `choice` is what `planner.make_plan` would
    choose for it.
    """

    layout: Layout = field(repr=False)
    chosen: Chosen
    spec: PipelineJobSpec
    step_s: float
    floor_s: float
    tokens_per_s: float
    bubble_ratio: float  # mean over stages
    memory_bytes: tuple[int, ...]  # by stage
    layers: tuple[int, ...]  # of each stretch, first to last
    devices: tuple[DeviceKind, ...]
    links: Links = field(repr=False)
    choice: Choice = field(repr=False)

    @property
    def title(self) -> str:
        """Name it in a line."""
        return title(self.chosen)

    @property
    def is_searched(self) -> bool:
        """Whether its schedule was searched for, and is not one that follows from a name."""
        return self.chosen.schedule is ScheduleName.AUTO


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search found: all that was planned, the best first, and why nothing else was.

    `is_complete` says that no option with a named schedule is left whose lower bound is below the
    best; `num_searched` counts for how many configurations a schedule was searched beside these.
    """

    candidates: tuple[Candidate, ...]
    rejected: tuple[Rejected, ...]
    num_options: int
    is_complete: bool
    num_searched: int = 0

    @property
    def best(self) -> Candidate:
        """The option with the shortest step; a searched schedule's counts as a little longer."""
        return self.candidates[0]

    @property
    def best_named(self) -> Candidate | None:
        """The best option whose schedule follows from its name."""
        return next((each for each in self.candidates if not each.is_searched), None)

    @property
    def alternatives(self) -> tuple[Candidate, ...]:
        """The best candidate of each three degrees, the best first."""
        degrees: dict[tuple[int, int, int], Candidate] = {}
        for each in self.candidates:
            degrees.setdefault((each.chosen.pipeline, each.chosen.data, each.chosen.tensor), each)
        return tuple(degrees.values())


def title(chosen: Chosen) -> str:
    """Name a choice in a line, as in `8 stages x 64 replicas x 8 GPUs, 1F1B, 24 micro-batches of 1`."""
    stages = "no pipeline" if chosen.pipeline == 1 else f"{chosen.pipeline} stages"
    replicas = f" x {chosen.data} replicas" if chosen.data > 1 else ""
    tensor = f" x {chosen.tensor} GPUs" if chosen.tensor > 1 else ""
    schedule = "" if chosen.pipeline == 1 else f", {schedule_title(chosen)}"
    recompute = f", recomputing{_some(chosen)}" if chosen.recompute else ""
    batch = f"{chosen.micro_batches} micro-batch{'es' * (chosen.micro_batches != 1)} of {chosen.micro_batch_size}"
    return f"{stages}{replicas}{tensor}{schedule}, {batch}{recompute}"


def schedule_title(chosen: Chosen) -> str:
    """Name a choice's schedule, as in `LoopedBFS with 12 stretches each`."""
    return f"{chosen.schedule}{f' with {chosen.virtual_stages} stretches each' if chosen.virtual_stages else ''}"


def rank(candidate: Candidate) -> tuple[float, int, int, int]:
    """Order by the step.

    Of equal ones those with fewer devices, fewer stages, and fewer stretches of layers first.

    One that hardly gains by a searched schedule comes after what can be read off its name.
    """
    chosen = candidate.chosen
    seconds = candidate.step_s / (1 - READABLE) if candidate.is_searched else candidate.step_s
    return _rounded(seconds), chosen.num_gpus, chosen.pipeline, len(candidate.layers)


def _rounded(seconds: float) -> float:
    """Round away what rounding alone made."""
    return float(f"{seconds:.9g}")


def _some(chosen: Chosen) -> str:
    if chosen.recompute_layers is not None:
        return f" {', '.join(map(str, chosen.recompute_layers))} layers of the stages"
    return f" on stages {ranges_text(chosen.recompute_stages)}" if chosen.recompute_stages else ""
