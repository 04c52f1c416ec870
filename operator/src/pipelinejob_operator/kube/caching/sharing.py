"""Equal parts of many objects are kept once: the pods of a gang differ in a few words, and jobs are much alike."""

import sys
from typing import Any

import orjson

from pipelinejob_operator.cluster import Object

_GENERATION = 4096  # parts; two generations are remembered, and what is met again is taken along into the next
_MAX_PART = 1024  # bytes of JSON; what is larger is seldom met twice, and its own parts are looked at


class Shared:
    """Remembers parts of objects seen of late. What it returns belongs to many objects: nobody may change it."""

    def __init__(self) -> None:
        self._young: dict[bytes, Any] = {}
        self._old: dict[bytes, Any] = {}

    def keep(self, item: dict[str, Any]) -> Object:
        """Return an object equal to this one, of parts that others have, too."""
        metadata = item["metadata"]
        if "ownerReferences" in metadata:
            metadata["ownerReferences"] = self._part(metadata["ownerReferences"])
        if "labels" in metadata:
            metadata["labels"] = self._inside(metadata["labels"])
        for field in ("spec", "status"):
            if field in item:
                item[field] = self._inside(item[field])
        return item

    def _part(self, value: Any) -> Any:
        text = orjson.dumps(value)
        if len(text) > _MAX_PART:
            return self._inside(value)
        known = self._young.get(text)
        if known is None:
            known = self._old.get(text)
            self._remember(text, known := self._inside(value) if known is None else known)
        return known

    def _inside(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: self._kept(each) for name, each in value.items()}
        return [self._kept(each) for each in value] if isinstance(value, list) else value

    def _kept(self, value: Any) -> Any:
        if isinstance(value, str):
            return sys.intern(value)
        return self._part(value) if isinstance(value, (dict, list)) else value

    def _remember(self, text: bytes, value: Any) -> None:
        if len(self._young) >= _GENERATION:
            self._old, self._young = self._young, {}
        self._young[text] = value
