"""What follows from a spec alone, reckoned once for all jobs that have it: most of ten thousand jobs are written alike.

Specs that are written alike are one object (`objects/job.py`), so it is the object that is looked
up.
"""

import weakref
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from pipelinejob.spec.job import PipelineJobSpec

T = TypeVar("T")


class PerSpec(Generic[T]):
    """One result a spec, kept for as long as anybody has the spec."""

    def __init__(self, reckon: Callable[[PipelineJobSpec], T]) -> None:
        self._reckon = reckon
        self._known: dict[int, tuple[weakref.ref[PipelineJobSpec], T]] = {}

    def __call__(self, spec: PipelineJobSpec) -> T:
        """Return the result for this spec."""
        number = id(spec)
        known = self._known.get(number)
        if known is None or known[0]() is not spec:
            forget = weakref.ref(spec, lambda _: self._known.pop(number, None))
            known = self._known[number] = (forget, self._reckon(spec))
        return known[1]


spec_text: Final = PerSpec(lambda spec: spec.model_dump_json())
topology_text: Final = PerSpec(lambda spec: spec.topology.model_dump_json())
