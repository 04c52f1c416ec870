"""What a request to stop leads to at the end of a step: all save and stop, or some leave and the others stay."""

import contextlib
import time
from typing import NoReturn

from pipelinejob_trainer.base.errors import LeftError, PeerLostError, PeersLeaveError, StoppedError
from pipelinejob_trainer.communication.gang import Gang
from pipelinejob_trainer.process.signals import StopRequest
from pipelinejob_trainer.recovery.keeping import Keeping
from pipelinejob_trainer.recovery.leaving import LOOK_S, Leaving, who_leaves


class Stopping:
    """Decides it alike on all ranks of a gang; every rank calls it at the same points."""

    def __init__(self, gang: Gang, stop_request: StopRequest, keeping: Keeping | None) -> None:
        """`keeping` is for recovery in place: without it all stop where one is to."""
        self._gang = gang
        self._stop_request = stop_request
        self._keeping = keeping

    def who(self, *, is_requested: bool) -> Leaving:
        """Return who stops after this step, given whether any rank was asked to. Raises PeerLostError."""
        size = self._gang.size
        if not is_requested or self._keeping is None:
            return Leaving(ranks=frozenset(range(size)) if is_requested else frozenset(), size=size)
        looks: list[list[float]] = []
        while True:
            looks.append(self._gang.gather_values(self._stop_request.remaining_s()))
            found = who_leaves(looks)
            if found is not None:
                return found
            time.sleep(LOOK_S)

    def stop(self, leaving: Leaving, step: int) -> NoReturn:
        """End this step's run: for good where this rank leaves, until others took the places of those that do.

        Raises StoppedError, LeftError, PeersLeaveError.
        """
        if leaving.is_all:
            raise StoppedError(f"asked to stop; a checkpoint of step {step} was written, and a new run goes on from it")
        assert self._keeping is not None, "without it all stop"
        if self._gang.rank in leaving.ranks:
            try:
                self._keeping.hand_over(self._gang, leaving, step)
            except PeerLostError as error:
                message = f"asked to stop; step {step} could not be handed over, as another rank was lost: {error}"
                raise LeftError("HandoverFailed", message) from error
            raise LeftError("HandedOver", f"asked to stop; step {step} is done, and another rank keeps its state")
        with contextlib.suppress(PeerLostError):  # one may have left already, or was lost: what is left, shows later
            self._keeping.hand_over(self._gang, leaving, step)
        raise PeersLeaveError(f"after step {step}, ranks that were asked to stop leave", leaving.ranks)
