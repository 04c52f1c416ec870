"""A few composed clusters, of each kind of trouble at least one; `tests/composed.py` plays as many as one likes."""

from __future__ import annotations

import pytest

from composed import play_all, stage
from support.api_server.composedcases import CHANGES, DECOYS, ENDINGS, INTERLUDES, OBSTACLES, RULES, SIDECARS, case

pytestmark = pytest.mark.xdist_group("composed")

SEEDS = (1, 8, 9, 11, 47, 53, 76)  # the fewest that have each kind of trouble between them


def test_what_people_do_to_their_clusters_ends_well_or_is_said_and_touches_nothing_foreign(tmp_path):
    with stage(tmp_path) as on:
        problems = play_all(on, [case(seed) for seed in SEEDS], at_once=4, told=print)

    assert not problems, "\n".join(problems)


def test_the_few_have_every_kind_of_trouble_between_them():
    few = [case(seed) for seed in SEEDS]
    met = {kind for each in few for kind in (*each.decoys, each.rule, each.change, each.sidecar, each.ending)}
    met |= {kind for each in few for kind in (each.obstacle, each.interlude)}

    assert {*DECOYS, *RULES, *CHANGES, *SIDECARS, *ENDINGS, *OBSTACLES, *INTERLUDES} - met == set()
