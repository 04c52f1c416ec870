"""What a running stage says of itself: `GET /progress` on its metrics port, steps.jsonl, and its termination message.

The operator pulls it, nothing is pushed, so no stage needs a right on the API server.
"""

from collections.abc import Mapping
from enum import IntEnum, StrEnum

from pydantic import Field

from pipelinejob.base.timeline import SpanKind
from pipelinejob.base.values import Value
from pipelinejob.contract.incarnation import Lost

SPARE_REPLICA = -1  # of what a spare says: its `stage` is its number


class Phase(StrEnum):
    """Where a stage's process stands."""

    SPARE = "Spare"  # it has imported all that a stage needs, and waits to be told whose place it takes
    STARTING = "Starting"
    TRAINING = "Training"
    FINISHED = "Finished"
    SERVING = "Serving"


class Skipped(StrEnum):
    """Why a step left weights and optimiser as they were."""

    NOTHING_COUNTS = "NothingCounts"  # no target of its batch counts
    NOT_FINITE = "NotFinite"  # its loss or a gradient was infinite or no number


class Waits(Value):
    """For whom a rank waits; for all of a group where no stage is named."""

    replica: int | None = None
    stage: int | None = None
    seconds: float


class Spent(Value):
    """What a stage's seconds of one step were spent on, the mean of the last steps (a window of 20)."""

    step_s: float  # in all
    compute_s: float
    waiting_s: float  # sending, receiving and idle; with the next two
    processor_s: float = 0.0  # in the midst of a pass, for a processor that others have or that is throttled
    send_s: float = 0.0  # for messages to leave
    data_s: float = 0.0  # for input


class Progress(Value):
    """One stage's own account, since its process started. Ratios are of the last steps (a window of 20)."""

    replica: int
    stage: int
    attempt: int
    phase: Phase
    step: int  # optimiser steps completed, over all attempts
    skipped_steps: int = 0  # by this process's run: they left weights and optimiser as they were
    not_finite_steps: int = 0  # those of them whose loss or gradients were infinite or no numbers
    roll_backs: int = 0  # of this process's run, to a checkpoint
    answered: int | None = None  # requests of a batch that have an answer, told by its first stage
    requests: int | None = None  # all of that batch
    loss: float | None = None  # nats per token that counts, mean over the global batch; the same on every rank
    evaluation_loss: float | None = None  # of the last evaluation
    gradient_norm: float | None = None
    tokens_per_s: float | None = None  # of the whole job
    step_s: float | None = None
    bubble_ratio: float | None = None  # timeline.bubble_ratio
    utilization_ratio: float | None = None  # compute / wall
    seconds: Mapping[SpanKind, float] = Field(default_factory=dict)  # since the process started
    spent: Spent | None = None  # of late; None before the first step
    memory_bytes: int | None = None  # peak
    checkpoint_step: int | None = None  # newest verified checkpoint
    failed_checkpoints: int = 0  # that this process's run could not write, and went on without
    checkpoint_failure: str | None = None  # why, if the last that was due was one of them
    incarnation: int = 0  # the newest that this process has heard of; 0: of none, or recovery in place is off
    awaits_incarnation: bool = False  # whether it has all it needs to meet the others, and waits to be told of them
    control_port: int | None = None  # where the other ranks reach it, if recovery in place is on
    lost: tuple[Lost, ...] = ()  # while it waits: the ranks that it lost
    waits: Waits | None = None  # at the moment of the answer; None: it works
    stuck: str | None = None  # what is the matter, where nothing goes on and the stacks are in the log
    recoveries: int = 0  # how often this process went on in place
    moves_to: int | None = None  # the newest incarnation that begins at a step border, if it was told of one
    stands_still: bool = False  # at a step border, while it goes over to other replicas of the job
    stall_s: float | None = None  # how long it stood still for that last; None after a loss


class StepRecord(Value):
    """One line of steps.jsonl. A step that was repeated after a restart stands there again; the last line counts."""

    step: int  # 1 is the first
    loss: float  # of a skipped step, that of the last one that was not, or 0
    evaluation_loss: float | None = None  # where the step ended with an evaluation
    skipped: Skipped | None = None
    gradient_norm: float
    learning_rate: float
    step_s: float
    tokens_per_s: float
    time: float  # seconds since the epoch, when the step ended
    attempt: int


class ExitCode(IntEnum):
    """How a stage's process ends; all else is the user's own code or the machine (137: perhaps out of memory)."""

    OK = 0
    FAILURE = 1  # an exception nobody foresaw; retried
    USER_ERROR = 64  # bad entrypoint, missing data, an unwritable folder: the same again if retried, so final
    PEER_LOST = 75  # another stage went away; that one's code counts, this one's does not
    LEFT = 76  # SIGTERM to this stage alone, with recovery in place: the others stay, and keep its state
    STOPPED = 143  # SIGTERM, after a checkpoint; not a failure


class Termination(Value):
    """The last words of a stage, written to the termination log as JSON."""

    exit_code: int
    reason: str  # one CamelCase word: Completed, BadEntrypoint, DataNotFound, PeerLost, Stopped, ...
    message: str  # one sentence: the value, the rule, the way out
    step: int
