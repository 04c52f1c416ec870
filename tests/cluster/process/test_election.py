"""Of several operators one leads: by a Lease that it renews, and stops writing before another may begin."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest

from pipelinejob_operator.cluster import ClusterError, ConflictError, UnavailableError
from pipelinejob_operator.kube.api import NotFoundError
from pipelinejob_operator.process.leader import Elector, ForeignLeaseError, NotLeaderError


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Leases:
    """An API server that keeps one Lease, with resource versions; `down` makes it silent."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.down = False

    async def request(self, method: str, path: str, *, timeout_s: float, body: Any = None) -> dict[str, Any]:
        if self.down:
            raise UnavailableError("down")
        if method == "GET" and self.lease is None:
            raise NotFoundError(path)
        if method == "POST" and self.lease is not None:
            raise ConflictError("exists")
        if method == "PUT" and body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise ConflictError("changed")
        if method != "GET":
            version = int(self.lease["metadata"]["resourceVersion"]) + 1 if self.lease else 1
            metadata = {**body["metadata"], "resourceVersion": str(version)}
            self.lease = {**copy.deepcopy(dict(body)), "metadata": metadata}
        return copy.deepcopy(self.lease)


async def attempt(elector: Elector) -> bool:
    """One round of the election."""
    with contextlib.suppress(ClusterError):
        await elector._try()
    return elector.held


def elector(leases: Leases, clock: Clock, identity: str) -> Elector:
    return Elector(leases, namespace="n", name="lease", identity=identity, monotonic=clock)


async def test_of_two_one_leads():
    leases, clock = Leases(), Clock()
    one, two = elector(leases, clock, "one"), elector(leases, clock, "two")

    assert [await attempt(one), await attempt(two)] == [True, False]


async def test_a_leader_that_cannot_renew_stops_writing_before_another_may_begin():
    leases, clock = Leases(), Clock()
    one, two = elector(leases, clock, "one"), elector(leases, clock, "two")
    await attempt(one)
    await attempt(two)

    clock.now += 10.1
    with pytest.raises(NotLeaderError, match="one does not hold the Lease"):
        one.check()
    assert not await attempt(two)

    clock.now += 5
    assert await attempt(two)
    assert leases.lease["spec"]["leaseTransitions"] == 1


async def test_a_leader_that_renews_is_never_displaced():
    leases, clock = Leases(), Clock()
    one, two = elector(leases, clock, "one"), elector(leases, clock, "two")
    for _ in range(20):
        assert await attempt(one)
        assert not await attempt(two)
        clock.now += 2


async def test_other_machines_clocks_mean_nothing():
    leases, clock = Leases(), Clock()
    one, two = elector(leases, clock, "one"), elector(leases, clock, "two")
    await attempt(one)
    leases.lease["spec"]["renewTime"] = "1970-01-01T00:00:00.000000Z"

    assert not await attempt(two)


async def test_a_lease_of_another_program_is_never_taken_however_old_it_is():
    leases, clock = Leases(), Clock()
    leases.lease = {"metadata": {"resourceVersion": "1"}, "spec": {"holderIdentity": ""}}
    one = elector(leases, clock, "one")

    with pytest.raises(ForeignLeaseError, match="name another with --lease-name"):
        await one._try()

    assert leases.lease == {"metadata": {"resourceVersion": "1"}, "spec": {"holderIdentity": ""}}
    assert not one.held


async def test_after_an_outage_the_former_leader_leads_again():
    leases, clock = Leases(), Clock()
    one = elector(leases, clock, "one")
    await attempt(one)
    leases.down = True
    clock.now += 60
    assert not await attempt(one)

    leases.down = False
    assert await attempt(one)


async def test_a_renewal_is_trusted_from_when_it_was_asked_for():
    class Slow(Leases):
        async def request(self, method: str, path: str, **rest: Any) -> dict[str, Any]:
            clock.now += 4
            return await super().request(method, path, **rest)

    clock = Clock()
    one = elector(Slow(), clock, "one")
    assert await attempt(one)

    clock.now += 2.1
    assert not one.held
