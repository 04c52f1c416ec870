"""The shortest makespan there is, by a constraint solver: what small cases of `auto` are held against.

Micro-batches are taken in order, as everywhere (they are alike); every other choice is the
solver's.
"""

from ortools.sat.python import cp_model

from pipelinejob.schedules.job_shop.job_shop import JobShop
from pipelinejob.schedules.timetable import NEVER


def least_makespan(shop: JobShop, *, limit_s: float = 60.0) -> int:
    """Return the makespan of the best orders of a shop whose times are whole numbers; the proof is part of it."""
    model = cp_model.CpModel()
    horizon = int(sum(shop.seconds) + sum(line.size * (line.message_s + line.latency_s) for line in shop.lines))
    starts = [model.new_int_var(0, horizon, f"start {job}") for job in range(shop.num_jobs)]
    ends = [start + int(seconds) for start, seconds in zip(starts, shop.seconds, strict=True)]
    for rank in range(shop.num_ranks):
        model.add_no_overlap(
            model.new_fixed_size_interval_var(starts[job], int(shop.seconds[job]), f"job {job}")
            for job in range(shop.num_jobs)
            if shop.rank_of[job] == rank
        )
    _add_precedences(model, shop, starts, ends, horizon)
    _add_room(model, shop, starts, ends, horizon)
    makespan = model.new_int_var(0, horizon, "makespan")
    model.add_max_equality(makespan, ends)
    model.minimize(makespan)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = limit_s
    solver.parameters.num_workers = 2
    status = solver.solve(model)
    assert status == cp_model.OPTIMAL, solver.status_name(status)
    return round(solver.objective_value)


def _add_precedences(model, shop: JobShop, starts, ends, horizon: int) -> None:
    messages: dict[int, list] = {}
    for line in shop.lines:
        for position in range(line.size):
            job = line.first + position
            if position:
                model.add(starts[job] >= ends[job - 1])
            if line.after is not None:
                model.add(starts[job] >= ends[shop.lines[line.after].first + position])
            if line.feeds is None:
                continue
            leaves = model.new_int_var(0, horizon, f"message {job}")
            model.add(leaves >= ends[job])
            model.add(starts[shop.target[job]] >= leaves + int(line.message_s + line.latency_s))
            if line.link is not None:
                messages.setdefault(line.link, []).append(
                    model.new_fixed_size_interval_var(leaves, int(line.message_s), f"on link {job}")
                )
    for intervals in messages.values():
        model.add_no_overlap(intervals)


def _add_room(model, shop: JobShop, starts, ends, horizon: int) -> None:
    """Hold each rank to its room: an activation is there from its forward's start to its weight gradient's end."""
    held: dict[int, list] = {rank: [] for rank, room in enumerate(shop.capacity) if room < NEVER}
    for taker in shop.lines:
        if taker.holds <= 0 or taker.place.rank not in held:
            continue
        giver = next(
            line for line in shop.lines if line.holds < 0 and (line.route, line.place) == (taker.route, taker.place)
        )
        for position in range(taker.size):
            start, end = starts[taker.first + position], ends[giver.first + position]
            length = model.new_int_var(0, horizon, f"held {taker.first + position}")
            held[taker.place.rank].append(model.new_interval_var(start, length, end, f"held {taker.first + position}"))
    for rank, intervals in held.items():
        model.add_cumulative(intervals, [1] * len(intervals), int(shop.capacity[rank]))
