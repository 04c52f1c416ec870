"""Which of several operators works: a Lease, judged by a monotonic clock, released at the end.

Others wait `LEASE_S` after the last renewal they saw; this one trusts its own for
`RENEW_DEADLINE_S` only. Between the two lies the time that its last write may take (kube.py), so
no write of an old leader lands in a new one's time. A leader that loses the Lease goes on watching
and stands again: an API server gone for a minute ends no process.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import structlog

from pipelinejob.base import names
from pipelinejob_operator.cluster import ClusterError
from pipelinejob_operator.kube.api import NotFoundError

_log = structlog.get_logger(__name__)

LEASE_S = 15.0
RENEW_DEADLINE_S = 10.0
_RETRY_S = 2.0
_REQUEST_TIMEOUT_S = 5.0
_RELEASE_TIMEOUT_S = 0.5


class NotLeaderError(ClusterError):
    """This process may not write now: it does not hold the Lease."""


class ForeignLeaseError(ClusterError):
    """The Lease is another program's; the message says how to have one of one's own."""


class Leadership(Protocol):
    """Whether this process may work."""

    @property
    def held(self) -> bool:
        """Tell whether it may, now."""

    async def wait(self) -> None:
        """Wait until it may."""

    def check(self) -> None:
        """Raise NotLeaderError unless it may."""


class Requester(Protocol):
    """What the elector needs of a connection."""

    async def request(
        self, method: str, path: str, *, timeout_s: float, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Send one request and give the JSON of the answer."""


class AlwaysLeader:
    """The leadership of an operator that knows it is alone."""

    held = True

    async def wait(self) -> None:
        """Go on."""

    def check(self) -> None:
        """Agree."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """The Lease as last seen to change, and when by our own clock; other machines' clocks mean nothing here."""

    record: tuple[Any, ...]
    at_s: float


class Elector:
    """Stands for election, for ever; `held` is true while it leads."""

    def __init__(
        self,
        api: Requester,
        *,
        namespace: str,
        name: str,
        identity: str,
        monotonic: Callable[[], float] = time.monotonic,
        on_change: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self._api = api
        self._folder = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._name = name
        self._path = f"{self._folder}/{name}"
        self._identity = identity
        self._monotonic = monotonic
        self._on_change = on_change
        self._renewed_s: float | None = None
        self._was_held = False
        self._elected = asyncio.Event()
        self._seen: _Seen | None = None

    @property
    def held(self) -> bool:
        """Tell whether this process leads, now."""
        return self._renewed_s is not None and self._monotonic() < self._renewed_s + RENEW_DEADLINE_S

    async def wait(self) -> None:
        """Wait until this process leads."""
        while not self.held:
            self._elected.clear()
            await self._elected.wait()

    def check(self) -> None:
        """Raise NotLeaderError unless this process leads."""
        if not self.held:
            raise NotLeaderError(
                f"{self._identity} does not hold the Lease {self._name}; nothing is written without it"
            )

    async def run(self) -> None:
        """Take the Lease when it is free, and renew it, for ever."""
        while True:
            try:
                await self._try()
            except ClusterError as error:
                _log.warning("lease not renewed", error=str(error), leading=self.held)
            self._tell()
            await asyncio.sleep(_RETRY_S * random.uniform(0.5, 1))  # noqa: S311  # jitter is no secret

    async def release(self) -> None:
        """Release the Lease so that another need not wait for it to expire; best effort."""
        if not self.held:
            return
        self._renewed_s = None
        self._tell()
        try:
            async with asyncio.timeout(_RELEASE_TIMEOUT_S):
                lease = await self._api.request("GET", self._path, timeout_s=_RELEASE_TIMEOUT_S)
                if lease["spec"].get("holderIdentity") == self._identity:
                    body = {**lease, "spec": {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}}
                    await self._api.request("PUT", self._path, body=body, timeout_s=_RELEASE_TIMEOUT_S)
        except (ClusterError, TimeoutError) as error:
            _log.warning("lease not released", error=str(error))

    async def _try(self) -> None:
        # Before the request: what was true when it was sent must not be trusted for longer because
        # it took long.
        started_s = self._monotonic()
        lease = await self._read()
        if lease is None:
            await self._create()
        elif self._may_take(lease, started_s):
            body = {**lease, "spec": self._spec(lease.get("spec") or {})}
            await self._api.request("PUT", self._path, body=body, timeout_s=_REQUEST_TIMEOUT_S)
        else:
            self._renewed_s = None
            return
        self._renewed_s = started_s

    async def _read(self) -> dict[str, Any] | None:
        try:
            lease = await self._api.request("GET", self._path, timeout_s=_REQUEST_TIMEOUT_S)
        except NotFoundError:
            return None
        if (lease["metadata"].get("labels") or {}).get(names.LABEL_MANAGED_BY) != names.FIELD_MANAGER:
            raise ForeignLeaseError(
                f"{self._path}: this Lease lacks the label {names.LABEL_MANAGED_BY}={names.FIELD_MANAGER}, so it is "
                f"another program's; name another with --lease-name"
            )
        return lease

    async def _create(self) -> None:
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, "labels": {names.LABEL_MANAGED_BY: names.FIELD_MANAGER}},
            "spec": self._spec({}),
        }
        await self._api.request("POST", self._folder, body=body, timeout_s=_REQUEST_TIMEOUT_S)

    def _may_take(self, lease: Mapping[str, Any], now_s: float) -> bool:
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity")
        if not holder or holder == self._identity:
            return True
        record = (holder, spec.get("renewTime"), spec.get("acquireTime"))
        if self._seen is None or self._seen.record != record:
            self._seen = _Seen(record, now_s)
        return now_s >= self._seen.at_s + float(spec.get("leaseDurationSeconds") or LEASE_S)

    def _spec(self, previous: Mapping[str, Any]) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        same = previous.get("holderIdentity") == self._identity
        transitions = int(previous.get("leaseTransitions") or 0)
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": int(LEASE_S),
            "acquireTime": previous.get("acquireTime", now) if same else now,
            "renewTime": now,
            "leaseTransitions": transitions if same or not previous else transitions + 1,
        }

    def _tell(self) -> None:
        held = self.held
        if held:
            self._elected.set()
        if held != self._was_held:
            self._was_held = held
            _log.info("leading" if held else "not leading", identity=self._identity)
            self._on_change(held)
