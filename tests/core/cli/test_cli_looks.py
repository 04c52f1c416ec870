"""How a report looks: colours that all eyes tell apart, numbers that read well, ticks that are round."""

import re
import xml.etree.ElementTree as ET

import pytest

from pipelinejob_operator.report.looks import LOOKS, style_sheet
from pipelinejob_operator.report.marks import row
from pipelinejob_operator.report.numbers import plain, seconds, ticks
from pipelinejob_operator.report.pictures.gantt import Panel, gantt
from pipelinejob_operator.report.run_view import layers
from support.plans import run_samples
from support.plans.report_pages import page


def test_all_that_is_drawn_has_a_colour_and_no_two_kinds_of_work_look_alike_to_colour_blind_eyes() -> None:
    sheet = style_sheet()

    assert all(f".{look.key}{{fill:#" in sheet for look in LOOKS.values())
    colours = [look.shaded(shade) for look in LOOKS.values() if look.letter for shade in (0, 1)]
    apart = {(a, b): seen_apart(a, b) for a in colours for b in colours if a < b}
    assert min(apart.values()) > 6, min(apart, key=apart.__getitem__)


def seen_apart(one: str, other: str) -> float:
    """Return the distance of two colours (OKLab, hundredths; 2 is just noticeable) to whom tells them apart least."""
    return min(
        100 * sum((a - b) ** 2 for a, b in zip(oklab(eye, one), oklab(eye, other), strict=True)) ** 0.5
        for eye in (NORMAL, PROTANOPIA, DEUTERANOPIA, TRITANOPIA)
    )


Matrix = tuple[tuple[float, float, float], ...]
NORMAL: Matrix = ((1, 0, 0), (0, 1, 0), (0, 0, 1))


# Machado, Oliveira and Fernandes 2009, at full severity.
PROTANOPIA: Matrix = ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998))
DEUTERANOPIA: Matrix = (
    (0.367322, 0.860646, -0.227968),
    (0.280085, 0.672501, 0.047413),
    (-0.011820, 0.042940, 0.968881),
)
TRITANOPIA: Matrix = ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900))


# Ottosson 2020.
TO_LMS: Matrix = (
    (0.4122215, 0.5363325, 0.0514460),
    (0.2119035, 0.6806995, 0.1073970),
    (0.0883025, 0.2817188, 0.6299787),
)
TO_LAB: Matrix = (
    (0.2104543, 0.7936178, -0.0040720),
    (1.9779985, -2.4285922, 0.4505937),
    (0.0259040, 0.7827718, -0.8086758),
)


def oklab(eye: Matrix, colour: str) -> list[float]:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    light = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    seen = [min(1.0, max(0.0, value)) for value in times(eye, light)]
    return times(TO_LAB, [value ** (1 / 3) for value in times(TO_LMS, seen)])


def times(matrix: Matrix, vector: list[float]) -> list[float]:
    return [sum(a * b for a, b in zip(line, vector, strict=True)) for line in matrix]


@pytest.mark.parametrize(
    ("value", "written"),
    [(None, "–"), (0.0000042, "4 µs"), (0.0123, "12.3 ms"), (1.234, "1.23 s"), (312.4, "312 s")],
)
def test_durations_read_well(value: float | None, written: str) -> None:
    assert seconds(value) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "–"),
        (0, "0"),
        (33.0, "33"),
        (0.601, "0.601"),
        (28.5, "28.5"),
        (1310.405, "1,310.4"),
        (123456.7, "123,457"),
    ],
)
def test_times_without_a_unit_read_well(value: float | None, written: str) -> None:
    assert plain(value) == written


def test_several_stretches_of_layers_are_all_named() -> None:
    assert layers([(0, 3)]) == "0-2"
    assert layers([(0, 3), (9, 10)]) == "0-2, 9"


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 0.152, 8) == [0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.14]
    assert ticks(3, 3) == [3]


def test_waiting_is_thin_wherever_it_is_drawn_so_that_no_colour_alone_tells_it_from_work() -> None:
    written = page()

    assert '<i class="forward"></i>' in written
    assert '<i class="warm-up thin"></i>' in written
    bars = written.split('aria-label="Where each stage&#x27;s time went, measured"')[1].split("</svg>")[0]
    heights = {
        kind: {float(each) for each in re.findall(rf'<rect class="{kind}"[^>]*height="([\d.]+)"', bars)}
        for kind in ("forward", "warm-up")
    }
    assert heights == {"forward": {24.0}, "warm-up": {14.0}}


def test_labels_of_one_panel_are_all_written_in_the_same_form() -> None:
    def labels(width: float) -> set[str]:
        rows = tuple(
            row(stage, "rank", write=plain, schedule=run_samples.schedule("Interleaved1F1B"))
            for stage in run_samples.predicted("Interleaved1F1B").stages
        )
        span_s = max(each.end_s for each in rows)
        drawn = gantt([Panel(rows=rows)], span_s=span_s, label="one", write=plain, width=width)
        return {text.text or "" for text in ET.fromstring(drawn).iter("text") if (text.text or "")[:1] in {"F", "B"}}

    assert {"F0", "F0.1", "B7.1"} <= labels(4000)
    assert not [label for label in labels(1000) if "." in label]
