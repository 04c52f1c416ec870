"""Which chains of a job that serves begin, drain and go: decided alone, and played until nothing changes."""

from dataclasses import replace

import pytest

from pipelinejob.spec.serving import RollingUpdate
from pipelinejob_operator.controller.chains.moves import Chain, Moves, everyone_leaves, next_moves


def chain(number: int, **about: object) -> Chain:
    return Chain(**({"number": number, "name": f"m-{number}", "is_current": True, "is_ready": True} | about))


NEW, OLD = chain(1), chain(0, is_current=False)
LOADING = chain(1, is_ready=False)


def moved(chains: list[Chain], wanted: int, surge: int = 1, unavailable: int = 0) -> tuple[tuple[int, ...], ...]:
    found = next_moves(chains, wanted=wanted, surge=surge, unavailable=unavailable)
    return found.begin, *(tuple(each.number for each in part) for part in (found.drain, found.remove))


@pytest.mark.parametrize(
    ("chains", "wanted", "surge", "unavailable", "begin", "drain", "remove"),
    [
        ([], 2, 1, 0, (0, 1), (), ()),
        ([chain(0)], 3, 1, 0, (1, 2), (), ()),  # grows: the one that stands is left alone
        ([chain(0), chain(1)], 1, 1, 0, (), (1,), ()),
        ([chain(0), LOADING], 1, 1, 0, (), (1,), ()),  # who answers nobody goes first
        ([chain(0, is_ready=False), chain(1)], 1, 1, 0, (), (0,), ()),
        ([OLD], 1, 1, 0, (1,), (), ()),  # a new one before the old one goes
        ([OLD, LOADING], 1, 1, 0, (), (), ()),
        ([OLD, NEW], 1, 1, 0, (), (0,), ()),
        ([OLD], 1, 0, 1, (), (0,), ()),  # no room for one more: the old one goes first
        ([replace(OLD, is_ready=False, is_leaving=True)], 1, 0, 1, (1,), (), ()),
        ([replace(OLD, is_leaving=True, has_left=True, is_ready=False), NEW], 1, 1, 0, (), (), (0,)),
        # One that is not ready may come back, unless it holds a place for long.
        ([replace(OLD, is_ready=False), LOADING], 1, 1, 0, (), (), ()),
        ([replace(OLD, is_ready=False), NEW], 1, 1, 0, (), (0,), ()),
        ([replace(OLD, is_ready=False, is_given_up=True)], 1, 0, 1, (), (0,), ()),
        # What failed for ever keeps its place: it would fail again. Of an older spec it goes.
        ([chain(0, is_ready=False, failure="bad")], 1, 1, 0, (), (), ()),
        ([OLD, chain(1, is_ready=False, failure="bad")], 1, 1, 0, (), (), ()),
        ([chain(0, is_current=False, is_ready=False, failure="bad")], 1, 1, 0, (1,), (), (0,)),
        ([chain(0), chain(1, is_ready=False, failure="bad")], 1, 1, 0, (), (), (1,)),
    ],
)
def test_the_next_moves(*, chains, wanted, surge, unavailable, begin, drain, remove) -> None:
    assert moved(chains, wanted, surge, unavailable) == (begin, drain, remove)


def test_a_suspended_job_drains_all_and_then_has_none() -> None:
    gone = replace(NEW, is_leaving=True, has_left=True, is_ready=False)

    assert everyone_leaves([chain(0), LOADING]) == Moves(drain=(chain(0), LOADING))
    assert everyone_leaves([gone]) == Moves(remove=(gone,))


@pytest.mark.parametrize(("replicas", "limits"), [(1, (1, 0)), (3, (1, 0)), (4, (1, 1)), (10, (3, 2))])
def test_a_quarter_as_deployments_have_it(replicas: int, limits: tuple[int, int]) -> None:
    assert RollingUpdate().limits(replicas) == limits
    assert RollingUpdate(max_surge=0).limits(1) == (0, 1)  # one of the two must be


@pytest.mark.parametrize(("wanted", "surge", "unavailable"), [(1, 1, 0), (1, 0, 1), (3, 1, 0), (4, 2, 1), (5, 0, 2)])
def test_all_are_exchanged_while_enough_answer(wanted: int, surge: int, unavailable: int) -> None:
    chains = [chain(number, is_current=False) for number in range(wanted)]

    for _ in range(50):
        found = next_moves(chains, wanted=wanted, surge=surge, unavailable=unavailable)
        going = {each.number for each in found.drain}
        chains = [
            replace(each, is_leaving=True, is_ready=False) if each.number in going else each
            for each in chains
            if each not in found.remove
        ]
        chains += [chain(number, is_ready=False) for number in found.begin]
        staying = [each for each in chains if each.stays]
        assert len(staying) <= wanted + surge
        assert sum(each.is_ready for each in staying) >= wanted - unavailable
        assert len({each.number for each in chains}) == len(chains)
        # The next pass finds one more that answers, and those that drained gone.
        loading = [each for each in chains if each.stays and not each.is_ready][:1]
        chains = [
            replace(each, is_ready=True) if each in loading else replace(each, has_left=each.is_leaving)
            for each in chains
        ]

    assert len(chains) == wanted
    assert all(each.is_current and each.is_ready for each in chains)
