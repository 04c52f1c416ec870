"""`auto` against every named schedule over random costs and memory caps, and what finding it takes.

    python tests/bench/core/bench_auto.py [--cases 1000] [-o FILE.json]

Costs, links and caps are `random_profiles.random_profile`'s; times are the simulator's. Seconds of
searching are the processor's, and do not depend on what else runs.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipelinejob.scheduler.auto import Found, search
from pipelinejob.scheduler.catalogue import named
from pipelinejob.schedules.costs import Link, shares
from pipelinejob.schedules.setting import Setting
from pipelinejob.schedules.validate import validate
from support.plans.random_profiles import Profile, best_named_s, random_profile

WON = 1 - 1e-6  # shorter by more than rounding


@dataclass(frozen=True, kw_only=True)
class Case:
    """One profile, searched."""

    profile: Profile
    found: Found
    named_s: float
    search_s: float


def measure(seed: int) -> Case:
    profile = random_profile(seed)
    found, search_s = timed(profile.setting)
    validate(found.schedule, activation_caps=profile.setting.activation_caps)
    return Case(profile=profile, found=found, named_s=best_named_s(profile.setting), search_s=search_s)


def timed(setting: Setting) -> tuple[Found, float]:
    began = time.process_time()
    found = search(setting, named)
    return found, time.process_time() - began


def sized(p: int, m: int) -> Setting:
    """Return a setting in whose costs no two ranks are alike, with 1F1B's memory."""
    costs = shares(
        forward_s=[1 + 0.1 * rank for rank in range(p)],
        input_s=[1.1 + 0.05 * (rank % 3) for rank in range(p)],
        weight_s=[0.7 + 0.1 * (rank % 2) for rank in range(p)],
        link=Link(latency_s=0.1),
    )
    return Setting(num_ranks=p, num_micro_batches=m, costs=costs, activation_caps=(float(p),) * p)


def summary(cases: list[Case]) -> dict[str, object]:
    unequal = [case for case in cases if case.profile.is_unequal]
    fitting = [case for case in cases if case.named_s < float("inf")]
    return {
        "cases": len(cases),
        "cases in which a named schedule fits": len(fitting),
        "lost to a named schedule": sum(case.found.makespan_s > case.named_s for case in cases),
        "unequal cases": len(unequal),
        "unequal cases won": sum(case.found.makespan_s < case.named_s * WON for case in unequal),
        "shorter than the best named one by, mean": mean(1 - case.found.makespan_s / case.named_s for case in fitting),
        "above the lower bound by, mean": mean(case.found.distance for case in cases),
        "above the lower bound by, median": median(case.found.distance for case in cases),
        "at the lower bound": sum(case.found.distance < 1e-9 for case in cases),
        "seconds of searching, mean": mean(case.search_s for case in cases),
        "seconds of searching, most": max(case.search_s for case in cases),
        "stages on a rank": dict(
            Counter(
                f"{len(case.found.schedule.routes)} routes x {case.found.schedule.routes[0].count(0)}" for case in cases
            )
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    result = summary([measure(seed) for seed in range(arguments.cases)])
    for p, m in ((4, 8), (8, 32), (16, 64)):
        found, search_s = timed(sized(p, m))
        result[f"p={p}, m={m}"] = {"seconds of searching": search_s, "above the lower bound by": found.distance}
    result["load"] = os.getloadavg()
    for name, value in result.items():
        print(f"{name:45} {value}")
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
