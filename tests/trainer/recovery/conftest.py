"""Gangs that recover in place, each with its stand-in for the operator."""

from collections.abc import Callable, Iterator

import pytest

from pipelinejob.contract.plan import Plan
from support.training.gangs import Gang
from support.training.recovering import Operator


@pytest.fixture
def run(make: Callable[..., Gang]) -> Iterator[Callable[..., tuple[Gang, Operator]]]:
    """Return what starts a gang, and so many further replicas that wait to be called."""
    operators: list[Operator] = []

    def start(plan: Plan, *, waiting: int = 0, **variables: str) -> tuple[Gang, Operator]:
        gang = make(plan, **variables)
        for replica in range(plan.parallelism.data, plan.parallelism.data + waiting):
            gang.join(replica)
        operators.append(Operator(gang).start())
        return gang, operators[-1]

    yield start
    for operator in operators:
        operator.stop()
