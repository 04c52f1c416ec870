"""`pipelinejob schedule show`: what it draws, tells and writes, and what it says of what cannot be."""

import csv
import io
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

from pipelinejob.scheduler.catalogue import FAMILIES, build
from pipelinejob.schedules import torch_csv
from pipelinejob.schedules.costs import equal_shares
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.setting import Setting
from pipelinejob.schedules.text import parse, render
from pipelinejob.simulation.simulate import simulate
from pipelinejob_operator.cli.shown.gantt import row_lines
from pipelinejob_operator.report.numbers import plain
from pipelinejob_operator.report.schedule_view import rows_of

SPLIT = "F0 F1 I0 W0 I1 W1\nF0 I0 F1 I1 W0 W1\n"
STUCK = "F0 B0 F1 B1\nF0 F1 B0 B1\n"


def made(name: str, p: int, m: int):
    return build(ScheduleName(name), Setting(num_ranks=p, num_micro_batches=m))


def rows(name: str, p: int, m: int, **costs: float):
    schedule = made(name, p, m)
    return rows_of(simulate(schedule, equal_shares(p, **costs)(schedule.routes)))


def charted(out: str) -> list[str]:
    return [line for line in out.splitlines() if re.match(r"rank \d+ ", line)]


def test_unit_times_are_drawn_in_whole_cells(call) -> None:
    drawn = charted(call("show", "1F1B", "-p", 4, "-m", 4).out)

    assert drawn == [
        "rank 0    F0 F1 F2 F3 ··················B0    ···B1    ···B2    ···B3    ",
        "rank 1    ···F0 F1 F2 ············B0    F3 B1    ···B2    ···B3    ······",
        "rank 2    ······F0 F1 ······B0    F2 B1    F3 B2    ···B3    ············",
        "rank 3    ·········F0 B0    F1 B1    F2 B2    F3 B3    ··················",
    ]


def test_the_header_tells_the_paper_the_bubble_and_each_ranks_peak(call) -> None:
    said = call("show", "1F1B", "-p", 4, "-m", 8).out

    assert "1F1B  alternate forward and backward once warm" in said
    assert "arXiv 2006.09503" in said
    assert "makespan 33, ideal 24: bubble 27.3%" in said
    assert "peak activations 4 3 2 1" in said


def test_a_span_shorter_than_the_makespan_is_told(call) -> None:
    assert "bubble 5.9%, 0.0% by the longest span of a rank" in call("show", "ZB-V", "-p", 4, "-m", 8).out


def test_without_colours_chunks_are_told_apart_by_number_or_case(call) -> None:
    narrow, wide = (call("show", "Interleaved1F1B", "-p", 2, "-m", 2, "--width", width).out for width in (45, 140))

    assert charted(narrow)[1] == "rank 1    ··F0F1f0b0.1f1b1.1B0  B1  ····"
    assert "lower case: chunk 1" in narrow
    assert "f0.1" in charted(wide)[1]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("p", "m"), [(4, 8), (8, 24), (2, 64)])
@pytest.mark.parametrize("width", [40, 80, 133])
def test_no_line_is_wider_than_it_may_be_and_all_are_as_long(name: str, p: int, m: int, width: int) -> None:
    *lines, axis = row_lines(rows(name, p, m, forward_s=1.7, input_s=1.3, weight_s=0.9), width, write=plain)

    assert len(lines) == p
    assert {len(line.plain) for line in lines} == {len(axis.plain)} == {width - 1}


def test_in_colour_a_kind_and_a_chunk_have_a_colour_of_their_own() -> None:
    line = list(row_lines(rows("ZB-V", 2, 4), 120, write=None))[1]

    styles = {line.plain[span.start : span.end].strip(): span.style for span in line.spans}
    backgrounds = {label: style.bgcolor.name for label, style in styles.items() if label[0] in "FIW"}
    assert backgrounds["F0"] == "#3766b9"
    assert backgrounds["F0.1"] == "#91abd8"
    assert backgrounds["I0"] == "#fbca3e"
    assert backgrounds["W0"] == "#76d0b7"


def test_times_that_share_no_unit_fill_the_width() -> None:
    played = rows("ZB-H1", 4, 8, forward_s=18.522, input_s=18.086, weight_s=9.337)

    lines = list(row_lines(played, 90, write=None, in_cells=True))

    assert {len(line.plain) for line in lines} == {89}


def test_a_label_that_does_not_fit_is_never_cut_into_another_number() -> None:
    (first, *_) = row_lines(rows("1F1B", 2, 30), 110, write=None, has_colours=False, in_cells=True)

    assert re.findall(r"B\d+", first.plain) == [f"B{k}" for k in range(10)]
    assert first.plain.count("BB") == 20


@pytest.mark.parametrize("name", FAMILIES)
def test_every_schedule_is_shown_and_its_text_reads_back(call, name: str) -> None:
    shown, text = call("show", name, "-p", 4, "-m", 8), call("show", name, "-p", 4, "-m", 8, "-o", "text")

    assert (shown.code, shown.err) == (0, "")
    assert len(charted(shown.out)) == 4
    assert parse(text.out) == made(name, 4, 8)


def test_torchs_form_is_written_and_what_it_has_no_words_for_refused(call) -> None:
    written, refused = (call("show", name, "-p", 4, "-m", 8, "-o", "csv") for name in ("ZB-V", "DualPipe"))

    assert torch_csv.read(written.out) == made("ZB-V", 4, 8)
    assert next(csv.reader(io.StringIO(written.out)))[:2] == ["0F0", "0F1"]
    assert refused.code == 2
    assert "torch's CSV" in refused.err


def test_as_data_every_action_has_its_times(call) -> None:
    data = json.loads(call("show", "GPipe", "-p", 2, "-m", 2, "--backward-weight", 0.5, "-o", "json").out)

    assert data["actions"][1] == [
        {"action": "F0", "start": 1.0, "end": 2.0},
        {"action": "F1", "start": 2.0, "end": 3.0},
        {"action": "B0", "start": 3.0, "end": 4.5},
        {"action": "B1", "start": 4.5, "end": 6.0},
    ]
    assert (data["makespan"], data["peak_activations"], data["routes"]) == (7.5, [2.0, 2.0], [[0, 1]])
    assert data["idle"]["barrier"] == [0.0, 1.5]
    assert yaml.safe_load(call("show", "GPipe", "-p", 2, "-m", 2, "-o", "yaml").out)["makespan"] == 9.0


@pytest.mark.parametrize("name", FAMILIES)
def test_the_picture_stands_alone(call, tmp_path: Path, name: str) -> None:
    file = tmp_path / "chart.svg"

    result = call("show", name, "-p", 4, "-m", 8, "--svg", file)

    written = file.read_text()
    picture = ET.fromstring(written.encode())
    assert result.err == f"wrote {file}\n"
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    assert written.count("http") == 1
    assert "var(" not in written
    classes = {word for element in picture.iter() for word in element.get("class", "").split()}
    assert all(f".{word}" in written for word in classes)
    starts = [float(rect.get("x")) for rect in picture.iter("{http://www.w3.org/2000/svg}rect")]
    assert max(starts) < float(picture.get("width"))


def test_the_page_needs_nothing_else_and_shows_memory_idle_time_and_the_actions(call, tmp_path: Path) -> None:
    file = tmp_path / "page.html"

    call("show", "V-Half", "-p", 4, "-m", 8, "--memory-cap", "3,3,3,3", "--html", file)

    written = file.read_text()
    assert not [outside for outside in ("http://", "https://", "url(", "@import") if outside in written]
    assert "prefers-color-scheme: dark" in written
    pictures = [ET.fromstring(f"<svg{rest.split('</svg>')[0]}</svg>") for rest in written.split("<svg")[1:]]
    assert [picture.get("aria-label") for picture in pictures] == [
        "Timeline of one step",
        "Activations that each rank holds over the step",
        "Where each rank's time goes",
    ]
    assert [text.text for text in pictures[1].iter("text")] == [
        "3",
        "rank 0",
        "3",
        "rank 1",
        "3",
        "rank 2",
        "3",
        "rank 3",
    ]
    assert len([line for line in pictures[1].iter("line") if line.get("class") == "cap"]) == 4
    assert "rank 3: forward 0, chunk 1, stage 4 of 8" in written
    assert render(made("V-Half", 4, 8)) in written


def test_forwards_alone_keep_no_activations(call, tmp_path: Path) -> None:
    result = call("show", "ForwardOnly", "-p", 4, "-m", 8, "--html", tmp_path / "page.html")
    (row,) = json.loads(call("compare", "-p", 4, "-m", 8, "--schedules", "ForwardOnly", "-o", "json").out)

    assert "no activations are kept" in result.out
    assert "Activations held" not in (tmp_path / "page.html").read_text()
    assert row["peak_activations"] == [0, 0, 0, 0]


@pytest.mark.parametrize("content", [f"# my own\n{SPLIT}", "0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n"])
def test_a_schedule_of_ones_own_is_read_in_either_form(call, tmp_path: Path, content: str) -> None:
    file = tmp_path / "mine"
    file.write_text(content)

    result = call("show", "custom", "--file", file)

    assert result.code == 0
    assert "2 ranks, 2 micro-batches" in result.out
    assert str(file) in result.out.replace("\n", "")
    assert len(charted(result.out)) == 2


def test_a_schedule_that_would_wait_for_ever_is_refused_by_rank_and_action(call, tmp_path: Path) -> None:
    (tmp_path / "stuck.txt").write_text(STUCK)

    result = call("show", "custom", "--file", tmp_path / "stuck.txt")

    assert (result.code, result.out) == (2, "")
    assert "rank 0 waits for ever before B0: it needs B0 of rank 1" in result.err


@pytest.mark.parametrize("written", ["zbv", "ZB-V", "zb_v", "Zb V"])
def test_case_and_dashes_of_a_name_do_not_matter(call, written: str) -> None:
    assert call("show", written, "-p", 2, "-m", 2).out.startswith("ZB-V ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "ZB-W", "-p", 4, "-m", 8], "'ZB-W' is no schedule; did you mean ZB-"),
        (["show", "quicksort", "-p", 4, "-m", 8], "'quicksort' is no schedule; there are GPipe, 1F1B,"),
        (["show", "1F1B"], "how large? Give ranks and micro-batches, as in -p 4 -m 8"),
        (["show", "1F1B", "-p", 0, "-m", 8], "-p 0: a pipeline has 1 to 1024 ranks"),
        (["show", "1F1B", "-p", 4, "-m", -1], "-m -1: a step has at least 1 micro-batch"),
        (["show", "Interleaved1F1B", "-p", 4, "-m", 8, "-v", 0], "-v 0: a rank has at least 1 chunk; leave -v out"),
        (["show", "1F1B", "-p", 4, "-m", 8, "-v", 2], "1F1B has 1 chunk on each rank, not 2; leave the number out"),
        (["show", "1F1B", "-p", 1024, "-m", 4096], "-m 4096: on 1024 stages that is more than 2,097,152 forwards"),
        (["show", "DualPipe", "-p", 3, "-m", 8], "needs an even number of ranks, not 3; use 4"),
        (["show", "PipeDream-2BW", "-p", 4, "-m", 8, "--update-interval", 0], "--update-interval 0: an update gathers"),
        (["show", "custom"], "a schedule of your own is read from a file; name it with --file"),
        (["show", "custom", "--file", "/none"], "--file /none: No such file or directory; name a file that"),
        (["show", "GPipe", "--file", "/none"], "a schedule of a file is called custom, not GPipe"),
        (["show", "1F1B", "-p", 2, "-m", 2, "--svg", "/none/a.svg"], "--svg /none/a.svg: No such file or directory"),
        (["compare", "-p", 4, "-m", 8, "--forward", "1,2"], "--forward 1,2: 2 numbers for 4 ranks; give one for all"),
        (["compare", "-p", 4, "-m", 8, "--comm", "-1"], "--comm: -1 must not be negative"),
        (["compare", "-p", 4, "-m", 8, "--forward", "nan"], "--forward: 'nan' is no number; write one like 18.5"),
        (["compare", "-p", 4, "-m", 8, "--memory-cap", 0], "--memory-cap: 0 must be above 0"),
        (["compare", "-p", 4, "-m", 8, "--slowdown", 0], "--slowdown: 0 must be above 0"),
        (["compare", "-p", 4, "-m", 8, "--schedules", ","], "--schedules: names nothing"),
        (["compare", "-p", 4, "-m", 8, "--schedules", "1F1B,custom"], "is drawn by `schedule show custom --file FILE`"),
        (["compare", "-p", 3, "-m", 8, "--schedules", "DualPipe"], "DualPipe: DualPipe runs from both ends"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_value_rule_and_way_out(call, arguments: list[object], said: str) -> None:
    result = call(*arguments)

    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert said in result.err


def test_work_that_takes_no_time_at_all_is_refused(call) -> None:
    nothing = ("--forward", 0, "--backward-input", 0, "--backward-weight", 0)

    assert "let some work take time" in call("compare", "-p", 2, "-m", 2, *nothing).err


def test_a_file_whose_sizes_are_others_than_asked_for_is_refused(call, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(SPLIT)

    result = call("show", "custom", "--file", tmp_path / "mine.txt", "-p", 3)

    assert result.code == 2
    assert result.err.endswith("mine.txt has 2 ranks; leave -p out\n")


def test_a_file_that_is_no_text_is_refused(call, tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(b"\xff\xfe\x00")

    result = call("show", "custom", "--file", tmp_path / "noise")

    assert result.code == 2
    assert "is no text" in result.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("1F1B", "--vertical-sync"),
            "--vertical-sync: 1F1B keeps no older weights to agree on; it goes with PipeDream",
        ),
        (("1F1B", "--update-interval", "2"), "--update-interval 2: 1F1B updates once a step; leave it out"),
        (
            ("1F1B", "--width", "90", "-o", "csv"),
            "--width 90: is of the chart, and -o csv prints none; give one of them",
        ),
    ],
    ids=str,
)
def test_an_option_that_would_do_nothing_is_refused(call, arguments, said: str) -> None:
    result = call("show", *arguments, "-p", 2, "-m", 4)

    assert (result.code, result.err) == (2, f"error: {said}\n")


def test_a_schedule_of_a_file_says_itself_how_many_chunks_it_has(call, tmp_path) -> None:
    (tmp_path / "own.txt").write_text("F0 B0\n")

    result = call("show", "custom", "--file", tmp_path / "own.txt", "-v", 2)

    assert (result.code, result.err) == (
        2,
        "error: -v 2: a schedule of a file says itself how many chunks it has; leave it out\n",
    )
