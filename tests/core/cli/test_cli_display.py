"""What a person sees while a job runs, and when it has ended."""

import io

import pytest
from rich.console import Console

from pipelinejob.contract.progress import Phase, Progress
from pipelinejob.spec.reported.conditions import State
from pipelinejob.spec.status import PipelineJobStatus
from pipelinejob_operator.cluster import Event
from pipelinejob_operator.local.display import LineDisplay, LiveDisplay, display_for, picture, print_summary
from pipelinejob_operator.report.run_view import Pace, RunView, layers, view
from pipelinejob_operator.report.summary import summarise
from support.plans import run_samples


def accounts(step: int) -> list[Progress]:
    return [
        Progress(
            replica=0, stage=stage, attempt=1, phase=Phase.TRAINING, step=step + stage, loss=2.5, tokens_per_s=27000,
            bubble_ratio=0.28, utilization_ratio=0.7, memory_bytes=2**30,
        )
        for stage in range(4)
    ]  # fmt: skip


def seen(step: int, *, pace: Pace | None = None, now: float = 0.0) -> RunView:
    status = PipelineJobStatus(state=State.TRAINING)
    return view(run_samples.plan(), status, accounts(step), pace=pace or Pace(), now=now)


def printed(*renderables: object) -> str:
    console = Console(file=io.StringIO(), width=100)
    for renderable in renderables:
        console.print(renderable)
    return console.file.getvalue()


def test_a_run_is_as_far_as_the_stage_furthest_behind() -> None:
    assert seen(7).step == 7


def test_the_time_left_follows_from_the_pace_since_the_first_step() -> None:
    pace = Pace()

    assert seen(10, pace=pace, now=100.0).eta_s is None
    assert seen(20, pace=pace, now=105.0).eta_s == pytest.approx(280 * 0.5)


def test_before_the_first_account_every_stage_is_starting_and_the_reason_is_shown() -> None:
    status = PipelineJobStatus.model_validate(
        {
            "state": "Starting",
            "conditions": [
                {
                    "type": "Ready", "status": "False", "reason": "Starting", "message": "the stages are coming up",
                    "lastTransitionTime": "2026-11-21T00:00:00Z",
                }
            ],
        }
    )  # fmt: skip

    shown = printed(picture(view(run_samples.plan(), status, [], pace=Pace(), now=0.0)))

    assert "the stages are coming up" in shown
    assert shown.count("Starting") == 5


def test_the_picture_shows_step_loss_speed_and_each_stages_bubble_beside_its_prediction() -> None:
    shown = printed(picture(seen(7)))

    assert all(text in shown for text in ("step 7/300", "loss 2.5000", "27,000 tokens/s", "28.0%", "27.3%", "0-2"))


def test_lines_come_with_the_first_step_and_then_now_and_again() -> None:
    now = [0.0]
    console = Console(file=io.StringIO(), width=200)
    display = LineDisplay(console, clock=lambda: now[0])

    for moment, step in ((0, 0), (1, 1), (2, 2), (11.5, 12), (12, 13)):
        now[0] = moment
        display.update(seen(step))

    lines = console.file.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/300", "12/300"]


def test_markup_in_an_event_is_text() -> None:
    console = Console(file=io.StringIO(), width=200)

    LineDisplay(console).event(Event(type="Warning", reason="StageFailed", message="KeyError: [bold]"))

    assert console.file.getvalue() == "! StageFailed: KeyError: [bold]\n"


def test_a_terminal_gets_a_live_picture_and_a_pipe_gets_lines() -> None:
    assert isinstance(display_for(Console(force_terminal=True, file=io.StringIO())), LiveDisplay)
    assert isinstance(display_for(Console(file=io.StringIO())), LineDisplay)


def test_the_summary_fits_eighty_columns_with_every_number_whole() -> None:
    made = summarise(
        run_samples.plan(),
        status=run_samples.status(),
        steps=run_samples.steps(),
        predicted=run_samples.predicted(),
        measured=run_samples.measured(),
    )
    console = Console(file=io.StringIO(), width=80)

    print_summary(console, made)

    shown = console.file.getvalue()
    assert "…" not in shown
    assert "(27.3%)" in shown
    assert "predicted 134 ms" in shown


@pytest.mark.parametrize(("chunks", "written"), [(((3, 6),), "3-5"), (((3, 4),), "3"), (((0, 2), (8, 10)), "0-1, 8-9")])
def test_layers_are_named_from_first_to_last(chunks: tuple[tuple[int, int], ...], written: str) -> None:
    assert layers(chunks) == written
