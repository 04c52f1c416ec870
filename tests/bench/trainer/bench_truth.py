"""Measures how far predictions are from the truth: step times and peak memory of random configurations.

    python tests/bench/trainer/bench_truth.py [--cases 40] [--seed 1] [--only real,virtual] [--output bench-truth.json]

Real compute: a GPT of random sizes is cut at random over two processes of one core each, under a
random schedule; its layers are profiled, the plan is made, and the trainer's own loop trains it.
Then it trains again with every allocation of tensors recorded, for the peak. Virtual compute: 2 to
8 ranks whose layers take random times, over real links, in the same loop. Ends with 1 unless step
times are off by at most 5 % in the mean and 15 % in the worst case (virtual: 2 % in the mean), and
peaks by at most 5 % in the mean.
"""

import contextlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from statistics import mean, median

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch is loaded: its profiler tells of every start
os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core a rank

import torch
from torch import distributed

from harness import launch, load, parser, write
from pipelinejob.contract.plan import Plan
from pipelinejob.costs.layers import LayerCost, Profile
from pipelinejob.planning.planner import make_plan
from pipelinejob.planning.playing import schedule_of
from pipelinejob.spec.job import Model, PipelineJobSpec
from pipelinejob_trainer.communication.gang import Gang
from pipelinejob_trainer.communication.process_groups import connect, process_groups
from pipelinejob_trainer.process.config import Address, Config
from pipelinejob_trainer.process.signals import StopRequest
from pipelinejob_trainer.process.stage_status import StageStatus, StepOutcome
from pipelinejob_trainer.profile.lockstep import meet
from pipelinejob_trainer.profile.profile import measure as profiled
from pipelinejob_trainer.runtime.reduction import sums_over_groups
from pipelinejob_trainer.training.loop import Preparation, TrainingLoop
from pipelinejob_trainer.training.membership import Membership
from truth_cases import FEW_MS, PASSES, REAL_RANKS, SETTLING_STEPS, few_layers, real_job, virtual_job

VIRTUAL_RANKS = (2, 3, 4, 6, 8)
REAL_MEAN, REAL_WORST, VIRTUAL_MEAN, MEMORY_MEAN = 0.05, 0.15, 0.02, 0.05
MEMORY_STEPS = 2
_NOWHERE = Address(host="127.0.0.1", port=1)


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What one rank saw of a job: the median step, and the most that its tensors took."""

    step_s: float
    peak_bytes: int | None = None


class Watch(StageStatus):
    """A status that remembers when steps ended, and how long they took."""

    def __init__(self, plan: Plan, *, stage: int) -> None:
        super().__init__(plan, stage=stage, replica=0, attempt=1)
        self.ended_ns: list[int] = []
        self.steps_s: list[float] = []

    def add_step(self, outcome: StepOutcome) -> None:
        super().add_step(outcome)
        self.ended_ns.append(time.time_ns())
        self.steps_s.append(outcome.step_s)

    @property
    def step_s(self) -> float:
        """Return the median step; the last one has a checkpoint in it."""
        return median(self.steps_s[SETTLING_STEPS:-1])


class Worker:
    """One rank's process: it trains one job after the other."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.rank = rank
        self._ranks = ranks
        self._cores = sorted(os.sched_getaffinity(0))
        self._groups = process_groups(pipeline=ranks, data=1)
        self._together = meet(REAL_RANKS)
        self._few: dict[bool, Profile] = {}  # a few layers that wait, with whole backward passes and with halves

    def profile(self, plan: Plan) -> Profile:
        """Measure with all cores at hand, as profiling processes have them."""
        return self._given_by_first(profiled(plan, self._together))

    def virtual_profile(self, plan: Plan) -> Profile:
        """Profile a few layers that wait, and give layers that wait as long as the plan's: they take no processor."""
        is_split = schedule_of(plan).is_split
        if is_split not in self._few:
            self._few[is_split] = self.profile(
                make_plan(namespace="bench", name="few", spec=few_layers(is_split=is_split))
            )
        few = self._few[is_split]
        return few.model_copy(update={"layers": tuple(_waiting_layers(plan.model, few)), "concurrency": None})

    def _given_by_first(self, found: Profile | None) -> Profile:
        held: list[Profile | None] = [found]
        distributed.broadcast_object_list(held, src=0)
        assert held[0] is not None, "the first rank has one"
        return held[0]

    def truth(self, plan: Plan, *, with_memory: bool) -> Truth:
        """Train for the time of a step, and again for what tensors take at most."""
        if not with_memory:
            return Truth(step_s=self._train(plan).step_s)
        training = plan.training.model_copy(update={"steps": MEMORY_STEPS})
        with self._on_own_core():
            step_s = self._train(plan).step_s
            with torch.profiler.profile(profile_memory=True) as recorded:
                watch = self._train(plan.model_copy(update={"training": training}))
        return Truth(step_s=step_s, peak_bytes=_peak(recorded, until_ns=watch.ended_ns[-2]))

    @contextmanager
    def _on_own_core(self) -> Iterator[None]:
        if self._ranks <= len(self._cores):  # more share all of them, as a plan expects
            os.sched_setaffinity(0, {self._cores[self.rank]})
        yield
        os.sched_setaffinity(0, self._cores)

    def _train(self, plan: Plan) -> Watch:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            prepared = Preparation(self._config(Path(folder)), plan)
            layout, links = prepared.rank.layout, partial(connect, self._groups, data=1, device=prepared.rank.device)
            membership = Membership(
                gang=Gang(self._groups, num_stages=self._ranks),
                link=lambda rows: links(routes=layout.schedule.routes, rows=rows),
                sum_over=sums_over_groups(layout.all_shares(prepared.rank.part)),
                rendezvous=_NOWHERE,
                prefix="",
            )
            watch = Watch(plan, stage=self.rank)
            TrainingLoop(prepared, membership, watch, StopRequest(grace_s=60, on_overdue=lambda: None)).run()
            distributed.barrier()
        return watch

    def _config(self, folder: Path) -> Config:
        return Config(
            plan=folder / "plan.json",
            namespace="bench",
            job="truth",
            stage=self.rank,
            replica=0,
            attempt=1,
            rendezvous=_NOWHERE,
            metrics_port=0,
            checkpoints=folder,
            output=None,
            termination_log=None,
            grace_s=60.0,
        )


def _peak(recorded: torch.profiler.profile, *, until_ns: int) -> int:
    """Return the most bytes that were allocated at once, of those allocated since the recording began."""
    held = peak = 0
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.start_ns() > until_ns:
            break
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def _waiting_layers(model: Model, few: Profile) -> Iterator[LayerCost]:
    """Return a model's layers: each takes what it was told to wait, and what the few measured took beside."""
    embedding, like = few.layers[0], few.layers[1]
    beside = [max(s - FEW_MS / 1000, 0.0) for s in (like.forward_s, like.backward_input_s, like.backward_weight_s)]
    waits = [[float(ms) / 1000 for ms in model.arguments[name].split(",")] for name in PASSES]
    yield embedding
    for index, seconds in enumerate(zip(*waits, strict=True)):
        names = ("forward_s", "backward_input_s", "backward_weight_s")
        taken = {name: wait + more for name, wait, more in zip(names, seconds, beside, strict=True)}
        yield like.model_copy(update={"name": f"layer-{index + 1}", **taken})


def measure(rank: int, jobs: Sequence[PipelineJobSpec], *, is_real: bool) -> list[tuple[Plan, Truth]]:
    """One process of several: profile, plan and train one configuration after the other."""
    worker = Worker(rank, jobs[0].parallelism.pipeline)
    found = []
    for spec in jobs:
        plan = partial(make_plan, namespace="bench", name="truth", spec=spec)
        with contextlib.redirect_stderr(io.StringIO()):  # an empty pipeline's steps are told there
            profile = worker.profile(plan()) if is_real else worker.virtual_profile(plan())
        made = plan(profile=profile)
        found.append((made, worker.truth(made, with_memory=is_real)))
    return found


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is reported of one configuration."""

    plan: Plan
    step_s: float
    peaks: tuple[int, ...]  # by rank; none on virtual compute

    @property
    def error(self) -> float:
        """Return by what share of the truth the predicted step is too long."""
        return self.plan.prediction.step_s / self.step_s - 1

    @property
    def memory_errors(self) -> list[float]:
        return [stage.memory_bytes / peak - 1 for stage, peak in zip(self.plan.stages, self.peaks, strict=False)]

    def __str__(self) -> str:
        plan, schedule = self.plan, self.plan.schedule
        sizes = f"{_described(plan.model)}, s {plan.data.sequence_length}"
        layers = "-".join(str(end - first) for first, end in plan.cuts)
        memory = ", ".join(
            f"{stage.memory_bytes / 2**20:.1f}/{peak / 2**20:.1f}"
            for stage, peak in zip(plan.stages, self.peaks, strict=False)
        )
        return (
            f"| {len(plan.stages)} | {schedule.name} | {schedule.micro_batches} x {schedule.micro_batch_size}"
            f"{' recompute' if schedule.recompute else ''} | {sizes} | {layers} | {plan.prediction.step_s * 1000:.1f}"
            f" | {self.step_s * 1000:.1f} | {self.error:+.1%} | {memory} |"
        )

    @property
    def figures(self) -> dict[str, object]:
        return {
            "model": self.plan.model.dump(),
            "schedule": self.plan.schedule.dump(),
            "cuts": self.plan.cuts,
            "predicted_s": self.plan.prediction.step_s,
            "measured_s": self.step_s,
            "predicted_bytes": [stage.memory_bytes for stage in self.plan.stages],
            "measured_bytes": self.peaks,
        }


def _described(model: Model) -> str:
    if model.gpt is not None:
        return f"h {model.gpt.hidden_size}, v {model.gpt.vocabulary_size}"
    return "waits" if model.hugging_face is None else Path(model.hugging_face.path).name.partition("-")[2]


def rows_of(jobs: Sequence[PipelineJobSpec], *, is_real: bool) -> Iterator[Row]:
    """Measure jobs, those of as many ranks together."""
    for ranks, group in groupby(jobs, key=lambda spec: spec.parallelism.pipeline):
        results = launch(partial(measure, is_real=is_real), list(group), world=ranks)
        for each in zip(*results, strict=True):
            plan = each[0][0]
            peaks = tuple(truth.peak_bytes for _, truth in each if truth.peak_bytes is not None)
            yield Row(plan=plan, step_s=max(truth.step_s for _, truth in each), peaks=peaks)


def report(name: str, rows: Sequence[Row], bounds: dict[str, float]) -> bool:
    """Print a part's table and its errors; say whether they are within their bounds."""
    print(f"\n{name} compute; times in ms, memory in MiB, each predicted, then measured; load {load():.1f}")
    print(
        "| p | schedule | micro-batches | model | layers | predicted | measured | error | memory |\n" + "|---" * 9 + "|"
    )
    print("\n".join(map(str, rows)))
    errors = [abs(row.error) for row in rows]
    memory = [abs(error) for row in rows for error in row.memory_errors]
    found = {"mean error": mean(errors), "worst error": max(errors)} | (
        {"mean error of memory": mean(memory)} if memory else {}
    )
    verdicts = [
        f"{what} {value:.1%}" + (f" (at most {bounds[what]:.0%})" if what in bounds else "")
        for what, value in found.items()
    ]
    holds = all(found[what] <= bound for what, bound in bounds.items())
    print(f"{name}: {', '.join(verdicts)}: {'holds' if holds else 'OUT OF BOUND'}")
    return holds


def main() -> int:
    options = parser(__doc__, rounds=1, output="bench-truth.json")
    options.add_argument("--cases", type=int, default=40)
    options.add_argument("--seed", type=int, default=1, help="of the first case; the others count on")
    options.add_argument("--only", default="real,virtual")
    given = options.parse_args()
    seeds, only = range(given.seed, given.seed + given.cases), given.only.split(",")
    holds, figures = [], {}
    if "real" in only:
        rows = list(rows_of([real_job(seed) for seed in seeds], is_real=True))
        bounds = {"mean error": REAL_MEAN, "worst error": REAL_WORST, "mean error of memory": MEMORY_MEAN}
        holds.append(report("real", rows, bounds))
        figures["real"] = [row.figures for row in rows]
    if "virtual" in only:
        ranks = sorted(VIRTUAL_RANKS[seed % len(VIRTUAL_RANKS)] for seed in seeds)
        jobs = [virtual_job(seed, each) for seed, each in zip(seeds, ranks, strict=True)]
        rows = list(rows_of(jobs, is_real=False))
        holds.append(report("virtual", rows, {"mean error": VIRTUAL_MEAN}))
        figures["virtual"] = [row.figures for row in rows]
    write(given.output, {"cases": given.cases, "seed": given.seed, **figures})
    return 0 if all(holds) else 1


if __name__ == "__main__":
    sys.exit(main())
