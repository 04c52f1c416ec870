"""What was trained: all that is needed to read a job's checkpoint when the job is over."""

from typing import Self

from pipelinejob.base.values import Value
from pipelinejob.contract.plan import Plan
from pipelinejob.spec.job import Data, Model, PipelineJobSpec, Training


class Trained(Value):
    """A job's model, how its text was cut, and how it was trained."""

    model: Model
    data: Data
    training: Training

    @classmethod
    def of(cls, source: Plan | PipelineJobSpec) -> Self:
        """Take it from a plan, or from a manifest's spec."""
        return cls(model=source.model, data=source.data, training=source.training)

    def to_json(self) -> str:
        """Serialise; `model_validate_json` reads it back."""
        return self.model_dump_json(by_alias=True, exclude_none=True)
