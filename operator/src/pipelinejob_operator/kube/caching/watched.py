"""All objects of one kind: in the whole cluster, or in some namespaces, each with an informer of its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from pipelinejob_operator.cluster import Object
from pipelinejob_operator.kube.api import Api
from pipelinejob_operator.kube.caching.informer import Change, Informer, Timings

EVERYWHERE = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """How kinds are watched: where, how patiently, and who hears of it."""

    api: Api
    namespaces: Sequence[str]  # of kinds that stand in namespaces; none: all
    timings: Timings
    on_listed: Callable[[], None]
    on_restart: Callable[[str], None]  # with the plural

    def of(
        self,
        kind: str,
        folder: tuple[str, str],
        on_change: Callable[[Change], None],
        project: Callable[[dict[str, Any]], dict[str, Any]],
        *,
        label: str | None = None,
        is_optional: bool = False,
        is_cluster_scoped: bool = False,
    ) -> "Watched":
        """Prepare to watch a kind, which `folder` says where to find: the API's path, and the plural."""
        prefix, plural = folder

        def informer(path: str) -> Informer:
            return Informer(
                self.api,
                path,
                kind=kind,
                api_version=prefix.removeprefix("/apis/").removeprefix("/api/"),
                on_change=on_change,
                on_listed=self.on_listed,
                on_restart=lambda: self.on_restart(plural),
                project=project,
                timings=self.timings,
                label=label,
                is_optional=is_optional,
            )

        if is_cluster_scoped or not self.namespaces:
            return Watched({EVERYWHERE: informer(f"{prefix}/{plural}")})
        return Watched({each: informer(f"{prefix}/namespaces/{each}/{plural}") for each in self.namespaces})


class Watched:
    """The objects of one kind, as last seen."""

    def __init__(self, informers: Mapping[str, Informer]) -> None:
        self._informers = informers

    @property
    def informers(self) -> tuple[Informer, ...]:
        """Return the caches, to be run, and for health."""
        return tuple(self._informers.values())

    @property
    def is_served(self) -> bool:
        """Tell whether the API server knows the kind, and lets us read it."""
        return all(each.is_served for each in self._informers.values())

    def get(self, namespace: str, name: str) -> Object | None:
        """Return one object."""
        informer = self._of(namespace)
        return informer.get(namespace, name) if informer else None

    def objects(self) -> Sequence[Object]:
        """Return all objects."""
        return tuple(chain.from_iterable(each.objects() for each in self._informers.values()))

    def offer(self, item: dict[str, Any]) -> None:
        """Take up what the API server answered to a write of ours."""
        informer = self._of(item["metadata"].get("namespace", ""))
        if informer:
            informer.offer(item)

    def _of(self, namespace: str) -> Informer | None:
        return self._informers.get(namespace) or self._informers.get(EVERYWHERE)
