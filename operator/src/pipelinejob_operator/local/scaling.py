"""Another number of replicas for a job on this machine: what `kubectl scale` writes in a cluster."""

from collections.abc import Mapping
from typing import Any


def scaled(job: Mapping[str, Any], replicas: int) -> dict[str, Any]:
    """Return the job as it is to be with so many replicas."""
    spec = job["spec"]
    return {**job, "spec": {**spec, "parallelism": {**(spec.get("parallelism") or {}), "data": replicas}}}
