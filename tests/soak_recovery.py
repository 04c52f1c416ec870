"""A soak of recovery in place: real processes fail at random moments, and the end is the undisturbed run's.

    python tests/soak_recovery.py [--failures 20] [--seed 1] [--folder FOLDER]

Gangs of one schedule family after the other lose a rank again and again: killed, stopped for good, told to stop, or
stopped for a moment, which is no loss. Losses, weights and optimiser must be bit for bit those of a run in which
nothing happened. One rank of each gang is spared: its descriptors, threads and memory must not grow from one recovery
to the next. It prints a row for each gang, and ends with an error where anything differs.
"""

import argparse
import os
import random
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from pipelinejob.contract.plan import Plan
from pipelinejob.spec.job import GptModel, Model, ScheduleName, ScheduleSpec
from support.training.gangs import Gang
from support.training.recovering import Operator, assert_same_end, recovering_plan

KILLED, STOPPED, TOLD, PAUSED = "killed", "stopped", "told to stop", "paused"
_SIGNALS = {KILLED: signal.SIGKILL, STOPPED: signal.SIGSTOP, TOLD: signal.SIGTERM, PAUSED: signal.SIGSTOP}
FAILURES_OF_A_GANG = 7
STEPS_A_FAILURE = 60
SILENCE_S = 4
TOLERATED_BYTES = 32 << 20  # of allocators' caches; a step's state is kept in less
DROPOUT = Model(gpt=GptModel(num_layers=2, hidden_size=16, num_heads=2, dropout=0.1, tie_embeddings=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A schedule, and how its gang is built."""

    name: str
    layers: tuple[int, ...]
    schedule: ScheduleSpec
    replicas: int = 1


def _family(name: ScheduleName, *layers: int, replicas: int = 1) -> Family:
    schedule = ScheduleSpec(name=name, micro_batches=4, micro_batch_size=2)
    what = f"{name.value}, {len(layers)} stages" + (f", {replicas} replicas" if replicas > 1 else "")
    return Family(name=what, layers=layers, schedule=schedule, replicas=replicas)


FAMILIES = (
    _family(ScheduleName.ONE_F_ONE_B, 1, 2, 1),
    _family(ScheduleName.ZB_H1, 1, 2, 1),
    _family(ScheduleName.GPIPE, 2, 2, replicas=2),
    _family(ScheduleName.ZB_2P, 1, 2, 1),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a process holds."""

    descriptors: int
    threads: int
    memory: int  # bytes, resident

    @classmethod
    def of(cls, pid: int) -> "Usage":
        process = Path(f"/proc/{pid}")
        pages = int((process / "statm").read_text().split()[1])
        return cls(
            descriptors=len(list((process / "fd").iterdir())),
            threads=len(list((process / "task").iterdir())),
            memory=pages * os.sysconf("SC_PAGE_SIZE"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What came of one gang."""

    failures: Counter[str]
    repeated: int  # steps that were done again
    lost_s: tuple[float, ...]  # of each recovery: from the signal to the next step that had not been done
    usage: tuple[Usage, ...]  # of the rank that was spared, after each recovery


def wanted(family: Family, steps: int) -> Plan:
    return recovering_plan(
        *family.layers,
        model=DROPOUT,
        replicas=family.replicas,
        schedule=family.schedule,
        training={"steps": steps},
        checkpoint={"interval_steps": steps},
        recovery={"silence_seconds": SILENCE_S, "max_replacements": 1000},
    )


def start(plan: Plan, folder: Path) -> Gang:
    tests = str(Path(__file__).parent)
    paths = os.pathsep.join(filter(None, (tests, os.environ.get("PYTHONPATH"))))
    return Gang(folder, plan, environment={"PYTHONPATH": paths}).start()


def run(plan: Plan, folder: Path) -> Gang:
    """Run a gang to its end, undisturbed."""
    gang = start(plan, folder)
    operator = Operator(gang).start()
    try:
        return gang.finish()
    finally:
        operator.stop()
        gang.kill()


def soak(plan: Plan, folder: Path, num_failures: int, dice: random.Random) -> tuple[Gang, Row]:
    """Run a gang to its end through so many failures."""
    gang = start(plan, folder)
    operator = Operator(gang).start()
    try:
        row = _disturb(gang, operator, num_failures, dice)
        return gang.finish(), row
    finally:
        operator.stop()
        gang.kill()


def _disturb(gang: Gang, operator: Operator, num_failures: int, dice: random.Random) -> Row:
    spared, *victims = dice.sample(sorted(gang.processes), len(gang.processes))
    failures: Counter[str] = Counter()
    usage, lost_s = [], []
    gang.until(lambda: operator.number == 1, "the gang meets")
    gang.wait_for_step(2)
    for _ in range(num_failures):
        pod, how = dice.choice(victims), dice.choice((KILLED, KILLED, STOPPED, STOPPED, TOLD, PAUSED))
        time.sleep(dice.random() * 0.05)  # so that it comes at any moment of a step
        before, reached, began = operator.number, _reached(gang), time.monotonic()
        failures[how] += 1
        gang.signal(pod, _SIGNALS[how])
        if how == PAUSED:
            time.sleep(SILENCE_S / 8)
            gang.signal(pod, signal.SIGCONT)
        else:
            gang.until(lambda before=before: operator.number > before, f"{pod} was {how}: the gang meets anew")
        gang.wait_for_step(max(reached, _reached(gang)) + 2)
        if how != PAUSED:
            lost_s.append(time.monotonic() - began)
        usage.append(Usage.of(gang.processes[spared].pid))
    assert operator.replaced.count(spared) == 0, "the rank that was spared was replaced"
    num_lost = failures.total() - failures[PAUSED]
    gang.finish()
    assert len(operator.replaced) == num_lost, f"{operator.replaced} were replaced, {num_lost} were lost"
    return Row(
        failures=failures,
        repeated=len(gang.steps()) - gang.plan.training.steps,
        lost_s=tuple(lost_s),
        usage=tuple(usage),
    )


def _reached(gang: Gang) -> int:
    return max((record.step for record in gang.steps()), default=0)


def check_growth(usage: Sequence[Usage]) -> None:
    """See that what a survivor holds after the last recoveries is what it held after the first.

    A moment may show two meetings at once, one of them about to be let go; what leaks, each later moment shows.
    """
    for what, tolerated in (("descriptors", 0), ("threads", 0), ("memory", TOLERATED_BYTES)):
        first = max(getattr(each, what) for each in usage[:3])
        last = min(getattr(each, what) for each in usage[-3:])
        assert last <= first + tolerated, f"{what} grew from {first} to {last}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--failures", type=int, default=20, help="how many, over all gangs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="for what the runs leave behind; a temporary one if not given")
    options = parser.parse_args()
    dice, left, began = random.Random(options.seed), options.failures, time.monotonic()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    undisturbed: dict[tuple[str, int], Gang] = {}
    print(
        "| gang | killed | stopped | told to stop | paused | steps done again | lost time, median"
        " | the spared rank, first and last |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for number, family in enumerate(cycle(FAMILIES)):
        if left <= 0:
            break
        count = min(left, FAILURES_OF_A_GANG)
        left -= count
        plan = wanted(family, steps=STEPS_A_FAILURE * (count + 1))
        known = family.name, plan.training.steps
        if known not in undisturbed:
            undisturbed[known] = run(plan, folder / f"{number}-undisturbed")
        gang, row = soak(plan, folder / f"{number}", count, dice)
        assert_same_end(gang, undisturbed[known], steps=plan.training.steps)
        assert row.repeated <= row.failures[KILLED] + row.failures[STOPPED], f"{row.repeated} steps were done again"
        check_growth(row.usage)
        print(_written(family, row), flush=True)
    print(f"{options.failures} failures in {time.monotonic() - began:.0f} s: every end was the undisturbed run's")


def _written(family: Family, row: Row) -> str:
    first, last = row.usage[0], row.usage[-1]
    held = (
        ", ".join(f"{getattr(first, what)} and {getattr(last, what)} {what}" for what in ("descriptors", "threads"))
        + f", {first.memory / 2**20:.0f} and {last.memory / 2**20:.0f} MiB"
    )
    lost = f"{statistics.median(row.lost_s):.1f} s" if row.lost_s else "none"
    numbers = (row.failures[KILLED], row.failures[STOPPED], row.failures[TOLD], row.failures[PAUSED], row.repeated)
    return f"| {family.name} | {' | '.join(map(str, numbers))} | {lost} | {held} |"


if __name__ == "__main__":
    main()
