"""`pipelinejob schedule compare` and `list`: all schedules by makespan, bubble and memory, for given costs."""

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from pipelinejob.scheduler.catalogue import FAMILIES
from pipelinejob.schedules.names import ScheduleName

# The first row of the zero-bubble paper's table (Qi et al. 2024, arXiv 2401.10241).
PAPER = (
    "-p",
    8,
    "-m",
    24,
    "--forward",
    18.522,
    "--backward-input",
    18.086,
    "--backward-weight",
    9.337,
    "--comm",
    0.601,
)


def test_the_comparison_counts_as_the_paper_does(call) -> None:
    compared = json.loads(call("compare", *PAPER, "--schedules", "1F1B,ZB-H1,ZB-H2", "-o", "json").out)

    assert {each["schedule"]: round(each["span_bubble_rate"], 4) for each in compared} == {
        "1F1B": 0.2431,
        "ZB-H1": 0.1585,
        "ZB-H2": 0.1083,
    }
    assert {each["schedule"]: each["peak_activations"] for each in compared}["1F1B"] == [8, 7, 6, 5, 4, 3, 2, 1]
    best = compared[0]
    assert best["schedule"] == "ZB-H2"
    assert best["bubble_rate"] == pytest.approx(1 - 24 * (18.522 + 18.086 + 9.337) / best["makespan"])


def test_by_default_all_that_train_are_compared_shortest_first_and_those_beyond_the_cap_last(call) -> None:
    compared = json.loads(call("compare", *PAPER, "--memory-cap", 16, "-o", "json").out)

    assert {each["schedule"] for each in compared} == set(FAMILIES) - {"ForwardOnly"}
    fit = [each["makespan"] for each in compared if each["fits_cap"]]
    beyond = [each for each in compared if not each["fits_cap"]]
    assert fit == sorted(fit)
    assert compared[len(fit) :] == beyond
    assert {each["schedule"] for each in beyond} == {"GPipe", "LoopedBFS"}
    assert max(beyond[0]["peak_activations"]) == 24


def test_auto_is_at_least_as_short_as_all_that_fit_and_tells_how_far_it_is_from_its_bound(call) -> None:
    costs = ("--forward", "1,2,1,1", "--backward-input", "1,2,1,1", "--memory-cap", 4)

    for chunks in ([], ["-v", 4]):
        compared = json.loads(call("compare", "-p", 4, "-m", 8, *costs, *chunks, "-o", "json").out)
        by_name = {each["schedule"]: each for each in compared}
        auto = by_name["auto"]
        synchronous = [each["makespan"] for each in compared if each["fits_cap"] and not each["asynchronous"]]
        assert auto["makespan"] == min(synchronous)
        assert max(auto["peak_activations"]) <= 4
        if chunks:
            assert auto["lower_bound"] is None
        else:
            assert auto["lower_bound"] <= auto["makespan"]
            assert auto["distance"] == pytest.approx(auto["makespan"] / auto["lower_bound"] - 1)
        assert by_name["1F1B"]["lower_bound"] is None


def test_schedules_made_for_costs_keep_within_the_cap(call) -> None:
    compared = json.loads(
        call("compare", "-p", 4, "-m", 8, "--memory-cap", 3, "--schedules", "ZB-1p,ZB-2p,ZB-H1", "-o", "json").out
    )

    assert {each["schedule"]: each["fits_cap"] for each in compared} == {"ZB-1p": True, "ZB-2p": True, "ZB-H1": False}


def test_idle_time_by_cause_and_computing_add_up_to_the_makespan(call) -> None:
    for each in json.loads(call("compare", "-p", 4, "-m", 8, "--comm", 0.1, "-o", "json").out):
        waited = [sum(by_rank) for by_rank in zip(*each["idle"].values(), strict=True)]
        assert waited == pytest.approx([each["makespan"] - 24] * 4), each["schedule"]


def test_each_cost_may_differ_from_rank_to_rank(call) -> None:
    (slow,) = json.loads(
        call("compare", "-p", 2, "-m", 2, "--forward", "1,2", "--comm", "1,0", "--schedules", "GPipe", "-o", "json").out
    )

    # F0 0-1, sent until 2, F0 2-4, F1 4-6, B0 6-8, B1 8-10; back at once: B0 8-10, B1 10-12
    assert slow["makespan"] == 12.0


def test_a_straggler_and_sends_that_block_take_longer(call) -> None:
    def makespan(*more: object) -> float:
        (row,) = json.loads(
            call("compare", "-p", 2, "-m", 4, "--comm", 0.5, "--schedules", "1F1B", "-o", "json", *more).out
        )
        return row["makespan"]

    assert makespan() < makespan("--no-overlap") < makespan("--slowdown", "1,3")


def test_an_asynchronous_schedule_tells_its_versions_and_what_it_does_once_full(call) -> None:
    compared = {
        each["schedule"]: each
        for each in json.loads(
            call("compare", "-p", 4, "-m", 8, "--schedules", "PipeDream,PipeDream-2BW,1F1B", "-o", "json").out
        )
    }

    assert compared["PipeDream"]["weight_versions"] == [4, 3, 2, 1]
    assert compared["PipeDream-2BW"]["weight_versions"] == [2, 2, 2, 2]
    assert compared["PipeDream"]["steady_bubble_rate"] == pytest.approx(0)
    assert compared["PipeDream"]["bubble_rate"] == pytest.approx(3 / 11)
    assert compared["1F1B"]["steady_bubble_rate"] is None


def test_weights_held_twice_are_told(call) -> None:
    compared = json.loads(call("compare", "-p", 4, "-m", 8, "--schedules", "DualPipe,ZB-V", "-o", "json").out)

    assert {each["schedule"]: each["weight_copies"] for each in compared} == {"DualPipe": 2, "ZB-V": 1}


def test_what_does_not_exist_for_these_sizes_is_named_with_the_reason(call) -> None:
    table = call("compare", "-p", 3, "-m", 8)
    data = call("compare", "-p", 3, "-m", 8, "-o", "json")

    assert "DualPipe does not exist here: DualPipe runs from both ends and needs an even number" in " ".join(
        table.out.split()
    )
    assert "DualPipe" not in {each["schedule"] for each in json.loads(data.out)}
    assert "left out DualPipe: " in data.err


def test_the_table_marks_what_is_over_the_cap_and_says_what_is_not_shown(call) -> None:
    said = call("compare", *PAPER, "--memory-cap", 16).out

    assert re.search(r"GPipe .* 24 .* over", said)
    assert "GPipe is over the cap: rank 0 holds 24, and may hold 16" in said
    assert "not shown: ForwardOnly" in said
    assert "…" not in said


def test_the_comparisons_page_has_all_charts_on_one_axis(call, tmp_path: Path) -> None:
    file = tmp_path / "compared.html"

    call("compare", "-p", 3, "-m", 6, "--html", file)

    written = file.read_text()
    (picture,) = [ET.fromstring(f"<svg{rest.split('</svg>')[0]}</svg>") for rest in written.split("<svg")[1:]]
    titles = [text.text.partition(":")[0] for text in picture.iter("text") if ": makespan" in text.text]
    assert titles[0] == "ZB-V"
    assert len(titles) == len(FAMILIES) - 3  # forwards alone train nothing; two want an even number of ranks
    assert "<b>DualPipe</b>: " in written


def test_the_list_has_every_schedule(call) -> None:
    table, data = call("list").out, json.loads(call("list", "-o", "json").out)

    assert [each["schedule"] for each in data] == list(FAMILIES)
    assert all(name in table for name in FAMILIES)
    by_name = {each["schedule"]: each for each in data}
    assert by_name["1F1B"] == {
        "schedule": "1F1B",
        "title": FAMILIES[ScheduleName.ONE_F_ONE_B].title,
        "source": "Narayanan et al. 2021, arXiv 2006.09503",
        "chunks": 1,
        "chunk_choice": False,
        "split_backward": False,
        "looks_at_costs": False,
        "asynchronous": False,
    }
    assert (by_name["ZB-V"]["split_backward"], by_name["ZB-V"]["chunks"]) == (True, 2)
    assert by_name["PipeDream"]["asynchronous"] is True


def test_the_comparison_begins_with_legend_and_axis_and_explains_its_shades(call, tmp_path) -> None:
    file = tmp_path / "page.html"

    call("compare", "-p", 4, "-m", 8, "--schedules", "ZB-V,DualPipe,1F1B", "--html", file)

    written = file.read_text()
    assert written.index('<ul class="legend">') < written.index("<svg")
    assert "chunk 1 or direction 1</li>" in written or "direction 1 or chunk 1</li>" in written
    texts = [
        each.text
        for each in ET.fromstring("<svg" + written.split("<svg")[1].split("</svg>")[0] + "</svg>").iter("text")
    ]
    first_title = next(index for index, text in enumerate(texts) if text and "makespan" in text)
    assert "0" in texts[: texts.index("rank 0")][: first_title + 1]
    assert "version of the weights after an @" in written


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-v", "2"), "-v 2: none of these schedules has a choice of chunks; leave it out"),
        (
            ("--update-interval", "2"),
            "--update-interval 2: none of these schedules updates within a step; leave it out",
        ),
    ],
    ids=" ".join,
)
def test_what_none_of_the_compared_schedules_has_a_choice_of_is_refused(call, options, said: str) -> None:
    result = call("compare", "-p", 2, "-m", 4, "--schedules", "1F1B,GPipe", *options)

    assert (result.code, result.err) == (2, f"error: {said}\n")
