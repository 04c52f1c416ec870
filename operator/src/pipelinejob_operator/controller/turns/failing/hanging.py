"""A gang in which nothing goes on any more: who is to blame, by who waits for whom."""

from collections.abc import Iterable, Mapping

from pipelinejob.contract.progress import Progress
from pipelinejob_operator.controller.turns.failing.failures import Cause
from pipelinejob_operator.objects.job import Rank
from pipelinejob_operator.objects.pods import StagePod


def find_hang(reports: Iterable[Progress], pods: Mapping[Rank, StagePod], *, attempt: int) -> Cause | None:
    """Return the cause of a hang, which every stage that answers says there is; None if one of them does not.

    To blame is a stage that does not answer, else one that waits for nobody while others wait; of
    several, the one that most of them name. Where all wait for one another it is the last that
    began to.
    """
    answers = {Rank(each.replica, each.stage): each for each in reports if each.attempt == attempt}
    stuck = [(rank, each.stuck) for rank, each in sorted(answers.items()) if each.stuck]
    if not stuck or len(stuck) < len(answers) or any(rank not in pods for rank in answers):
        return None
    named = [_whom(each) for each in answers.values()]
    working = [rank for rank, each in sorted(answers.items()) if each.waits is None]
    silent = sorted(pods.keys() - answers.keys())
    if silent:
        culprit = max(silent, key=named.count)
        how = "does not answer"
    elif working:
        culprit = max(working, key=named.count)
        how = "waits for nobody"
    else:
        culprit = min(answers, key=lambda rank: _waited_s(answers[rank]))
        how = "was the last to wait, for one that waits itself"
    waiting = {rank: each for rank, each in sorted(answers.items()) if _whom(each) == culprit}
    since = "".join(f"; {rank} has waited for it for {_waited_s(each):.0f} s" for rank, each in waiting.items())
    message = f"{stuck[0][1]}; it {how}{since}. Each stage has written its stacks to its log"
    return Cause(rank=culprit, pod=pods[culprit].name, reason="Hang", message=message)


def _whom(report: Progress) -> Rank | None:
    waits = report.waits
    return None if waits is None or waits.stage is None else Rank(waits.replica or 0, waits.stage)


def _waited_s(report: Progress) -> float:
    return report.waits.seconds if report.waits else 0.0
