"""What a placement is to be best at: a value of `spec.topology.objective`."""

from enum import StrEnum


class Objective(StrEnum):
    """What is weighed against a short step: the room that is left for the next job."""

    AUTO = "auto"  # the largest next job among places within a threshold of the least step
    CHAIN = "chain"  # the least step, whatever room it leaves
    PACK = "pack"  # the tightest domains that hold the job, then the least step in them
