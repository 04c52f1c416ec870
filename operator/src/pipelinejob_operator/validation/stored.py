"""What is wrong with stored jobs, worked out once for each spec: thousands of jobs are made from a few templates."""

from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any

import orjson

from pipelinejob.base.errors import InvalidManifestError, SpecError
from pipelinejob_operator.validation.validate import name_errors, validate

_MOST = 4096  # specs


class StoredErrors:
    """The errors of jobs as the API server stores them, whose metadata it has looked at: only the name counts."""

    def __init__(self, find: Callable[[Mapping[str, Any]], tuple[SpecError, ...]] | None = None) -> None:
        self._find = find or find_errors
        self._known: dict[bytes, tuple[SpecError, ...]] = {}

    def __call__(self, raw: Mapping[str, Any]) -> tuple[SpecError, ...]:
        """Return the errors that `find_errors` finds."""
        if name_errors(raw):  # beside which not all others are told
            return self._find(raw)
        content = [raw.get("apiVersion"), raw.get("kind"), raw.get("spec")]
        digest = blake2b(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).digest()
        if (known := self._known.get(digest)) is not None:
            return known
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[digest] = found = self._find(raw)
        return found


def find_errors(raw: Mapping[str, Any]) -> tuple[SpecError, ...]:
    """Return what is wrong with a stored job; which TopologyProfiles there are is not looked at."""
    try:
        validate(raw, profiles=None)
    except InvalidManifestError as invalid:
        return invalid.errors
    return ()
