"""Micro-batch schedules, as data: for each stage an ordered list of actions. The runtime plays them.

An action prints as `F3` (forward of micro-batch 3), `B3` (its full backward), and parses back. Sends and receives are
derived from the order: F3 on stage s > 0 needs the activation of F3 on s-1, B3 on s < p-1 the gradient of B3 on s+1,
and B3 needs the F3 of its own stage. Throughout, p is the number of stages, m of micro-batches.
"""

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from pipelinejob.errors import PipelineJobError
from pipelinejob.spec import ScheduleName


class ScheduleError(PipelineJobError):
    """A list of actions that cannot be read or cannot be played."""


class ActionKind(StrEnum):
    """What is computed. I and W, the halves of a split backward, join with the schedules that use them."""

    FORWARD = "F"
    BACKWARD = "B"


@dataclass(frozen=True, slots=True)
class Action:
    """One unit of work of one stage."""

    kind: ActionKind
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.kind}{self.micro_batch}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` printed.

        Raises ScheduleError.
        """
        kind, number = text[:1], text[1:]
        if kind not in list(ActionKind) or not (number.isascii() and number.isdigit()):
            raise ScheduleError(f"{text!r} is no action; write F or B and the number of a micro-batch, as in F3")
        return cls(ActionKind(kind), int(number))


StageActions = tuple[Action, ...]
Actions = tuple[StageActions, ...]  # one list a stage


class WaitCause(StrEnum):
    """Why a stage waits, told from its list of actions alone, so that planned and measured waits are named alike."""

    WARM_UP = "warm-up"  # the pipeline is filling: no gradient has reached this stage yet
    UPSTREAM = "upstream"  # in between, for the previous stage's activation
    DOWNSTREAM = "downstream"  # in between, for the next stage's gradient
    DRAIN = "drain"  # the pipeline is emptying: no forward is left on this stage


def build(name: ScheduleName, num_stages: int, num_micro_batches: int) -> Actions:
    """Give every stage's actions under a schedule."""
    return tuple(stage_actions(name, stage, num_stages, num_micro_batches) for stage in range(num_stages))


def stage_actions(name: ScheduleName, stage: int, num_stages: int, num_micro_batches: int) -> StageActions:
    """Give one stage's actions under a schedule; what a single rank needs."""
    match name:
        case ScheduleName.GPIPE:
            return _gpipe(num_micro_batches)
        case ScheduleName.ONE_F_ONE_B:
            return _one_f_one_b(stage, num_stages, num_micro_batches)


def _gpipe(num_micro_batches: int) -> StageActions:
    """Run all forwards, then all backwards: GPipe (Huang et al. 2019, arXiv 1811.06965).

        stage 0  F0 F1 F2 F3 .. .. .. .. .. .. B0 B1 B2 B3
        stage 1  .. F0 F1 F2 F3 .. .. .. .. B0 B1 B2 B3 ..
        stage 2  .. .. F0 F1 F2 F3 .. .. B0 B1 B2 B3 .. ..
        stage 3  .. .. .. F0 F1 F2 F3 B0 B1 B2 B3 .. .. ..

    bubble = (p-1)/(m+p-1); every stage holds all m micro-batches. The paper walks the backwards from the last
    micro-batch to the first; we take them in order, which costs the same and adds gradients up in the order 1F1B and an
    unsplit model do.
    """
    forwards = (Action(ActionKind.FORWARD, i) for i in range(num_micro_batches))
    backwards = (Action(ActionKind.BACKWARD, i) for i in range(num_micro_batches))
    return (*forwards, *backwards)


def _one_f_one_b(stage: int, num_stages: int, num_micro_batches: int) -> StageActions:
    """Alternate forward and backward, once warm: PipeDream-Flush (Narayanan et al. 2021, arXiv 2006.09503).

        stage 0  F0 F1 F2 F3 .. .. .. B0 .. .. .. B1 ...
        stage 1  .. F0 F1 F2 .. .. B0 F3 .. .. B1 ...
        stage 2  .. .. F0 F1 .. B0 F2 .. B1 F3 ...
        stage 3  .. .. .. F0 B0 F1 B1 F2 B2 F3 B3

    Stage i runs p-1-i forwards ahead, so that it holds min(m, p-i) micro-batches, not m; bubble = (p-1)/(m+p-1) as
    GPipe's.
    """
    ahead = min(num_micro_batches, num_stages - 1 - stage)
    forwards = [Action(ActionKind.FORWARD, i) for i in range(num_micro_batches)]
    backwards = [Action(ActionKind.BACKWARD, i) for i in range(num_micro_batches)]
    steady = num_micro_batches - ahead
    pairs = [action for pair in zip(forwards[ahead:], backwards[:steady], strict=True) for action in pair]
    return (*forwards[:ahead], *pairs, *backwards[steady:])


def render(schedule: Actions) -> str:
    """Print a schedule, one line a stage; `parse` reads it back."""
    return "\n".join(" ".join(map(str, actions)) for actions in schedule)


def parse(text: str) -> Actions:
    """Read a schedule, one line a stage.

    Raises ScheduleError.
    """
    return tuple(tuple(Action.parse(word) for word in line.split()) for line in text.splitlines())


def validate(schedule: Actions) -> None:
    """Prove that a schedule can be played to its end, by playing its dependencies.

    Raises ScheduleError, naming the stage and the action, unless every stage runs each micro-batch's F and B exactly
    once and no stage waits for ever.
    """
    expected = {action.micro_batch for actions in schedule for action in actions}
    for stage, actions in enumerate(schedule):
        _check_once_each(stage, actions, expected)
    _check_no_deadlock(schedule)


def _check_once_each(stage: int, actions: StageActions, micro_batches: set[int]) -> None:
    counts = Counter(actions)
    wanted = (Action(kind, micro_batch) for micro_batch in sorted(micro_batches) for kind in ActionKind)
    for action in wanted:
        if counts[action] != 1:
            raise ScheduleError(f"stage {stage} runs {action} {counts[action]} times; it must run it once")


def _check_no_deadlock(schedule: Actions) -> None:
    done: set[tuple[int, Action]] = set()
    position = [0] * len(schedule)
    awake = list(range(len(schedule)))
    while awake:  # a stage runs as far as it can, and what it did may wake its neighbours
        stage = awake.pop()
        actions, start = schedule[stage], position[stage]
        while position[stage] < len(actions):
            action = actions[position[stage]]
            if not all(need in done for need in needs(stage, action, len(schedule))):
                break
            done.add((stage, action))
            position[stage] += 1
        if position[stage] > start:
            awake += [s for s in (stage - 1, stage + 1) if 0 <= s < len(schedule)]
    for stage, actions in enumerate(schedule):
        if position[stage] < len(actions):
            action = actions[position[stage]]
            missing = next(need for need in needs(stage, action, len(schedule)) if need not in done)
            raise ScheduleError(
                f"stage {stage} waits for ever before {action}: "
                f"it needs {missing[1]} of stage {missing[0]}, which never ends"
            )


def needs(stage: int, action: Action, num_stages: int) -> tuple[tuple[int, Action], ...]:
    """Give the (stage, action) pairs that must have ended before this one can start, its place in the list aside."""
    if action.kind is ActionKind.FORWARD:
        return ((stage - 1, action),) if stage > 0 else ()
    forward = (stage, Action(ActionKind.FORWARD, action.micro_batch))
    return (forward, (stage + 1, action)) if stage < num_stages - 1 else (forward,)


def held_micro_batches(name: ScheduleName, stage: int, num_stages: int, num_micro_batches: int) -> int:
    """Give `peak_in_flight` of a stage's actions by its formula, for steps too long to be written out."""
    match name:
        case ScheduleName.GPIPE:
            return num_micro_batches
        case ScheduleName.ONE_F_ONE_B:
            return min(num_micro_batches, num_stages - stage)


def peak_in_flight(actions: StageActions) -> int:
    """Count the micro-batches whose activations a stage holds at once, at most."""
    held = peak = 0
    for action in actions:
        held += 1 if action.kind is ActionKind.FORWARD else -1
        peak = max(peak, held)
    return peak


def wait_causes(actions: StageActions) -> tuple[WaitCause, ...]:
    """Name, for each action of a stage, the cause of a wait just before it; after the last one every wait is DRAIN.

    Where one wait both ends the filling and starts the emptying (GPipe's in the middle), it counts as WARM_UP.
    """
    kinds = [action.kind for action in actions]
    first_backward = kinds.index(ActionKind.BACKWARD) if ActionKind.BACKWARD in kinds else len(kinds)
    forwards_left = kinds.count(ActionKind.FORWARD)
    causes = []
    for position, kind in enumerate(kinds):
        if position <= first_backward:
            causes.append(WaitCause.WARM_UP)
        elif forwards_left == 0:
            causes.append(WaitCause.DRAIN)
        else:
            causes.append(WaitCause.UPSTREAM if kind is ActionKind.FORWARD else WaitCause.DOWNSTREAM)
        forwards_left -= kind is ActionKind.FORWARD
    return tuple(causes)
