"""A rank's part in keeping borders: when one is due, that it is copied to a buddy, and how all go back to one."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import torch

from pipelinejob_trainer.communication.gang import Gang
from pipelinejob_trainer.recovery import wire
from pipelinejob_trainer.recovery.copies import Sender
from pipelinejob_trainer.recovery.history import GENERATIONS, Border, History, Holding, copy_of
from pipelinejob_trainer.recovery.leaving import Leaving, entrusted, keepers
from pipelinejob_trainer.recovery.moving_layers import Moves, all_names, choose_moves, described
from pipelinejob_trainer.recovery.returning import Return, choose_return, copied, is_copy

Needs = Callable[[Collection[str]], Collection[str] | None]


class Keeping:
    """What the training loop asks of recovery; it outlives incarnations, its sender does not."""

    def __init__(self, *, interval_steps: int | None) -> None:
        """None is of a plan that says nothing of it: a border is kept after each step."""
        self.history = History()
        self._interval_steps = interval_steps or 1
        self._sender: Sender | None = None
        self._buddies: Sequence[int] = ()
        self._on_leaving: Callable[[Leaving, int], None] = lambda *_: None

    def join(
        self, sender: Sender | None, *, buddies: Sequence[int], on_leaving: Callable[[Leaving, int], None]
    ) -> None:
        """Go on in another incarnation; `sender` is None where no buddy is needed.

        `on_leaving` is called before ranks leave, with who they are and after which step.
        """
        self._sender = sender
        self._buddies = buddies
        self._on_leaving = on_leaving

    def follow(self, interval_steps: int | None) -> None:
        """Keep borders at another interval from now on, as all do."""
        self._interval_steps = interval_steps or 1

    def is_due(self, step: int) -> bool:
        """Return whether a border is kept after this step."""
        return step % self._interval_steps == 0

    def await_last(self) -> None:
        """Wait until the last border can be counted on, wherever this rank is lost. Raises PeerLostError."""
        if self._sender is not None:
            self._sender.await_arrival()

    def keep(self, *, step: int, loss: float | None, samples: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Keep a copy of this rank's state, and start to send it to the buddy. Raises PeerLostError."""
        border = Border(step=step, loss=loss, samples=samples, tensors=copy_of(tensors))
        self.history.keep(border)
        self.history.forget_before(step - GENERATIONS * self._interval_steps)
        if self._sender is not None:
            self._sender.await_arrival()
            self._sender.send(border)

    def hand_over(self, gang: Gang, leaving: Leaving, step: int) -> None:
        """See that a rank that stays has the state, at this border, of each that leaves; every rank calls it.

        Raises PeerLostError.
        """
        self._on_leaving(leaving, step)
        self.await_last()
        for rank, keeper in keepers(leaving, num_stages=gang.num_stages, buddies=self._buddies).items():
            if gang.rank == rank:
                _give(gang, self.history.border(None, step), keeper)
            elif gang.rank == keeper:
                self.history.keep_copy(rank, _take(gang, rank))
        gang.barrier()  # nobody leaves before what he gave has arrived

    def entrust(self, gang: Gang, step: int, *, stay: Sequence[int]) -> None:
        """See that a border can be counted on in the next incarnation, before those leave who had it as well.

        `stay` are the ranks that are members of that one, too; every rank calls it. Raises
        PeerLostError.
        """
        self.await_last()
        pairs = entrusted(stay, size=gang.size, num_stages=gang.num_stages, buddies=self._buddies)
        for rank, keeper in pairs:
            if gang.rank == rank:
                _give(gang, self.history.border(None, step), keeper)
            elif gang.rank == keeper:
                self.history.keep_copy(rank, _take(gang, rank))

    def go_back(self, gang: Gang, say: Callable[[str], None], *, needs: Needs = lambda _: None) -> Border | None:
        """Return this rank's state at the newest border that all can go back to; None if there is none.

        `needs` tells which of the tensors that there are are this rank's; None where one is
        missing. Every rank calls it, at the same point. Raises PeerLostError.
        """
        holdings = gang.gather_values(self.history.holding())
        chosen = choose_return(holdings, num_stages=gang.num_stages)
        if chosen is None and any(each.earlier for each in holdings):
            moved = self._move_layers(gang, say, needs)
            if moved is not None:
                return moved
        if chosen is None:
            self.history.clear()
            if any(_has_any(each) for each in holdings):
                say("not every rank's state is left in memory at one step; all go back to the last checkpoint")
            return None
        mine = _exchange(gang, self.history, chosen)
        self.history.go_back(chosen.step)
        self.history.keep(mine)
        for rank, source in enumerate(chosen.sources):
            if rank != source:
                what = "the copy that" if is_copy(rank, source, num_stages=gang.num_stages) else "the same state, which"
                say(f"rank {rank} takes over {what} rank {source} has of step {chosen.step}")
        say(f"all {gang.size} ranks go on after step {chosen.step}, from memory")
        return mine

    def _move_layers(self, gang: Gang, say: Callable[[str], None], needs: Needs) -> Border | None:
        """Gather this rank's state by the names of its tensors, from whoever has them."""
        held = gang.gather_values(self.history.names())
        mine = {step: found for step, names in all_names(held).items() if (found := needs(names)) is not None}
        moves = choose_moves(held, gang.gather_values(mine))
        if moves is None:
            return None
        border = _gather(gang, self.history, moves)
        self.history.go_back(moves.step)
        self.history.keep(border)
        for rank, sources in enumerate(moves.sources):
            for source, names in sources.items():
                if source != rank:
                    say(f"rank {rank} takes over {described(names)}, of which rank {source} has step {moves.step}")
        say(f"all {gang.size} ranks go on after step {moves.step}, from memory, with the layers divided anew")
        return border


def _exchange(gang: Gang, history: History, chosen: Return) -> Border:
    """Give to ranks that lost it what this one has of theirs; return this rank's own."""
    mine: Border | None = None
    for rank, source in enumerate(chosen.sources):
        if rank == source == gang.rank:
            mine = history.border(None, chosen.step)
        elif source == gang.rank:
            is_of_another = is_copy(rank, source, num_stages=gang.num_stages)
            held = history.holding()
            of = copied(held, rank, chosen.step, num_stages=gang.num_stages) if is_of_another else None
            _give(gang, history.border(of, chosen.step), rank)
        elif rank == gang.rank:
            mine = _take(gang, source)
    assert mine is not None, "every rank has a source"
    return mine


def _gather(gang: Gang, history: History, moves: Moves) -> Border:
    """Give to other ranks what they need of what this one has; return what this one needs, put together."""
    own = moves.sources[gang.rank].get(gang.rank, ())
    parts = [history.part(moves.step, own)] if own else []
    for rank, sources in enumerate(moves.sources):
        for source, names in sources.items():
            if source == gang.rank != rank:
                _give(gang, history.part(moves.step, names), rank)
            elif rank == gang.rank != source:
                parts.append(_take(gang, source))
    return replace(parts[0], tensors={name: each for part in parts for name, each in part.tensors.items()})


def _give(gang: Gang, border: Border, to: int) -> None:
    head = torch.frombuffer(bytearray(wire.head_of(border)), dtype=torch.uint8)
    gang.send_bytes(_size(len(head)), to)
    gang.send_bytes(head, to)
    for part in wire.parts_of(border):
        if part.numel():
            gang.send_bytes(part, to)


def _take(gang: Gang, source: int) -> Border:
    size = _size(0)
    gang.receive_bytes(size, source)
    head = torch.empty(int(size.view(torch.int64).item()), dtype=torch.uint8)
    gang.receive_bytes(head, source)
    border = wire.empty_border(head.numpy().tobytes())
    for part in wire.parts_of(border):
        if part.numel():
            gang.receive_bytes(part, source)
    return border


def _size(count: int) -> torch.Tensor:
    return torch.tensor([count], dtype=torch.int64).view(torch.uint8)


def _has_any(holding: Holding) -> bool:
    return bool(holding.own or holding.copies or holding.earlier)
