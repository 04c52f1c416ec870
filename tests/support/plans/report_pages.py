"""The summary of a made-up run, and its page."""

from pipelinejob.base.timeline import Timeline
from pipelinejob_operator.report.pages.run import run_page
from pipelinejob_operator.report.summary import RunSummary, summarise
from support.plans import run_samples


def summary(**changes: object) -> RunSummary:
    made = summarise(
        run_samples.plan(),
        status=run_samples.status(),
        steps=run_samples.steps(),
        predicted=run_samples.predicted(),
        measured=run_samples.measured(),
    )
    return made.model_copy(update=changes)


def page(made: RunSummary | None = None, **changes: object) -> str:
    content = {
        "steps": run_samples.steps(),
        "predicted": run_samples.predicted(),
        "measured": run_samples.measured(),
        "schedule": run_samples.schedule(),
    }
    return run_page(made or summary(), **{**content, **changes})


NOTHING = Timeline(source="measured", stages=())
