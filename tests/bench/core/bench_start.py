"""Measures the processor time of commands that do little: help, version, validate.

    python tests/bench/core/bench_start.py [--rounds 5] [--against OTHER/operator/src]

User and system time of a process, Python's own start included, compiled modules warm; the median
over rounds. With `--against`, each round also runs the commands of another checkout. Ends with 1
if a median here is over its bound.
"""

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[3]
COMMANDS = {
    ("--help",): 0.4,  # bounds in seconds
    ("version",): 0.4,
    ("validate", str(ROOT / "examples" / "stdlib-gpt.yaml")): 0.8,
}


def processor_s(arguments: tuple[str, ...], source: Path) -> float:
    """Run a command of a checkout, and return the user and system seconds that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(source)}
    subprocess.run(
        [sys.executable, "-m", "pipelinejob", *arguments], env=environment, stdout=subprocess.DEVNULL, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", type=Path, help="the operator/src of another checkout")
    asked = parser.parse_args()
    sources = [ROOT / "operator" / "src", *([asked.against.resolve()] if asked.against else [])]
    is_over = False
    for arguments, bound_s in COMMANDS.items():
        for source in sources:
            processor_s(arguments, source)  # compiles what is not
        rounds = [[processor_s(arguments, source) for source in sources] for _ in range(asked.rounds)]
        here, *other = (median(taken) for taken in zip(*rounds, strict=True))
        against = "".join(f", {each:.2f} s there" for each in other)
        print(f"{arguments[0]}: {here:.2f} s of processor time, bound {bound_s} s{against}")
        is_over = is_over or here > bound_s
    return int(is_over)


if __name__ == "__main__":
    sys.exit(main())
