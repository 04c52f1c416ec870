"""Account of what changed, and of whom it concerns, so that an event costs what it changes."""

from collections import Counter
from collections.abc import Iterable

from pipelinejob_operator.cluster import Key, Named, Object


class ChangedNames:
    """The names of what changed, each once, until they are taken."""

    def __init__(self) -> None:
        self._names: dict[Named, None] = {}

    def note(self, *changed: Named) -> None:
        """Take down what changed."""
        self._names.update(dict.fromkeys(changed))

    def take(self) -> Iterable[Named]:
        """Name what changed since the last call."""
        taken, self._names = self._names, {}
        return taken


class BoundJobs:
    """Whose pods are bound to which node."""

    def __init__(self) -> None:
        self._jobs: dict[str, Counter[Key]] = {}

    def on(self, node: str) -> tuple[Key, ...]:
        """The jobs with pods on a node."""
        return tuple(self._jobs.get(node, ()))

    def count(self, pod: Object, key: Key, step: int) -> None:
        """Count a pod of a job in (1) or out (-1)."""
        node = pod["spec"].get("nodeName")
        if not node:
            return
        jobs = self._jobs.setdefault(node, Counter())
        jobs[key] += step
        if not jobs[key]:
            del jobs[key]
        if not jobs:
            del self._jobs[node]
