"""What a search of configurations gains by searched schedules, over random models and devices, and how long it takes.

    python tests/bench/core/bench_search.py [--cases 100] [-o FILE.json]

Models of 4 to 24 blocks with heads from slight to heavy, a stage on each of 4 or 8 devices, alike
or of two kinds, one or half of them in a node. Times of steps are the simulator's. Seconds of
searching are the processor's.
"""

import argparse
import json
import os
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median

from pipelinejob.fabric import hardware
from pipelinejob.fabric.pool import Pool, PoolGroup
from pipelinejob.search.best import search
from pipelinejob.search.found import Candidate
from pipelinejob.spec.job import PipelineJobSpec

HARDWARE = hardware.default()


@dataclass(frozen=True, kw_only=True)
class Case:
    """One job, searched for."""

    best: Candidate
    named: Candidate
    is_unlike: bool
    num_searched: int
    search_s: float

    @property
    def gain(self) -> float:
        """Return by which share the chosen step is shorter than that of the best named schedule."""
        return 1 - self.best.step_s / self.named.step_s


def measure(seed: int) -> Case:
    draw = random.Random(seed)
    count, is_unlike = draw.choice([4, 8]), draw.random() < 0.5
    spec, pool = _spec(draw, count), _pool(draw, count, is_unlike=is_unlike)
    began = time.process_time()
    found = search(spec, pool, hardware=HARDWARE)
    search_s = time.process_time() - began
    assert found.best_named is not None, "every case has room for named schedules"
    return Case(
        best=found.best,
        named=found.best_named,
        is_unlike=is_unlike,
        num_searched=found.num_searched,
        search_s=search_s,
    )


def _spec(draw: random.Random, count: int) -> PipelineJobSpec:
    model = {
        "numLayers": draw.randint(count, 24),
        "hiddenSize": draw.choice([512, 1024, 2048]),
        "numHeads": 8,
        "vocabularySize": draw.choice([256, 8192, 50304, 131072]),
    }
    return PipelineJobSpec.model_validate({
        "model": {"gpt": model},
        "data": {"corpus": "python-stdlib", "sequenceLength": draw.choice([512, 2048])},
        "parallelism": {"gpus": count, "pipeline": count, "data": 1, "tensor": 1},
        "schedule": {"name": "auto", "globalBatchSize": draw.choice([8, 16, 32, 64])},
        "training": {"steps": 1, "precision": "bf16"},
    })  # fmt: skip


def _pool(draw: random.Random, count: int, *, is_unlike: bool) -> Pool:
    fast, slow = HARDWARE.devices["H100-SXM"], HARDWARE.devices["A100-SXM-80GB"]
    each = draw.choice([1, count // 2])
    if not is_unlike:
        return Pool.alike(fast, count, gpus_per_node=each)
    kinds = (fast, replace(slow, name="other"))
    return Pool(
        groups=tuple(PoolGroup(device=kind, gpus_per_node=each, num_nodes=count // 2 // each) for kind in kinds)
    )


def summary(cases: list[Case]) -> dict[str, object]:
    result: dict[str, object] = {"cases": len(cases)}
    for name, of in (
        ("alike", [case for case in cases if not case.is_unlike]),
        ("unlike", [case for case in cases if case.is_unlike]),
    ):
        if not of:
            continue
        gains = [case.gain for case in of]
        result[f"devices {name}"] = {
            "cases": len(of),
            "auto chosen": sum(case.best.is_searched for case in of),
            "shorter than the best named one, mean of all": mean(gains),
            "median": median(gains),
            "most": max(gains),
            "least": min(gains),
            "seconds, mean": mean(case.search_s for case in of),
            "seconds, most": max(case.search_s for case in of),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    result = {**summary([measure(seed) for seed in range(arguments.cases)]), "load": os.getloadavg()}
    for name, value in result.items():
        print(f"{name:20} {value}")
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
