"""A soak of recovery in place: real processes fail at random moments, and the end is the undisturbed run's.

    python tests/soak_recovery.py [--failures 200] [--seed 1] [--folder FOLDER] [--only killed ...] [--of-a-gang 6]

Gangs of one schedule family after the other, four stages, or two of two replicas, fail again and again: a rank is
killed, stopped for good, told to stop, or its node's cable is pulled; it is killed while no operator is there, and the
next one knows nothing; or it is stopped for a moment, its link slow, or the disk full, which are no losses. Losses,
weights and optimiser must be bit for bit those of a run in which nothing happened. One rank of each gang is spared:
its descriptors, threads and memory must not grow from one recovery to the next. It prints a row for each gang, and ends
with an error where anything differs. A thousand deaths: `--failures 1000 --only killed --of-a-gang 100`.

Cables and full disks need root, `ip` and `tc`: they are network namespaces and a small file system
of this process's own. Where these cannot be had, it says so and leaves them out.
"""

import argparse
import random
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import cycle
from pathlib import Path

from pipelinejob.contract.plan import Plan
from pipelinejob.planning.playing import setting_of
from pipelinejob.scheduler.catalogue import build
from pipelinejob.spec.job import GptModel, Model, ScheduleName, ScheduleSpec
from support.training.forking.forks import Forks
from support.training.gangs import Gang
from support.training.recovering import Operator, assert_same_end, recovering_plan
from support.training.soaking import wires
from support.training.soaking.machines import Nodes
from support.training.soaking.usage import Usage, check_growth
from support.training.soaking.wires import Disk, Wires

STEPS_A_FAILURE, CHECKPOINT_STEPS = 20, 8
SILENCE_S = 4
NOT_TRAINED = {ScheduleName.AUTO, ScheduleName.CUSTOM, ScheduleName.FORWARD_ONLY}  # made by a planner; no training


class Failure(StrEnum):
    """What goes wrong."""

    KILLED = "killed"
    STOPPED = "stopped"
    TOLD = "told to stop"
    CUT = "cut off"
    ALONE = "killed, operator too"
    PAUSED = "paused"
    SLOW = "slow link"
    FULL = "full disk"


HARMLESS = {Failure.PAUSED, Failure.SLOW, Failure.FULL}  # nobody is lost
HANDED_OVER = {Failure.TOLD}  # nothing is done again
OF_ROOT = {Failure.CUT, Failure.SLOW, Failure.FULL}
COLUMNS = ("gang", *Failure, "steps done again", "lost time, median", "the spared rank, first and last")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A schedule, and how its gang is built."""

    name: ScheduleName
    stages: int
    replicas: int

    def __str__(self) -> str:
        return f"{self.name.value}, {self.stages} stages" + (f", {self.replicas} replicas" * (self.replicas > 1))


FAMILIES = tuple(
    Family(name=name, stages=stages, replicas=replicas)
    for name in ScheduleName
    if name not in NOT_TRAINED
    for stages, replicas in ((4, 1), (2, 2))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What came of one gang."""

    failures: Counter[Failure]
    repeated: int  # steps that were done again
    lost_s: tuple[float, ...]  # of each recovery: from the failure to the next step that had not been done
    usage: tuple[Usage, ...]  # of the rank that was spared, after each failure


def wanted(family: Family, steps: int) -> Plan:
    schedule = ScheduleSpec(name=family.name, micro_batches=4, micro_batch_size=2)
    held = build(family.name, setting_of(schedule, family.stages)).held_by
    chunks = 1 + max(each.stage for rank in range(family.stages) for each in held(rank))
    # As many layers as parts: the text's and the head's are two of them.
    model = Model(
        gpt=GptModel(num_layers=max(1, chunks - 2), hidden_size=16, num_heads=2, dropout=0.1, tie_embeddings=True)
    )
    layers = (2, 1) if chunks == 2 else (1,) * chunks
    return recovering_plan(
        *layers,
        ranks=family.stages,
        model=model,
        replicas=family.replicas,
        schedule=schedule,
        training={"steps": steps},
        checkpoint={"interval_steps": CHECKPOINT_STEPS},
        recovery={"silence_seconds": SILENCE_S, "max_replacements": 1000},
    )


class Soak:
    """One gang, and what goes wrong with it."""

    def __init__(self, plan: Plan, folder: Path, forks: Forks, dice: random.Random, cables: Wires | None) -> None:
        self._wires = cables
        self._nodes = Nodes(forks, cables)
        self._gang = Gang(folder, plan, machines=self._nodes)
        self._disk = None if cables is None else Disk(self._gang.checkpoints)
        self._operator = Operator(self._gang)
        self._dice = dice

    def run(self, failures: Sequence[Failure]) -> tuple[Gang, Row]:
        """Run the gang to its end through these failures, one after the other."""
        if self._disk is not None:
            self._disk.mount()
        self._gang.start()
        self._operator.start()
        try:
            return self._gang, self._disturb(failures)
        finally:
            self._operator.stop()
            for process in self._nodes.started:
                process.kill()
                process.wait()

    def _disturb(self, failures: Sequence[Failure]) -> Row:
        gang, operator = self._gang, self._operator
        gang.until(lambda: operator.number == 1, "the gang meets")
        gang.wait_for_step(2)
        spared, *victims = self._dice.sample(sorted(gang.processes), len(gang.processes))
        usage, lost_s = [], []
        for failure in failures:
            time.sleep(self._dice.random() * 0.05)  # so that it comes at any moment of a step
            reached, began = self._reached(), time.monotonic()
            self._fail(failure, self._dice.choice(victims), spared)
            gang.wait_for_step(max(reached, self._reached()) + 2)
            if failure not in HARMLESS:
                lost_s.append(time.monotonic() - began)
            usage.append(Usage.of(gang.processes[spared].pid))
        gang.finish()
        lost = [each for each in failures if each not in HARMLESS]
        assert operator.replaced.count(spared) == 0, "the rank that was spared was replaced"
        assert len(operator.replaced) == len(lost), f"{operator.replaced} were replaced, {len(lost)} were lost"
        return Row(
            failures=Counter(failures),
            repeated=len(gang.steps()) - gang.plan.training.steps,
            lost_s=tuple(lost_s),
            usage=tuple(usage),
        )

    def _fail(self, failure: Failure, pod: str, spared: str) -> None:
        gang, operator = self._gang, self._operator
        before = operator.number
        if failure is Failure.PAUSED:
            gang.signal(pod, signal.SIGSTOP)
            time.sleep(SILENCE_S / 8)
            gang.signal(pod, signal.SIGCONT)
        elif failure is Failure.SLOW:
            self._slow_down(pod)
        elif failure is Failure.FULL:
            self._fill_disk(spared)
        elif failure is Failure.ALONE:
            operator.stop()
            gang.signal(pod, signal.SIGKILL)
            gang.until(lambda: gang.progress(spared).awaits_incarnation, "the others wait to be told who meets")
            operator.forget()
            operator.start()
            gang.until(lambda: operator.number > before, f"{pod} was {failure}: the gang meets anew")
        else:
            self._lose(failure, pod)
            gang.until(lambda: operator.number > before, f"{pod} was {failure}: the gang meets anew")
            if self._wires is not None:
                self._wires.mend()  # who was cut off wakes up, and joins nothing
        operator.leaves_stopped = False

    def _lose(self, failure: Failure, pod: str) -> None:
        if failure is Failure.CUT:
            assert self._wires is not None
            self._operator.leaves_stopped = True
            self._wires.cut(pod)
        else:
            signals = {Failure.KILLED: signal.SIGKILL, Failure.STOPPED: signal.SIGSTOP, Failure.TOLD: signal.SIGTERM}
            self._gang.signal(pod, signals[failure])

    def _slow_down(self, pod: str) -> None:
        assert self._wires is not None
        self._wires.slow(pod)
        self._gang.wait_for_step(self._reached() + 3)
        self._wires.quicken(pod)

    def _fill_disk(self, spared: str) -> None:
        assert self._disk is not None
        failed = self._gang.progress(spared).failed_checkpoints
        self._disk.fill()
        self._gang.until(lambda: self._gang.progress(spared).failed_checkpoints > failed, "a checkpoint fails")
        self._disk.free()

    def _reached(self) -> int:
        return max((record.step for record in self._gang.steps()), default=0)


def draw(count: int, kinds: Sequence[Failure], dice: random.Random) -> list[Failure]:
    """Return failures in random order, of each kind as many as of another, or one more."""
    some = [kind for _, kind in zip(range(count), cycle(dice.sample(kinds, len(kinds))), strict=False)]
    return dice.sample(some, len(some))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--failures", type=int, default=200, help="how many, over all gangs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="for what the runs leave behind; a temporary one if not given")
    parser.add_argument("--only", type=Failure, nargs="+", choices=list(Failure), help="these kinds alone")
    parser.add_argument("--of-a-gang", type=int, default=6, help="failures of each")
    parser.add_argument("--first", type=int, default=0, help="the family that is begun with")
    options = parser.parse_args()
    why_not = wires.why_not()
    if why_not is None:
        wires.go_apart()
    else:
        print(f"Without {', '.join(sorted(OF_ROOT))}: {why_not}.\n")
    kinds = [each for each in options.only or Failure if why_not is None or each not in OF_ROOT]
    dice, left, began = random.Random(options.seed), options.failures, time.monotonic()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    forks, cables = Forks(), Wires() if why_not is None else None
    print(f"| {' | '.join(COLUMNS)} |")
    print("|---" * len(COLUMNS) + "|", flush=True)
    total: Counter[Failure] = Counter()
    for number, family in enumerate(cycle(FAMILIES)):
        if left <= 0:
            break
        if number < options.first:
            continue
        failures = draw(min(left, options.of_a_gang), kinds, dice)
        left -= len(failures)
        plan = wanted(family, steps=STEPS_A_FAILURE * (len(failures) + 1))
        undisturbed, _ = Soak(plan, folder / f"{number}-undisturbed", forks, dice, cables).run(())
        gang, row = Soak(plan, folder / f"{number}", forks, dice, cables).run(failures)
        assert_same_end(gang, undisturbed, steps=plan.training.steps)
        lost = sum(count for each, count in row.failures.items() if each not in HARMLESS | HANDED_OVER)
        assert row.repeated <= lost, f"{row.repeated} steps were done again"
        check_growth(row.usage)
        total += row.failures
        print(_written(family, row), flush=True)
    forks.close()
    counted = ", ".join(f"{count} {each}" for each, count in total.items())
    print(
        f"\n{total.total()} failures in {time.monotonic() - began:.0f} s: {counted}."
        " Every end was the undisturbed run's"
    )


def _written(family: Family, row: Row) -> str:
    lost = f"{statistics.median(row.lost_s):.1f} s" if row.lost_s else "none"
    numbers = (*(row.failures[each] for each in Failure), row.repeated)
    held = f"{row.usage[0]}; {row.usage[-1]}" if row.usage else ""
    return f"| {family} | {' | '.join(map(str, numbers))} | {lost} | {held} |"


if __name__ == "__main__":
    main()
