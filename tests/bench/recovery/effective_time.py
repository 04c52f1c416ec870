"""How much of its time a large run trains, by what follows a failure: simulated, failure by failure.

    python tests/bench/recovery/effective_time.py [--gpus 16384] [--step 6] [--restart 600] [--cold 60] [--meet 10]

Failures come at random, at a rate for the whole run; none waits until the last one is over.
Whatever is not a step that counts is lost: noticing, coming together, steps that are done again,
copies and checkpoints. A further failure while the run recovers begins that anew; where it hits
the one that keeps the lost one's state, all go back to the checkpoint. The seconds are
assumptions, but for the rates: pass your own. Llama 3 405B: 419 interruptions in 54 days on 16,384
GPUs (arXiv 2407.21783).
"""

import argparse
import random
from dataclasses import dataclass

GPUS_A_STAGE = 8  # of a pod
DAYS, RUNS = 54, 40
RATES = {"one an hour": 3600.0, "Llama 3's, one in 3.1 h": 54 * 86_400 / 419}  # mean seconds between failures


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """What follows a failure, and what it costs to be ready for it."""

    name: str
    notice_s: float
    return_s: float  # from there until the next step begins
    interval_s: float  # of training between two states that are gone back to
    cost: float  # share of training time that copies or checkpoints take
    falls_back: "Way | None" = None  # where the state's keeper is lost as well


def trained_share(way: Way, *, mean_s: float, num_stages: int, dice: random.Random) -> float:
    """Simulate one run; return the share of its time in which steps were made that count."""
    end_s, now_s, trained_s, since_state_s = DAYS * 86_400.0, 0.0, 0.0, 0.0
    while now_s < end_s:
        until_s = min(dice.expovariate(1 / mean_s), end_s - now_s)
        now_s += until_s
        trained_s += until_s
        since_state_s = (since_state_s + until_s) % way.interval_s
        if now_s >= end_s:
            break
        spent_s, used = _recover(way, mean_s=mean_s, num_stages=num_stages, dice=dice)
        lost_s = since_state_s if used is way else dice.uniform(0, used.interval_s)
        now_s += spent_s
        trained_s -= min(trained_s, lost_s)
        since_state_s = 0.0
    return trained_s / now_s * (1 - way.cost)


def _recover(way: Way, *, mean_s: float, num_stages: int, dice: random.Random) -> tuple[float, Way]:
    """Return how long it takes until steps are made again, and by which way they are."""
    spent_s = 0.0
    while True:
        needed_s = way.notice_s + way.return_s
        next_s = dice.expovariate(1 / mean_s)
        if next_s >= needed_s:
            return spent_s + needed_s, way
        spent_s += next_s
        if way.falls_back is not None and dice.random() < 1 / (num_stages - 1):
            way = way.falls_back


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=16_384)
    parser.add_argument("--step", type=float, default=6.0, help="seconds of a step")
    parser.add_argument("--restart", type=float, default=600.0, help="seconds until a gang that restarts trains again")
    parser.add_argument("--cold", type=float, default=60.0, help="seconds until a cold replacement is there")
    parser.add_argument("--meet", type=float, default=10.0, help="seconds in which a gang meets anew")
    parser.add_argument("--checkpoint-steps", type=int, default=100)
    given = parser.parse_args()
    whole = Way(
        name="whole gang, from a checkpoint",
        notice_s=60.0,  # what is noticed by pods' ends; a collective's timeout would be 600
        return_s=given.restart,
        interval_s=given.checkpoint_steps * given.step,
        cost=0.005,
    )
    ways = [
        whole,
        in_place("in place, cold replacement", whole, given.cold + given.meet, given.step),
        in_place("in place, warm spare", whole, given.meet, given.step),
    ]
    print(f"| what follows a failure | {' | '.join(RATES)} |\n|---{'|---' * len(RATES)}|")
    for way in ways:
        shares = [mean_share(way, mean_s, given.gpus // GPUS_A_STAGE) for mean_s in RATES.values()]
        print(f"| {way.name} | {' | '.join(f'{share:.1%}' for share in shares)} |")


def in_place(name: str, whole: Way, return_s: float, step_s: float) -> Way:
    """Return recovery in place: seen in 3 s at most, one step lost at most, copies for 2 % of the time."""
    return Way(name=name, notice_s=3.0, return_s=return_s, interval_s=step_s, cost=whole.cost + 0.02, falls_back=whole)


def mean_share(way: Way, mean_s: float, num_stages: int) -> float:
    """Return the mean over some runs."""
    runs = (trained_share(way, mean_s=mean_s, num_stages=num_stages, dice=random.Random(seed)) for seed in range(RUNS))
    return sum(runs) / RUNS


if __name__ == "__main__":
    main()
