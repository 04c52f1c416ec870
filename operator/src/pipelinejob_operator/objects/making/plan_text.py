"""A plan as its config map, of at most 1 MiB, holds it: what no trainer reads is left out where it must be."""

from pipelinejob.base.errors import SpecError
from pipelinejob.contract.plan import Plan

MAX_BYTES = 1024 * 1024 - 1024  # less the entry's name, with some to spare


def plan_text(plan: Plan) -> str:
    """Write a plan.

    Raises SpecError for one that no config map holds.
    """
    unplaced = plan.model_copy(update={"placement": None})  # the job's status has it, too
    candidates = (plan, unplaced, unplaced.model_copy(update={"links": ()}))
    texts = (each.to_json() for each in candidates)
    text = next((each for each in texts if len(each.encode()) <= MAX_BYTES), None)
    if text is None:
        raise SpecError(
            "spec.schedule",
            f"the plan takes {len(candidates[-1].to_json().encode())} bytes, and the config map that carries it has "
            f"{MAX_BYTES}; use fewer stages or micro-batches, or a schedule that follows from its name",
        )
    return text
