"""Errors, named for who can do something about them."""

from collections.abc import Sequence


class PipelineJobError(Exception):
    """Anything this project raises on purpose."""


class SpecError(PipelineJobError):
    """One thing wrong with a manifest; its author can mend it.

    `path` is the field as kubectl would write it (`spec.parallelism.pipeline`); `problem` gives
    the value, the rule and the way out.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


class TooLargeError(SpecError):
    """The model does not go into the devices' memory as it is split; another split may."""


class InvalidManifestError(PipelineJobError):
    """All that is wrong with a manifest, at once."""

    def __init__(self, errors: Sequence[SpecError]) -> None:
        super().__init__("\n".join(str(error) for error in errors))
        self.errors = tuple(errors)


class NoPlacementError(PipelineJobError):
    """The job does not fit *now*; the one sentence says what is missing, where, and what would fit."""
