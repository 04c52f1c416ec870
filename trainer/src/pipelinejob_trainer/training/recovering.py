"""Training with recovery in place: a rank that loses others waits to be told who meets next, and goes on with them."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import TypeVar

from torch import distributed
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined] # torch re-exports them silently

from pipelinejob.contract.incarnation import Incarnation, Lost, Member
from pipelinejob.contract.plan import Plan
from pipelinejob.spec.job import Recovery
from pipelinejob_trainer.base.errors import (
    GangMovesError,
    LeftError,
    NotNeededError,
    PeerLostError,
    PeersLeaveError,
    SupersededError,
)
from pipelinejob_trainer.process.config import Config, prepare_environment
from pipelinejob_trainer.process.output import say
from pipelinejob_trainer.process.signals import StopRequest
from pipelinejob_trainer.process.stage_status import StageStatus
from pipelinejob_trainer.recovery.buddies import buddies
from pipelinejob_trainer.recovery.copies import Keeper, Sender
from pipelinejob_trainer.recovery.keeping import Keeping
from pipelinejob_trainer.recovery.leaving import Leaving
from pipelinejob_trainer.recovery.ring import Edge, Ring, neighbours
from pipelinejob_trainer.recovery.station import Station
from pipelinejob_trainer.recovery.wake import end_all_waits
from pipelinejob_trainer.training.loop import TrainingLoop
from pipelinejob_trainer.training.membership import Membership, form
from pipelinejob_trainer.training.preparation import Preparation, check, preflighted, say_compiled, telling_errors

_FIRST_MEETING_S = 900.0  # a pod of the gang may have to pull its image first
_JOINING_S = 30.0  # for all members of an incarnation, which were all there when it was given its number
_BREAK_S = 2.0  # besides the silence that names who is lost, for a rank whose connections broke
_MARGIN_S = 60.0

_Result = TypeVar("_Result")


class Loss:
    """Who was lost in one incarnation; set by the ring's thread, read by all."""

    def __init__(self, plan: Plan, status: StageStatus) -> None:
        self._stages = plan.parallelism.pipeline
        self._status = status
        self._noticed = threading.Event()
        self._waits_ended = threading.Event()
        self._left: dict[int, int] = {}
        self.lost: list[Lost] = []

    def expect(self, leaving: Leaving, step: int) -> None:
        """Note that ranks leave after a step, as they were asked to, so that their end is no surprise."""
        self._left |= dict.fromkeys(leaving.ranks, step)

    def add(self, rank: int, why: str) -> None:
        """Note a lost rank, and end all waits of this process at the first."""
        replica, stage = divmod(rank, self._stages)
        step = self._left.get(rank)
        if step is not None:
            why = f"it was asked to stop, and has handed over after step {step}"
        lost = Lost(replica=replica, stage=stage, why=why, handed_over=step)
        self.lost.append(lost)
        self._status.add_lost(lost)
        say(f"lost stage {stage} of replica {replica}: {why}")
        if not self._noticed.is_set():
            self._noticed.set()
            end_all_waits()
            self._waits_ended.set()

    def is_noticed(self) -> bool:
        """Return whether any rank is known to be lost."""
        return self._noticed.is_set()

    def settle(self, within_s: float) -> bool:
        """Wait until a lost rank is known and this process waits for nothing more; return whether one is."""
        return self._waits_ended.wait(within_s)


class Recovering:
    """One rank's training over all incarnations of its gang."""

    def __init__(
        self, config: Config, plan: Plan, station: Station, status: StageStatus, stop_request: StopRequest
    ) -> None:
        assert plan.recovery is not None, "it is on"
        self._config = config
        self._plan = plan
        self._recovery: Recovery = plan.recovery
        self._station = station
        self._status = status
        self._stop_request = stop_request
        self._keeping = Keeping(interval_steps=plan.recovery.interval_steps)
        self._loop: TrainingLoop | None = None
        self._members: Sequence[Member] = ()  # of the present incarnation
        self._is_done = False

    def run(self, prepared: Preparation | None) -> None:
        """Train until the last step, through as many incarnations as it takes.

        Without what is `prepared`, as the plan that it was started with does not have this rank,
        it waits for one that has. Raises what `loop.run` does; PeerLostError when no replacement
        comes, LeftError when this rank is asked to stop while it waits for one, NotNeededError
        when the others go on without it.
        """
        number, loss, within_s = 0, Loss(self._plan, self._status), _FIRST_MEETING_S
        next_: Incarnation | None = None
        prepared = prepared or self._prepare_as_told()
        with telling_errors(prepared), ExitStack() as watching:
            while not self._is_done:
                incarnation = next_ or self._await(number, loss, within_s)
                watching.close()  # until now, for others of whom it does not know yet
                number, within_s = incarnation.number, float(self._recovery.wait_seconds)
                self._adopt(prepared, incarnation)
                loss = Loss(self._plan, self._status)
                next_ = self._take_part(prepared, incarnation, loss, watching)

    def _prepare_as_told(self) -> Preparation:
        """Build what a further stage needs as soon as it is told the plan that has it, and the others train on."""
        self._status.await_incarnation((), within_s=_FIRST_MEETING_S + _MARGIN_S)
        told = self._station.await_any(within_s=_FIRST_MEETING_S, is_over=self._stop_request.is_set)
        if told is None:
            raise LeftError("LeftWhileWaiting", "asked to stop before it joined the others")
        if (self._config.replica, self._config.stage) not in _places(told.members) or not told.plan:
            raise NotNeededError("the others go on without this stage, which was to join them")
        self._plan = Plan.from_json(told.plan)
        self._status.follow(self._plan)
        return Preparation(self._config, self._plan)

    def _await(self, number: int, loss: Loss, within_s: float) -> Incarnation:
        """Wait to be told who meets, after these were lost; or to be called, by a gang that trains.

        Raises LeftError when this rank is asked to stop meanwhile, PeerLostError when it is not
        told in time.
        """
        self._status.await_incarnation(loss.lost, within_s=within_s + _MARGIN_S)
        incarnation = self._station.await_newer(
            number, within_s=within_s, is_over=self._stop_request.is_set, joins=number == 0
        )
        if incarnation is None:
            raise LeftError(
                "LeftWhileWaiting",
                f"asked to stop while it waited for others after step {self._status.step}; whom it has sent its"
                " state last, keeps it",
            )
        if incarnation.at_border:
            self._status.begin_move()
            self._status.begin_incarnation(incarnation.number)
        return incarnation

    def _adopt(self, prepared: Preparation, incarnation: Incarnation) -> None:
        """Go by the plan of an incarnation, if it has one. Raises NotNeededError where this rank is no member."""
        places = _places(incarnation.members)
        mine = self._config.replica, self._config.stage
        if mine not in places:
            raise NotNeededError(
                f"after step {self._status.step} the job goes on with {len(incarnation.members)} ranks, of whom this"
                " is none"
            )
        self._station.rank = places.index(mine)
        self._members = incarnation.members
        if incarnation.plan:
            self._plan = Plan.from_json(incarnation.plan)
            if not prepared.rank.is_kept_by(self._plan):
                self._loop = None  # what it trained with is kept at the border, and is made anew
            prepared.go_over_to(self._plan)
            self._status.follow(self._plan)
            if self._plan.recovery is not None:
                self._keeping.follow(self._plan.recovery.interval_steps)
        self._keeping.history.go_over_to(prepared.rank.layout.of_ranks)

    def _take_part(
        self, prepared: Preparation, incarnation: Incarnation, loss: Loss, watching: ExitStack
    ) -> Incarnation | None:
        """Train in one incarnation, until its end or a loss; what `watching` holds goes on after a loss.

        Returns the one that all go over to from a step border, if they do.
        """
        began, ring = time.monotonic(), None
        with ExitStack() as stack:
            try:
                ring = watching.enter_context(self._ring(incarnation, loss))
                membership = self._meet(prepared, incarnation, loss, stack)
                say(f"incarnation {incarnation.number}: all met in {time.monotonic() - began:.2f} s")
                self._train(prepared, membership)
                _leave(membership, ring)
                self._is_done = True
            except GangMovesError as error:
                say(str(error))
                assert ring is not None, "it trained"
                return self._move(membership, ring, loss, error.number)
            except SupersededError:
                raise
            except PeersLeaveError as error:
                say(str(error))
                assert ring is not None, "it trained"
                for rank in sorted(error.leaving):
                    ring.tell(rank, "it was asked to stop")
                self._settle(ring, loss)
            except PeerLostError as error:
                say(f"step {self._status.step + 1} is interrupted: {error}")
                self._settle(ring, loss)
        return None

    def _move(self, membership: Membership, ring: Ring, loss: Loss, number: int) -> Incarnation | None:
        """Leave an incarnation for another; None where a rank was lost at the last moment, so that all wait."""
        incarnation = self._station.at_border(number)
        try:
            goes_on = {*_places(incarnation.members)}
            stay = [rank for rank, place in enumerate(_places(self._members)) if place in goes_on]
            self._keeping.entrust(membership.gang, self._status.step, stay=stay)
            membership.gang.barrier()  # who closes its ring after it says goodbye, and is not taken for lost
            distributed.destroy_process_group()
        except PeerLostError as error:
            say(f"incarnation {number} cannot begin: {error}")
            self._settle(ring, loss)
            return None
        self._station.begin_at_border(number)
        self._status.begin_incarnation(number)
        return incarnation

    def _settle(self, ring: Ring | None, loss: Loss) -> None:
        """See that all know of it, and that nothing of this incarnation is waited for any more."""
        if not loss.settle(self._recovery.silence_seconds + _BREAK_S) and ring is not None:
            ring.tell(self._station.rank, "its connections broke, though all ranks answer")
            loss.settle(_BREAK_S)
        with contextlib.suppress(ValueError, RuntimeError, AssertionError):  # none was formed
            distributed.destroy_process_group()
        # torch names groups by a count, and keeps that of one that was interrupted as it formed:
        # with another name than a rank that is new gives it, the next would never be formed.
        distributed.distributed_c10d._world.group_count = 0  # noqa: SLF001 # torch resets it nowhere else

    @contextmanager
    def _ring(self, incarnation: Incarnation, loss: Loss) -> Iterator[Ring]:
        ring = Ring(self._edges(incarnation), silence_s=self._recovery.silence_seconds, on_lost=loss.add)
        ring.start()
        try:
            yield ring
        finally:
            ring.close()

    def _edges(self, incarnation: Incarnation) -> list[Edge]:
        beside = neighbours(self._station.rank, len(incarnation.members))
        if beside is None:
            return []
        before, after = beside
        there = self._station.call(incarnation, after, "ring", within_s=_JOINING_S)
        try:
            here = self._station.take_call(incarnation, before, "ring", within_s=_JOINING_S)
        except PeerLostError:
            there.close()  # so that the rank after this one hears of it
            raise
        return [Edge(rank=after, connection=there), Edge(rank=before, connection=here)]

    def _meet(self, prepared: Preparation, incarnation: Incarnation, loss: Loss, stack: ExitStack) -> Membership:
        """Form the groups, and the connections for copies, for this incarnation only."""
        prepare_environment(self._config.rendezvous)
        self._copy(incarnation, loss, stack)
        store = self._store(incarnation, loss)
        prefix = f"attempt-{incarnation.attempt}/incarnation-{incarnation.number}"
        return _unless_lost(
            lambda: form(
                prepared.rank,
                PrefixStore(prefix, store),
                self._station.rank,
                rendezvous=self._config.rendezvous,
                prefix=prefix,
            ),
            loss,
        )

    def _store(self, incarnation: Incarnation, loss: Loss) -> TCPStore:
        """Return a store that lives as long as the incarnation: its first member serves it, on any port."""
        host, timeout = incarnation.members[0].address.rpartition(":")[0].strip("[]"), timedelta(seconds=_JOINING_S)
        others = range(1, len(incarnation.members))
        if self._station.rank == 0:
            store = TCPStore(host, 0, is_master=True, timeout=timeout, wait_for_workers=False)
            for rank in others:
                with self._station.take_call(
                    incarnation, rank, "store", within_s=_JOINING_S, is_over=loss.is_noticed
                ) as caller:
                    caller.sendall(store.port.to_bytes(2, "big"))
            return store
        with self._station.call(incarnation, 0, "store", within_s=_JOINING_S) as connection:
            connection.settimeout(_JOINING_S)
            try:
                port = connection.recv(2)
            except OSError as error:
                raise PeerLostError(f"rank 0 did not open a store: {error}") from error
        if len(port) < 2:  # noqa: PLR2004 # bytes of a port
            raise PeerLostError("rank 0 closed before it opened a store")
        return TCPStore(host, int.from_bytes(port, "big"), is_master=False, timeout=timeout, wait_for_workers=False)

    def _copy(self, incarnation: Incarnation, loss: Loss, stack: ExitStack) -> None:
        """Connect to this rank's buddy, and to the rank whose buddy this one is."""
        buddy_of, rank = buddies(self._plan), self._station.rank
        if not buddy_of:
            self._keeping.join(None, buddies=(), on_leaving=loss.expect)
            return
        there = self._station.call(incarnation, buddy_of[rank], "copies", within_s=_JOINING_S)
        sender = Sender(there, buddy_of[rank], is_over=loss.is_noticed)
        stack.callback(sender.close)
        kept = buddy_of.index(rank)
        here = self._station.take_call(incarnation, kept, "copies", within_s=_JOINING_S, is_over=loss.is_noticed)
        stack.callback(Keeper(here, kept, self._keeping.history).close)
        self._keeping.join(sender, buddies=buddy_of, on_leaving=loss.expect)

    def _train(self, prepared: Preparation, membership: Membership) -> None:
        check(prepared, membership)
        if self._loop is None:
            if prepared.plan.training.preflight and self._status.incarnation == 1:
                say(preflighted(prepared.rank, membership))
            if self._status.incarnation == 1:
                say_compiled(prepared, membership)
            self._loop = TrainingLoop(
                prepared,
                membership,
                self._status,
                self._stop_request,
                self._keeping,
                moves_to=self._station.next_at_border,
            )
        else:
            self._loop.rejoin(membership)
        self._stop_request.start_honouring()
        self._loop.run()


def _places(members: Sequence[Member]) -> list[tuple[int, int]]:
    return [(each.replica, each.stage) for each in members]


def _leave(membership: Membership, ring: Ring) -> None:
    ring.stop_watching()
    membership.gang.barrier()
    distributed.destroy_process_group()


def _unless_lost(work: Callable[[], _Result], loss: Loss) -> _Result:
    """Do what blocks for long if a rank is lost meanwhile; it is then left behind, in its thread.

    Raises PeerLostError.
    """
    results: list[_Result] = []
    errors: list[BaseException] = []

    def do() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001  # it is raised where it is waited for
            errors.append(error)

    thread = threading.Thread(target=do, name="joining", daemon=True)
    thread.start()
    deadline = time.monotonic() + _JOINING_S
    while thread.is_alive() and not loss.is_noticed() and time.monotonic() < deadline:
        thread.join(0.02)
    if results:
        return results[0]
    if errors and not isinstance(errors[0], RuntimeError | PeerLostError):
        raise errors[0]
    raise PeerLostError(f"the gang could not be formed: {errors[0] if errors else 'a rank was lost meanwhile'}")
