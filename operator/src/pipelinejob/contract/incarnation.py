"""One meeting of a gang whose members outlive a lost stage: the operator numbers it, and tells each member of it.

The operator POSTs an `Incarnation` to `/incarnation` on each stage's metrics port. It gives a
number once, after every stage of the attempt has said that it waits for one; a member that hears
of a newer number can take part in no older. One that is told `at_border` changes who the members
are while they train: it begins at the first step border at which all of the gang have heard of it,
and nobody has to wait for it until then.
"""

from pipelinejob.base.values import Value


class Member(Value):
    """One rank, and where it listens: `host:port`, as it says of its port in `/progress`."""

    replica: int
    stage: int
    address: str


class Incarnation(Value):
    """Who meets. Members are all ranks of the job, in order: replica by replica, stage by stage.

    Who hears of it and is no member ends, with exit code 0: the job goes on with fewer replicas.
    """

    number: int  # 1 is the first of an attempt's
    attempt: int
    members: tuple[Member, ...]
    key: str = ""  # known to its members only, who show it when they call one another
    plan: str = ""  # by which they train, as JSON; empty: the one that each began with
    at_border: bool = False  # it begins between two steps of the present one


class GivenRank(Value):
    """The rank whose place a spare takes: POSTed to `/rank` on its metrics port, until it answers as that rank."""

    replica: int
    stage: int
    attempt: int


class Lost(Value):
    """A rank that another has found to be gone or silent, or that left because it was told to."""

    replica: int
    stage: int
    why: str
    handed_over: int | None = None  # the step after which it left, with its state at a rank that stays
