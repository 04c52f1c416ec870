"""What a checkpoint costs training, written while it waits and beside it: `pipelinejob run` on this machine.

    python tests/bench/recovery/bench_checkpoints.py [FOLDER]

Two stages of a GPT of 15 million parameters save every 30 steps, in turns synchronously and
asynchronously. "Stood still" is the longest pause between two steps from a checkpoint on, less the
median step; "longer in all" is what the 25 steps from there on took more than as many median ones:
what writing beside them takes of processors and disk counts in it. The last checkpoint, which is
always waited for, is left out.
"""

import statistics
import sys
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "trainer"))

from bench_recovery import LIMIT_S, records, start
from pipelinejob.base import names

STEPS, INTERVAL, WINDOW, ROUNDS = 160, 30, 25, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of each checkpoint, in seconds."""

    stalls_s: tuple[float, ...]
    in_all_s: tuple[float, ...]


def manifest(*, asynchronous: bool) -> dict[str, object]:
    spec = {
        "device": "cpu",
        "model": {"gpt": {"numLayers": 6, "hiddenSize": 448, "numHeads": 4}},
        "data": {"corpus": "python-stdlib", "sequenceLength": 32},
        "parallelism": {"pipeline": 2},
        "schedule": {"name": "1F1B", "microBatches": 4, "microBatchSize": 2},
        "training": {"steps": STEPS},
        "checkpoint": {"intervalSteps": INTERVAL, "asynchronous": asynchronous},
    }
    return {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "bench"}, "spec": spec}


def measure(folder: Path, *, asynchronous: bool) -> Cost:
    with start(manifest(asynchronous=asynchronous), folder) as run:
        said, _ = run.communicate(timeout=LIMIT_S)
    assert run.returncode == 0, said
    moments = dict(records(folder / "run" / names.STEPS_FILE))
    pauses = {step: moments[step] - moments[before] for before, step in pairwise(sorted(moments))}
    step_s = statistics.median(pauses.values())
    saved = range(INTERVAL, STEPS - WINDOW, INTERVAL)
    windows = [[pauses[at + more] for more in range(1, WINDOW + 1)] for at in saved]
    return Cost(
        stalls_s=tuple(max(window) - step_s for window in windows),
        in_all_s=tuple(sum(window) - WINDOW * step_s for window in windows),
    )


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
    found: dict[bool, list[Cost]] = {False: [], True: []}
    for number in range(ROUNDS):
        for asynchronous, costs in found.items():
            costs.append(measure(folder / f"{number}-{asynchronous}", asynchronous=asynchronous))
    print("| checkpoint | stood still, median | longer in all, median |")
    print("|---|---|---|")
    stalls = {}
    for asynchronous, costs in found.items():
        stalls[asynchronous] = statistics.median(each for cost in costs for each in cost.stalls_s)
        in_all_s = statistics.median(each for cost in costs for each in cost.in_all_s)
        what = "beside training" if asynchronous else "while training waits"
        print(f"| {what} | {1000 * stalls[asynchronous]:.0f} ms | {1000 * in_all_s:.0f} ms |")
    print(f"\nBeside training it stands still for {stalls[True] / stalls[False]:.1%} of what it does where it waits")


if __name__ == "__main__":
    main()
