"""Options that say nothing beside others: what is given is done, or refused by name."""

from pipelinejob.base.errors import PipelineJobError


class TogetherError(PipelineJobError):
    """Options that do not go together."""


def refuse(*, given: object, option: str, why: str) -> None:
    """Refuse an option, if it was given, for a reason that says what to do instead.

    Raises TogetherError.
    """
    if given is not None and given is not False:
        raise TogetherError(f"{option}: {why}")
