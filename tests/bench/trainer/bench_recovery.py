"""What a lost stage costs, and what it costs to be ready for that: `pipelinejob run` on this machine, run after run.

A stage is killed, stopped, or told to stop, against a restart of the whole gang. Lost time is
counted from the signal to the end of the first step that had not been done before, less that step
itself; where a stage is told to stop, and all still end the step, it is the longest pause between
two steps from then on. Then nothing fails: runs with protection, each between two without, by
their median step. Then a run is scaled, 1 -> 2 -> 4 -> 1 replicas, from memory and through a
checkpoint: it "stood still" for the longest pause between two steps from the request until it has
trained for some steps with the new number, less the median step before; "until then" is from the
request to the end of that.

`python tests/bench/trainer/bench_recovery.py [FOLDER]` prints a row for each case; `--protection`
the second table alone, `--replicas` the third, `--only=told` the cases alone whose names begin so.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import yaml

from pipelinejob.base import names
from pipelinejob.contract.plan import Plan
from pipelinejob.planning.protection import protection

STAGES, STEPS, FAILS_AT, INTERVAL = 3, 260, 150, 100
LIMIT_S = 600.0
PROTECTED, ROUNDS = (1, None), 3  # steps between two copies, None: as the plan chooses; protected runs for each
REPLICAS, SETTLED = (1, 2, 4, 1), 60  # steps that are looked at before each request, and trained after each change
WAYS: dict[str, dict[str, object] | None] = {
    "from memory": {"inPlace": True},
    "from memory, warm spares": {"inPlace": True, "spares": 4},
    "through a checkpoint": None,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    name: str
    signal: signal.Signals
    recovery: dict[str, object] | None


CASES = (
    Case(name="killed, whole gang restarts", signal=signal.SIGKILL, recovery=None),
    Case(name="killed, in place", signal=signal.SIGKILL, recovery={"inPlace": True}),
    Case(name="killed, in place, warm spare", signal=signal.SIGKILL, recovery={"inPlace": True, "spares": 1}),
    Case(name="stopped, whole gang restarts", signal=signal.SIGSTOP, recovery=None),
    Case(name="stopped, in place", signal=signal.SIGSTOP, recovery={"inPlace": True}),
    Case(name="stopped, in place, warm spare", signal=signal.SIGSTOP, recovery={"inPlace": True, "spares": 1}),
    Case(name="told to stop, whole gang restarts", signal=signal.SIGTERM, recovery=None),
    Case(name="told to stop, in place", signal=signal.SIGTERM, recovery={"inPlace": True}),
    Case(name="told to stop, in place, warm spare", signal=signal.SIGTERM, recovery={"inPlace": True, "spares": 1}),
)


def manifest(case: Case) -> dict[str, object]:
    spec = {
        "device": "cpu",
        "model": {"gpt": {"numLayers": 4, "hiddenSize": 32, "numHeads": 2}},
        "data": {"corpus": "python-stdlib", "sequenceLength": 32},
        "parallelism": {"pipeline": STAGES},
        "schedule": {"name": "1F1B", "microBatches": 4, "microBatchSize": 2},
        "training": {"steps": STEPS},
        "checkpoint": {"intervalSteps": INTERVAL},
    } | ({"recovery": case.recovery} if case.recovery else {})
    return {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "bench"}, "spec": spec}


def start(manifest: dict[str, object], folder: Path) -> "subprocess.Popen[str]":
    folder.mkdir(parents=True)
    (folder / "job.yaml").write_text(yaml.safe_dump(manifest))
    command = [sys.executable, "-m", "pipelinejob", "run", "job.yaml", "--no-profile", "--output", "run"]
    return subprocess.Popen(
        [*command, "--prompt", ""], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def protected_step_s(recovery: dict[str, object] | None, folder: Path) -> float:
    """Return the median time of a step of a run in which nothing fails, seconds."""
    case = Case(name="", signal=signal.SIGKILL, recovery=recovery)
    with start(manifest(case), folder) as run:
        said, _ = run.communicate(timeout=LIMIT_S)
    assert run.returncode == 0, said
    times = [moment for _, moment in records(folder / "run" / names.STEPS_FILE)]
    return statistics.median(b - a for a, b in pairwise(times[50:]))


def measure_protection(folder: Path) -> None:
    print("| protection | a step, median of runs | without, beside them | costs | as the plan predicts |")
    print("|---|---|---|---|---|")
    for interval in PROTECTED:
        recovery = {"inPlace": True} | ({"intervalSteps": interval} if interval else {})
        off = [protected_step_s(None, folder / f"off-{interval}-0")]
        on: list[float] = []
        for number in range(1, ROUNDS + 1):
            on.append(protected_step_s(recovery, folder / f"on-{interval}-{number}"))
            off.append(protected_step_s(None, folder / f"off-{interval}-{number}"))
        # Each protected run against the two beside it: what else the machine does changes slowly.
        ratios = [mine / statistics.mean(off[number : number + 2]) for number, mine in enumerate(on)]
        cost = statistics.median(ratios) - 1
        planned = protection(Plan.from_json((folder / f"on-{interval}-1" / "run" / names.PLAN_FILE).read_bytes()))
        assert planned is not None, "the bench's layers are of known cost"
        print(
            f"| a copy every {planned.interval_steps} steps{'' if interval else ', as the plan chooses'} |"
            f" {1000 * statistics.median(on):.1f} ms | {1000 * statistics.median(off):.1f} ms | {cost:.1%} |"
            f" {planned.cost:.1%} |",
            flush=True,
        )


def measure(case: Case, folder: Path) -> dict[str, float | int]:
    with start(manifest(case), folder) as run:
        decided: list[float] = []
        reader = threading.Thread(target=read, args=(run, decided))
        reader.start()
        steps = folder / "run" / names.STEPS_FILE
        while not any(step >= FAILS_AT for step, _ in records(steps)):
            assert run.poll() is None, "the run has ended too early"
            time.sleep(0.02)
        failed_at = time.time()
        os.kill(process_of(folder / "run", stage=1), case.signal)
        run.wait(LIMIT_S)
        reader.join()
    told = records(steps)
    before = [(step, moment) for step, moment in told if moment <= failed_at]
    reached = max(step for step, _ in before)
    later = [moment for step, moment in told if step > reached and moment > failed_at + 0.05]
    step_s = statistics.median(b - a for (_, a), (_, b) in pairwise(before[50:]))
    pauses = [later[0] - failed_at, *(b - a for a, b in pairwise(later))]
    return {
        "noticed_s": decided[0] - failed_at,
        "lost_s": (max(pauses) if case.signal is signal.SIGTERM else pauses[0]) - step_s,
        "repeated_steps": len(told) - STEPS,
        "step_s": step_s,
    }


def read(run: "subprocess.Popen[str]", decided: list[float]) -> None:
    assert run.stdout is not None
    words = ("Replacing:", "Restarting:", "StageFailed:")
    decided.extend(time.time() for line in run.stdout if any(word in line for word in words))


def records(file: Path) -> list[tuple[int, float]]:
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    parsed = [json.loads(line) for line in lines if line.endswith("\n")]
    return [(each["step"], each["time"]) for each in parsed]


def process_of(output: Path, *, stage: int) -> int:
    wanted = {f"{names.ENV_OUTPUT}={output.resolve()}", f"{names.ENV_STAGE}={stage}"}
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdecimal() and wanted <= set((process / "environ").read_text().split("\0")):
                return int(process.name)
        except OSError:  # it ended, or is another user's
            continue
    raise LookupError(f"no process of stage {stage}")


def scalable(recovery: dict[str, object] | None) -> dict[str, object]:
    spec = {
        "device": "cpu",
        "model": {"gpt": {"numLayers": 4, "hiddenSize": 32, "numHeads": 2}},
        "data": {"corpus": "python-stdlib", "sequenceLength": 32},
        "parallelism": {"pipeline": 2, "data": REPLICAS[0]},
        "schedule": {"name": "1F1B", "globalBatchSize": 8, "microBatchSize": 2},
        "training": {"steps": 1_000_000},
        "checkpoint": {"intervalSteps": 1000},
    } | ({"recovery": recovery} if recovery else {})
    return {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "bench"}, "spec": spec}


def measure_replicas(folder: Path) -> None:
    print("| replicas | how | stood still | until then | a step before |")
    print("|---|---|---|---|---|")
    for number, (way, recovery) in enumerate(WAYS.items()):
        with start(scalable(recovery), folder / str(number)) as run:
            threading.Thread(target=run.communicate, daemon=True).start()  # so that it never waits to be read
            try:
                for before, replicas in pairwise(REPLICAS):
                    print(f"| {before} -> {replicas} | {way} {changed(run, folder / str(number) / 'run', replicas)}")
                    sys.stdout.flush()
            finally:
                run.kill()


def changed(run: "subprocess.Popen[str]", output: Path, replicas: int) -> str:
    """Scale a run, and return the rest of its row."""
    await_steps(run, output, SETTLED)
    asked_at = time.time()
    command = [sys.executable, "-m", "pipelinejob", "scale", str(output), "--replicas", str(replicas)]
    subprocess.run(command, check=True, capture_output=True)
    until(run, lambda: trains_with(output, replicas))
    await_steps(run, output, SETTLED)
    times = [moment for _, moment in records(output / names.STEPS_FILE)]
    step_s = statistics.median(b - a for a, b in pairwise([each for each in times if each <= asked_at][-SETTLED:]))
    first = sum(moment <= asked_at for moment in times) - 1
    pause_s, ended_at = max((b - a, b) for a, b in pairwise(times[first:]))
    return f"| {pause_s - step_s:.2f} s | {ended_at - asked_at:.1f} s | {1000 * step_s:.0f} ms |"


def trains_with(output: Path, replicas: int) -> bool:
    status = json.loads((output / "job.json").read_text()).get("status") or {}
    is_under_way = (status.get("recovery") or {}).get("resizing") is not None
    return status.get("replicas") == replicas and status.get("state") == "Training" and not is_under_way


def await_steps(run: "subprocess.Popen[str]", output: Path, count: int) -> None:
    """Wait for so many further steps."""
    reached = len(records(output / names.STEPS_FILE)) + count
    until(run, lambda: len(records(output / names.STEPS_FILE)) >= reached)


def until(run: "subprocess.Popen[str]", claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not claim():
        assert run.poll() is None, "the run has ended too early"
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.1)


def main() -> None:
    arguments = [each for each in sys.argv[1:] if not each.startswith("--")]
    only = next((each.partition("=")[2] for each in sys.argv if each.startswith("--only=")), "")
    folder = Path(arguments[0]) if arguments else Path(tempfile.mkdtemp())
    alone = {"--protection", "--replicas"} & set(sys.argv)
    if not alone:
        measure_losses(folder, only)
        print()
    if "--protection" in alone or not (alone or only):
        measure_protection(folder / "protection")
    if "--replicas" in alone or not (alone or only):
        measure_replicas(folder / "replicas")


def measure_losses(folder: Path, only: str) -> None:
    print("| what happens | noticed after | lost time | steps repeated | a step |")
    print("|---|---|---|---|---|")
    lost_s: dict[str, float] = {}
    for number, case in enumerate(each for each in CASES if each.name.startswith(only)):
        found = measure(case, folder / str(number))
        lost_s[case.name] = found["lost_s"]
        print(
            f"| {case.name} | {found['noticed_s']:.1f} s | {found['lost_s']:.1f} s | {found['repeated_steps']} |"
            f" {found['step_s']:.2f} s |",
            flush=True,
        )
    print()
    for name, seconds in lost_s.items():
        what, _, how = name.partition(", ")
        whole_s = lost_s.get(f"{what}, whole gang restarts")
        if whole_s and how.startswith("in place"):
            print(f"{name}: {seconds / whole_s:.2f} of what a restart of the whole gang loses")


if __name__ == "__main__":
    main()
