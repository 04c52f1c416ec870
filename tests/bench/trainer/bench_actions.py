"""Measures what an action costs beside its compute, in time and in memory, beside torch's runtime.

    python tests/bench/trainer/bench_actions.py [--rounds 30] [--output bench-actions.json]

Time: two ranks, 64 micro-batches, layers that are one product of 256 numbers; torch plays our list
and its own schedule of that name. Memory: two ranks train a small GPT, each runtime in processes
of its own, where malloc gives back what is freed; what counts is by how much a rank's resident
memory peaks over what it was before the step. Ends with 1 unless our least step takes at most half
of torch's, and the rank that peaks highest peaks no higher.
"""

import ctypes
import sys
from dataclasses import dataclass
from pathlib import Path

from torch import distributed

from harness import (
    Measured,
    Player,
    even_job,
    laid_together,
    launch,
    load,
    ours,
    parser,
    take_turns,
    torchs_runtime,
    write,
)
from peers import torchs_own
from pipelinejob.scheduler import catalogue
from pipelinejob.schedules.actions import Schedule
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.setting import Setting
from pipelinejob.spec.job import GptModel, Model
from pipelinejob_trainer.communication.process_groups import process_groups
from support.training.pipelines import Job

RANKS, MICRO_BATCHES = 2, 64
NAMES = (ScheduleName.ONE_F_ONE_B, ScheduleName.INTERLEAVED, ScheduleName.ZB_V)
TIME_BOUND = 0.5
GPT = Model(gpt=GptModel(num_layers=8, hidden_size=256, num_heads=4))
MEMORY_MICRO_BATCHES = 8
_TEXT = Path(__file__).resolve()


def built(name: ScheduleName, micro_batches: int) -> Schedule:
    return catalogue.build(name, Setting(num_ranks=RANKS, num_micro_batches=micro_batches))


def measure_time(rank: int, rounds: int) -> dict[str, list]:
    """One process: play every schedule with nothing to compute."""
    groups = process_groups(pipeline=RANKS, data=1)
    players: dict[str, Player] = {}
    for name in NAMES:
        job = even_job(built(name, MICRO_BATCHES), share_ms=0)
        players[f"{name}|ours"] = ours(job, rank, groups)
        players[f"{name}|torch, our list"] = torchs_runtime(job, rank)
        players[f"{name}|torch, its own"] = torchs_own(name, job, rank)
    return take_turns(players, rounds)


def memory_job(name: ScheduleName) -> Job:
    schedule = built(name, MEMORY_MICRO_BATCHES)
    return Job(
        text=_TEXT,
        model=GPT,
        stages=RANKS,
        schedule=schedule,
        micro_batches=MEMORY_MICRO_BATCHES,
        micro_batch_size=4,
        sequence_length=128,
    )


def measure_memory(rank: int, name: ScheduleName, who: str) -> int:
    """One process: give by how many bytes the third step's peak stands over what was resident before it."""
    give_back_at_once()
    job = memory_job(name)
    player = ours(job, rank, process_groups(pipeline=RANKS, data=1)) if who == "ours" else torchs_runtime(job, rank)
    for number in (1, 2):
        player.step(number)
        player.bubble()
    distributed.barrier()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    player.step(3)
    return resident("VmHWM") - before


def give_back_at_once() -> None:
    """Make malloc return what is freed to the kernel, down to 64 KiB, so that residency is what tensors take."""
    library = ctypes.CDLL(None)
    for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        assert library.mallopt(parameter, 1 << 16) == 1


def resident(what: str) -> int:
    """Return a line of the kernel's account of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is reported of one schedule: least seconds of a step by player, bytes by player and rank."""

    schedule: ScheduleName
    steps: dict[str, Measured]
    peaks: dict[str, list[int]]

    @property
    def time_ratio(self) -> float:
        """Return our least step over torch's least, whichever of its lists was the faster."""
        peers = [measured.least_s for who, measured in self.steps.items() if who != "ours"]
        return self.steps["ours"].least_s / min(peers)

    @property
    def holds(self) -> bool:
        return self.time_ratio <= TIME_BOUND and max(self.peaks["ours"]) <= max(self.peaks["torch"])

    @property
    def num_actions(self) -> int:
        return max(map(len, built(self.schedule, MICRO_BATCHES).ranks))

    def per_action_us(self, who: str) -> float:
        return self.steps[who].least_s / self.num_actions * 1e6

    def processor_us(self, who: str) -> float:
        return self.steps[who].processor_s / self.num_actions * 1e6

    def __str__(self) -> str:
        times = ", ".join(f"{who} {self.per_action_us(who):.0f}" for who in self.steps)
        processor = ", ".join(f"{who} {self.processor_us(who):.0f}" for who in self.steps)
        peaks = ", ".join(f"{who} {'/'.join(f'{p / 2**20:.1f}' for p in ranks)}" for who, ranks in self.peaks.items())
        verdict = "holds" if self.holds else "OUT OF BOUND"
        return (
            f"{self.schedule:16} us an action: {times} (ratio {self.time_ratio:.2f}); of a processor:"
            f" {processor}; MiB: {peaks}  {verdict}"
        )


def main() -> int:
    given = parser(__doc__, rounds=30, output="bench-actions.json").parse_args()
    peaks = {(name, who): launch(measure_memory, name, who, world=RANKS) for name in NAMES for who in ("ours", "torch")}
    measured = laid_together(launch(measure_time, given.rounds, world=RANKS))
    rows = [
        Row(
            schedule=name,
            steps={key.split("|")[1]: each for key, each in measured.items() if key.split("|")[0] == name},
            peaks={who: peaks[name, who] for who in ("ours", "torch")},
        )
        for name in NAMES
    ]
    print(f"p={RANKS}, m={MICRO_BATCHES}, {given.rounds} rounds, least; load {load():.1f}")
    print("\n".join(map(str, rows)))
    write(given.output, {"rounds": given.rounds, "rows": [figures(row) for row in rows]})
    return 0 if all(row.holds for row in rows) else 1


def figures(row: Row) -> dict[str, object]:
    return {
        "schedule": row.schedule,
        "us_per_action": {who: row.per_action_us(who) for who in row.steps},
        "processor_us_per_action": {who: row.processor_us(who) for who in row.steps},
        "time_ratio": row.time_ratio,
        "peak_bytes": row.peaks,
        "holds": row.holds,
    }


if __name__ == "__main__":
    sys.exit(main())
