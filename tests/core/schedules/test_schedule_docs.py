"""docs/schedules.md says of schedules what they are: its pictures, its example and its table are held against them."""

import re
from pathlib import Path

import pytest
import yaml

from pipelinejob.scheduler.catalogue import build
from pipelinejob.schedules.costs import equal_shares
from pipelinejob.schedules.memory import peak_activations
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.setting import Setting
from pipelinejob.schedules.text import parse
from pipelinejob.schedules.validate import validate
from pipelinejob.simulation.simulate import simulate
from support.plans.schedule_page import PICTURES_OF, undocumented

PAGE = (Path(__file__).parents[3] / "docs" / "schedules.md").read_text()
PICTURES = PICTURES_OF.findall(PAGE)
ROWS = re.findall(
    r"^\| (\S+?)(?:, v = (\d+))? \| (\.\d+)(?: \((\S+)\))? \| (\.\d+)(?: \((\S+)\))? \| ([\d.]+)", PAGE, re.MULTILINE
)
RATIOS = ((1.0, 1.0, 1.0), (18.5, 18.1, 9.3))


def made(name, p, m, v):
    num_chunks = int(v) if v else None
    return build(ScheduleName(name), Setting(num_ranks=int(p), num_micro_batches=int(m), num_chunks=num_chunks))


@pytest.mark.parametrize(("name", "p", "m", "v", "picture"), PICTURES, ids=lambda value: value[:12])
def test_a_picture_shows_the_schedule(name, p, m, v, picture):
    drawn = [[word for word in line.split()[2:] if word.strip(".-")] for line in picture.splitlines()]

    assert drawn == [list(map(str, actions)) for actions in made(name, p, m, v).ranks]


def test_every_schedule_has_its_place_on_the_page():
    assert undocumented(PAGE) == []


def test_no_schedule_is_on_the_page_that_does_not_exist():
    assert {name for name, *_ in PICTURES} <= set(ScheduleName)


def test_the_worked_example_can_be_played():
    example = yaml.safe_load(PAGE.partition("```yaml\n")[2].partition("```")[0])["spec"]
    schedule = parse(example["schedule"]["actions"])

    validate(schedule)
    assert schedule.num_ranks == example["parallelism"]["pipeline"]
    assert schedule.num_micro_batches == example["schedule"]["microBatches"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}-{row[1]}")
def test_the_table_side_by_side_has_the_rates_that_are_simulated(row):
    name, v, *rates, peak = row
    schedule = made(name, 8, 24, v)

    for seconds, (makespan, span) in zip(RATIOS, (rates[:2], rates[2:]), strict=True):
        costs = equal_shares(8, forward_s=seconds[0], input_s=seconds[1], weight_s=seconds[2])
        result = simulate(schedule, costs(schedule.routes))
        assert result.bubble_rate == pytest.approx(float(makespan), abs=5e-5)
        assert result.span_bubble_rate == pytest.approx(float(span or makespan), abs=5e-5)
    assert max(peak_activations(schedule)) == float(peak)


def test_the_table_side_by_side_is_found():
    assert len(ROWS) >= 15
