"""The figures of a simulated schedule, as `show` and `compare` write them in JSON and YAML."""

from typing import Any

from pipelinejob.scheduler.comparison import Outcome
from pipelinejob_operator.report.schedule_view import by_rank


def figures(outcome: Outcome) -> dict[str, Any]:
    """Return makespan, bubble, memory and idle time, in the unit of the costs that were given."""
    simulation = outcome.simulation
    return {
        "makespan": simulation.makespan_s,
        "bubble_rate": simulation.bubble_rate,
        "span_bubble_rate": simulation.span_bubble_rate,
        "peak_activations": list(outcome.peak_activations),
        "weight_versions": list(outcome.weight_versions),
        "weight_copies": outcome.weight_copies,
        "idle": by_rank(simulation),
    }
