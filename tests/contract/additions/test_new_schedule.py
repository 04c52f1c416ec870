"""A new schedule is a function, its name, and its description.

Everything else takes it from there.

The three are written into a copy of the sources, as an author would write them, and the copy is
then used.
"""

import json

import pytest

from support.copies.copied_sources import ROOT, copied, insert, used

FUNCTION = '''

def one_by_one(num_ranks: int, num_micro_batches: int) -> Schedule:
    """Run one micro-batch after the other, each there and back."""
    actions = tuple(action for k in range(num_micro_batches) for action in (F(k), B(k)))
    return one_route(straight(num_ranks), [actions] * num_ranks, num_micro_batches)
'''
NAME = '    ONE_BY_ONE = "OneByOne"\n'
DESCRIPTION = """    Family(
        name=ScheduleName.ONE_BY_ONE,
        title="one micro-batch after the other",
        source="nobody",
        make=lambda s: flush.one_by_one(s.num_ranks, s.num_micro_batches),
        held=lambda sizes, _: 1,
        peak=lambda sizes: 1,
        filling=lambda share, _: share.both_s,
    ),
"""
DOCUMENTED = """
### OneByOne

`OneByOne`, p = 2, m = 2:

    rank 0  F0 .  .  .  B0 -- F1 .  .  .  B1 --
    rank 1  .  F0 B0 --  .  .  .  F1 B1 -- .  .
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory):
    source = copied(tmp_path_factory.mktemp("copy"))
    schedules = source / "pipelinejob" / "schedules"
    insert(schedules / "makers" / "flush.py", FUNCTION, before=None)
    insert(schedules / "names.py", NAME, before='    FORWARD_ONLY = "')
    insert(schedules / "families.py", DESCRIPTION, before="    Family(\n        name=ScheduleName.FORWARD_ONLY,")
    told, listed = used(source, "one_by_one.py", ROOT / "docs" / "schedules.md", DOCUMENTED).split("\n", 1)
    return {**json.loads(told), "listed": json.loads(listed)}


def test_it_is_simulated_and_compared(answers):
    assert answers["makespan"] == 4 * 8 * 3
    assert answers["peaks"] == [1, 1, 1, 1]
    assert answers["is_comparable"]


def test_it_is_planned(answers):
    assert answers["planned"] == ["OneByOne", True]


def test_it_is_searched_with_by_its_name_and_looked_at_by_auto(answers):
    assert answers["searched"] == ["OneByOne"]
    assert answers["is_looked_at_by_auto"]


def test_the_rules_of_the_api_know_it(answers):
    assert answers["is_in_the_enum"]
    assert answers["errors"] == []
    assert answers["errors_with_chunks"] == ["spec.schedule.virtualStages"]


def test_it_is_listed(answers):
    assert {
        "schedule": "OneByOne", "title": "one micro-batch after the other", "source": "nobody", "chunks": 1,
        "chunk_choice": False, "split_backward": False, "looks_at_costs": False, "asynchronous": False,
    } in answers["listed"]  # fmt: skip


def test_the_page_must_tell_of_it(answers):
    assert answers["undocumented"] == [
        "OneByOne has no heading", "OneByOne has no picture", "OneByOne has no row of bubble, peak and weights",
        "OneByOne is not named beside the route that it takes",
    ]  # fmt: skip
    assert answers["undocumented_once_told"] == []
