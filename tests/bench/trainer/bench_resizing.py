"""What it costs to change the number of replicas of a run that goes on: from memory, and through a checkpoint.

`pipelinejob run` on this machine, scaled 1 -> 2 -> 4 -> 1 by `pipelinejob scale`. "Stood still" is the longest pause
between two steps from the request until the run has trained on for some steps with the new number, less the median
step before it; "until then" is from the request to the first step after that pause.

`python tests/bench/trainer/bench_resizing.py [FOLDER]` prints a row for each change of each way.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from bench_recovery import LIMIT_S, records, start
from pipelinejob.base import names

STAGES, REPLICAS = 2, (1, 2, 4, 1)
BEFORE, AFTER = 60, 30  # steps that are looked at before the request, and trained after the change
WAYS: dict[str, dict[str, object] | None] = {
    "from memory": {"inPlace": True},
    "from memory, warm spares": {"inPlace": True, "spares": 4},
    "through a checkpoint": None,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    replicas: int
    stood_still_s: float
    until_then_s: float
    step_s: float


def manifest(recovery: dict[str, object] | None) -> dict[str, object]:
    spec = {
        "device": "cpu",
        "model": {"gpt": {"numLayers": 4, "hiddenSize": 32, "numHeads": 2}},
        "data": {"corpus": "python-stdlib", "sequenceLength": 32},
        "parallelism": {"pipeline": STAGES, "data": REPLICAS[0]},
        "schedule": {"name": "1F1B", "globalBatchSize": 8, "microBatchSize": 2},
        "training": {"steps": 1_000_000},
        "checkpoint": {"intervalSteps": 1000},
    } | ({"recovery": recovery} if recovery else {})
    return {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "bench"}, "spec": spec}


def changes(recovery: dict[str, object] | None, folder: Path) -> Iterator[Change]:
    with start(manifest(recovery), folder) as run:
        reader = threading.Thread(target=run.communicate, daemon=True)  # so that nobody waits for what it says
        reader.start()
        try:
            await_steps(run, folder, BEFORE)
            for replicas in REPLICAS[1:]:
                yield changed(run, folder, replicas)
        finally:
            run.kill()


def changed(run: "subprocess.Popen[str]", folder: Path, replicas: int) -> Change:
    output = folder / "run"
    await_steps(run, folder, len(records(output / names.STEPS_FILE)) + BEFORE)
    asked_at = time.time()
    command = [sys.executable, "-m", "pipelinejob", "scale", str(output), "--replicas", str(replicas)]
    subprocess.run(command, check=True, capture_output=True)
    until(run, lambda: is_done(output, replicas))
    await_steps(run, folder, len(records(output / names.STEPS_FILE)) + AFTER)
    times = [moment for _, moment in records(output / names.STEPS_FILE)]
    step_s = statistics.median(b - a for a, b in pairwise([each for each in times if each <= asked_at][-BEFORE:]))
    first = max(index for index, moment in enumerate(times) if moment <= asked_at)
    pause_s, ended_at = max((b - a, b) for a, b in pairwise(times[first:]))
    return Change(replicas=replicas, stood_still_s=pause_s - step_s, until_then_s=ended_at - asked_at, step_s=step_s)


def is_done(output: Path, replicas: int) -> bool:
    status = json.loads((output / "job.json").read_text()).get("status") or {}
    is_under_way = (status.get("recovery") or {}).get("resizing") is not None
    return status.get("replicas") == replicas and status.get("state") == "Training" and not is_under_way


def await_steps(run: "subprocess.Popen[str]", folder: Path, count: int) -> None:
    until(run, lambda: len(records(folder / "run" / names.STEPS_FILE)) >= count)


def until(run: "subprocess.Popen[str]", claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not claim():
        assert run.poll() is None, "the run has ended too early"
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.1)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
    print("| replicas | how | stood still | until then | a step before |")
    print("|---|---|---|---|---|")
    for number, (way, recovery) in enumerate(WAYS.items()):
        before = REPLICAS[0]
        for each in changes(recovery, folder / str(number)):
            print(
                f"| {before} -> {each.replicas} | {way} | {each.stood_still_s:.2f} s | {each.until_then_s:.1f} s |"
                f" {1000 * each.step_s:.0f} ms |",
                flush=True,
            )
            before = each.replicas


if __name__ == "__main__":
    main()
