"""torch's CSV form: read, written, and torch's own schedules read from it."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelinejob.scheduler.catalogue import FAMILIES, build
from pipelinejob.schedules import torch_csv
from pipelinejob.schedules.actions import ScheduleError
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.setting import Setting
from pipelinejob.schedules.text import parse, render
from pipelinejob.schedules.validate import validate


def test_a_schedule_is_written_stage_first():
    schedule = parse("route 0 1 1 0\nF0 F0.1 I0.1 W0.1 B0\nF0 F0.1 B0.1 B0")

    assert torch_csv.write(schedule) == "0F0,3F0,3I0,3W0,0B0\n1F0,2F0,2B0,1B0\n"


def test_blanks_pairs_and_what_torch_adds_are_read_for_what_they_say():
    text = "0F0,,0SEND_F0,(0F1;0B0)OVERLAP_F_B,0UNSHARD,0B1,0REDUCE_GRAD\n1RECV_F0,1F0,1B0,1F1,1B1,1WAIT_SEND_B1\n"

    assert render(torch_csv.read(text)) == "F0 F1 B0 B1\nF0 B0 F1 B1\n"


@pytest.mark.parametrize("name", [name for name in FAMILIES if name is not ScheduleName.AUTO])  # test_auto.py
@settings(deadline=None)  # V-shaped lists are made by trying
@given(p=st.integers(1, 5), m=st.integers(1, 8))
def test_what_was_written_reads_back(name, p, m):
    try:
        schedule = build(name, Setting(num_ranks=p, num_micro_batches=m))
        text = torch_csv.write(schedule)
    except ScheduleError:
        return  # does not exist for these sizes, or torch has no words for it

    assert torch_csv.read(text) == schedule


@pytest.mark.parametrize("name", ["ScheduleInterleaved1F1B", "ScheduleInterleavedZeroBubble", "ScheduleZBVZeroBubble"])
def test_torchs_own_schedules_are_read_and_can_be_played(name):
    visualizer = pytest.importorskip("torch.distributed.pipelining._schedule_visualizer")
    schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    order = visualizer.get_schedule_ops(getattr(schedules, name), 4, 8, num_stages_per_rank=2)
    rows = io.StringIO()
    csv.writer(rows).writerows([["" if action is None else action for action in row] for row in order])

    schedule = torch_csv.read(rows.getvalue())

    validate(schedule)
    assert (schedule.num_ranks, schedule.num_stages, schedule.num_micro_batches) == (4, 8, 8)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("\n", "no rank has a line; write one line of actions for each rank, as in 0F0,0B0"),
        ("0F0,F1", "line 1: 'F1' is no action of torch's; write stage, F, B, I or W, micro-batch"),
        ("0F0,0B0\n0F1", "line 2: stage 0 stands on line 1 already"),
        ("0F0,0B0\n2F0", "stage 1 stands on no line; stages count from 0 without a gap"),
    ],
)
def test_what_is_no_such_form_is_refused(text, problem):
    with pytest.raises(ScheduleError) as error:
        torch_csv.read(text)

    assert str(error.value) == problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("route 0 1: 0\nroute 1 0: 1\nF0 F1 B1 B0\nF1 F0 B0 B1", "torch's CSV knows one rank for each stage"),
        ("F0@0 B0@0 O1", "torch's CSV knows no updates within a step"),
    ],
)
def test_what_torch_has_no_words_for_is_refused(text, problem):
    with pytest.raises(ScheduleError, match=problem):
        torch_csv.write(parse(text))
