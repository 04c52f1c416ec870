"""Writes that mean one object, by its uid: nothing of another owner's is overwritten, adopted or deleted.

A new object is created, never applied over what may stand there; one that stands is changed and
deleted by its uid.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from pipelinejob.base import names
from pipelinejob_operator.cluster import (
    ConflictError,
    InvalidError,
    NameTakenError,
    Object,
    Reference,
    UnavailableError,
)
from pipelinejob_operator.kube.api import MERGE, Api, NotFoundError
from pipelinejob_operator.objects.ownership import controller, describe, obstacle

# A write must land before another operator can take the Lease (leader.py: it is held 5 s longer
# than it is trusted). All tries of it do: what the API server does not take in this time is left
# to the next pass.
WRITE_TIMEOUT_S = 5.0
MANAGER: Final = {"fieldManager": names.FIELD_MANAGER}


class Writes:
    """The way of all writes: past the fence, to the API server, and what it answers into the caches."""

    def __init__(
        self,
        api: Api,
        *,
        path: Callable[[str, str, str], str],  # of kind, namespace and name
        check_fence: Callable[[], None],
        take_up: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._api = api
        self._path = path
        self._check_fence = check_fence
        self._take_up = take_up

    async def send(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        """Send a write, if this process may when its turn has come, and again at each further try."""
        return await self._api.request(
            method, path, timeout_s=WRITE_TIMEOUT_S, before_sending=self._check_fence, **request
        )

    async def look_up(self, kind: str, namespace: str, name: str) -> Object | None:
        """Read an object, whoever owns it, or None."""
        try:
            return await self._api.request("GET", self._path(kind, namespace, name), timeout_s=WRITE_TIMEOUT_S)
        except NotFoundError:
            return None

    async def apply(self, item: Object) -> None:
        """Create an object without a uid, change one with a uid; `Cluster.apply` says what that raises."""
        if item["metadata"].get("uid"):
            await self.patch(item["kind"], item["metadata"], item, content_type=MERGE)
        else:
            await self._create(item)

    async def patch(self, kind: str, metadata: Mapping[str, Any], body: Object, *, content_type: str) -> None:
        """Change the one object that has the uid of `metadata`, which `body` repeats."""
        path = self._path(kind, metadata["namespace"], metadata["name"])
        try:
            answer = await self.send("PATCH", path, query=MANAGER, body=body, content_type=content_type)
        except NotFoundError as error:
            raise ConflictError(f"{kind} {metadata['namespace']}/{metadata['name']} is gone") from error
        except InvalidError as error:
            # So the API server refuses another's uid, too.
            found = await self.look_up(kind, metadata["namespace"], metadata["name"])
            if found is None or found["metadata"]["uid"] != metadata["uid"]:
                raise ConflictError(f"{kind} {metadata['namespace']}/{metadata['name']} has another uid") from error
            raise
        self._take_up(kind, answer)

    async def delete(self, reference: Reference) -> None:
        """Delete exactly this one; absent is done. Pods get their own grace period."""
        path = self._path(reference.kind, reference.namespace, reference.name)
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": reference.uid},
            **({} if reference.grace_s is None else {"gracePeriodSeconds": reference.grace_s}),
        }
        try:
            answer = await self.send("DELETE", path, body=options)
        except (NotFoundError, ConflictError):  # it is gone; a namesake may stand there
            return
        if answer.get("metadata", {}).get("deletionTimestamp"):
            self._take_up(reference.kind, answer)

    async def _create(self, item: Object) -> None:
        # Never by server-side apply: it writes into whatever stands under the name, and makes
        # itself its owner.
        kind, metadata = item["kind"], item["metadata"]
        folder = self._path(kind, metadata["namespace"], "").rstrip("/")
        try:
            answer = await self.send("POST", folder, query=MANAGER, body=item)
        except ConflictError:
            found = await self.look_up(kind, metadata["namespace"], metadata["name"])
            if found is None:
                raise
            await self._meet({"kind": kind, **found}, item)
        else:
            self._take_up(kind, answer)

    async def _meet(self, found: Object, item: Object) -> None:
        """Deal with what stands where an object was to be created."""
        owner = controller(item) or {}
        taken = obstacle(found, **{field: owner.get(field, "") for field in ("uid", "name", "kind")})
        if taken is not None:
            raise (UnavailableError if taken.is_leaving else NameTakenError)(describe([taken]))
        if item["kind"] == "Pod":  # of this attempt or of another: the next pass sees
            self._take_up("Pod", dict(found))
            raise ConflictError(f"pod {found['metadata']['name']} stands already")
        # Its own, but it was not seen: somebody took its label away.
        await self.apply({**item, "metadata": {**item["metadata"], "uid": found["metadata"]["uid"]}})
