"""Reads a live cluster once, changing nothing: its nodes and who takes what of them, or the jobs that wait."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelinejob.base import names
from pipelinejob_operator.cluster import Object
from pipelinejob_operator.kube.api import Api, NotFoundError, load_configuration

_PAGE = "500"
_RESOURCE = f"/apis/{names.GROUP}/{names.VERSION}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What a cluster held when it was asked. Kinds of ours that it does not know have no objects."""

    server: str
    nodes: tuple[Object, ...]
    pods: tuple[Object, ...]
    jobs: tuple[Object, ...]
    topology_profiles: tuple[Object, ...]


async def read_cluster(kubeconfig: Path | None, context: str | None) -> Snapshot:
    """Ask for nodes, for the pods that still take room, and for jobs that were promised some.

    Raises ClusterError for a cluster that cannot be reached, or does not let this user list them.
    """
    configuration = await load_configuration(kubeconfig, context)
    async with Api(configuration) as api:
        return Snapshot(
            server=configuration.host,
            nodes=await _list(api, "/api/v1/nodes", {}),
            pods=await _list(api, "/api/v1/pods", {"fieldSelector": "status.phase!=Succeeded,status.phase!=Failed"}),
            jobs=await _list_if_known(api, f"{_RESOURCE}/{names.PLURAL}"),
            topology_profiles=await _list_if_known(api, f"{_RESOURCE}/{names.PROFILE_PLURAL}"),
        )


async def read_line(kubeconfig: Path | None, context: str | None) -> tuple[Sequence[Object], Sequence[Object]]:
    """Ask for jobs, and for the PriorityClasses that say who comes first.

    Raises ClusterError for a cluster that cannot be reached, or does not let this user list them.
    """
    async with Api(await load_configuration(kubeconfig, context)) as api:
        jobs = await _list_if_known(api, f"{_RESOURCE}/{names.PLURAL}")
        return jobs, await _list(api, "/apis/scheduling.k8s.io/v1/priorityclasses", {})


async def _list_if_known(api: Api, path: str) -> tuple[Object, ...]:
    try:
        return await _list(api, path, {})
    except NotFoundError:
        return ()


async def _list(api: Api, path: str, query: Mapping[str, str]) -> tuple[Object, ...]:
    items: list[dict[str, Any]] = []
    more = {"limit": _PAGE}
    while True:
        page = await api.request("GET", path, query={**query, **more})
        items += page.get("items") or ()
        token = (page.get("metadata") or {}).get("continue")
        if not token:
            return tuple(items)
        more = {"limit": _PAGE, "continue": token}
