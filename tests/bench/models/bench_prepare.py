"""Measures how many tokens a second `pipelinejob data prepare` makes, with one process and with two.

    python tests/bench/models/bench_prepare.py [--megabytes 24] [--rounds 2] [--output bench-prepare.json]

Python's own documentation, again and again, as jsonl files of one column, and a byte-pair
tokenizer of 8,000 tokens that was trained on it; the two numbers of processes take turns. From a
run's seconds those are taken off that a run on one word takes: the start of Python and its
imports. Both must write as many tokens.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1] / "trainer"))

from harness import load, parser, write
from support.tokens.preparing import texts, tokenizer_folder

FILES = 8


def corpus(folder: Path, megabytes: int) -> int:
    """Write files of documents, and return their bytes."""
    lines = [json.dumps({"text": each}) + "\n" for each in texts(1000)]
    copies = max(1, megabytes * 10**6 // FILES // sum(map(len, lines)))
    folder.mkdir()
    for number in range(FILES):
        (folder / f"part-{number}.jsonl").write_text("".join(lines * copies), encoding="utf-8")
    return sum(file.stat().st_size for file in folder.iterdir())


def seconds(sources: Path, tokenizer: Path, to: Path, workers: int) -> float:
    """Prepare, and return how long that took."""
    options = [f"--from={sources}", f"--tokenizer={tokenizer}", f"--to={to}", f"--workers={workers}"]
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "pipelinejob_trainer", "data", "prepare", *options],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - began


def tokens_of(folder: Path) -> int:
    """Return how many tokens were prepared."""
    from pipelinejob_trainer.data.tokens.folder import TokenFolder

    return TokenFolder(folder, field="--to").index.tokens


def main() -> int:
    options = parser(__doc__, rounds=2, output="bench-prepare.json")
    options.add_argument("--megabytes", type=int, default=24)
    given = options.parse_args()
    taken: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        num_bytes = corpus(root / "text", given.megabytes)
        (root / "word").mkdir()
        (root / "word" / "part.jsonl").write_text(json.dumps({"text": "word"}) + "\n")
        tokenizer = tokenizer_folder(root / "tokenizer", size=8000)
        found = set()
        for number in range(given.rounds):
            for workers in sorted(taken, reverse=bool(number % 2)):
                idle_s = seconds(root / "word", tokenizer, root / f"idle-{number}-{workers}", workers)
                to = root / f"tokens-{number}-{workers}"
                taken[workers].append(seconds(root / "text", tokenizer, to, workers) - idle_s)
                found.add(tokens_of(to))
    (tokens,) = found
    rates = {workers: tokens / median(each) for workers, each in taken.items()}
    print(f"{num_bytes / 1e6:.0f} MB, {tokens:,} tokens, {given.rounds} rounds, load {load():.1f}")
    for workers, rate in rates.items():
        print(f"--workers {workers}: {rate:,.0f} tokens/s, {num_bytes / tokens * rate / 1e6:.1f} MB/s")
    write(given.output, {"bytes": num_bytes, "tokens": tokens, "rates": rates, "seconds": taken})
    return 0


if __name__ == "__main__":
    sys.exit(main())
