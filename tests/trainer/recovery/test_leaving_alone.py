"""A rank that is told to stop where handing over cannot be done: what it says of that."""

from types import SimpleNamespace
from typing import Any

import pytest

from pipelinejob_trainer.base.errors import LeftError, PeerLostError, PeersLeaveError
from pipelinejob_trainer.process.stage_status import StageStatus
from pipelinejob_trainer.recovery.leaving import Leaving
from pipelinejob_trainer.recovery.station import Station
from pipelinejob_trainer.training.recovering import Recovering
from pipelinejob_trainer.training.stopping import Stopping
from support.training.recovering import recovering_plan


def test_one_that_waits_for_others_leaves_at_once_and_says_who_keeps_its_state() -> None:
    plan, closed = recovering_plan(1, 1), []
    status = StageStatus(plan, stage=0, replica=0, attempt=1)
    station = Station(job="default/job", attempt=1, rank=0)
    told: Any = SimpleNamespace(is_set=lambda: True)
    prepared: Any = SimpleNamespace(plan=plan, trackers=SimpleNamespace(close=lambda: closed.append(True)))
    none: Any = None

    with pytest.raises(LeftError, match="while it waited for others after step 0; whom it has sent its state") as left:
        Recovering(none, plan, station, status, told).run(prepared)

    station.close()
    assert left.value.reason == "LeftWhileWaiting"
    assert closed


class Vanishing:
    """Keeps a border that cannot be handed over: another rank was lost meanwhile."""

    def hand_over(self, *_: object) -> None:
        raise PeerLostError("rank 1 went away")


@pytest.mark.parametrize(("rank", "expected"), [(0, LeftError), (1, PeersLeaveError)])
def test_one_that_cannot_hand_over_says_so_and_who_stays_waits_for_the_next(rank: int, expected: type) -> None:
    gang: Any = SimpleNamespace(rank=rank, size=2)
    keeping: Any = Vanishing()
    none: Any = None
    leaving = Leaving(ranks=frozenset({0}), size=2)

    with pytest.raises(expected) as left:
        Stopping(gang, none, keeping).stop(leaving, 7)

    if rank == 0:
        assert left.value.reason == "HandoverFailed"
        assert "step 7 could not be handed over, as another rank was lost: rank 1 went away" in str(left.value)
