"""What a run leaves in its folder when it ends: summary.json, report.html, trace.json."""

from pipelinejob.base.timeline import Timeline
from pipelinejob.contract.plan import Plan
from pipelinejob.costs.layers import Profile
from pipelinejob.planning.planner import predicted_timeline
from pipelinejob.planning.playing import schedule_of
from pipelinejob.spec.job import Device
from pipelinejob.spec.status import PipelineJobStatus
from pipelinejob_operator.local.runfolder import RunFolder
from pipelinejob_operator.report.pages.run import run_page
from pipelinejob_operator.report.summary import RunSummary, summarise
from pipelinejob_operator.report.trace import chrome_trace


def write_results(
    folder: RunFolder, *, plan: Plan, profile: Profile, status: PipelineJobStatus, sample: str | None
) -> RunSummary:
    """Read what the stages wrote, lay it beside the plan, and write the three files."""
    steps, measured = folder.read_steps(), _of_plan(folder.read_timelines(), plan)
    predicted, schedule = predicted_timeline(plan, profile), schedule_of(plan)
    summary = summarise(
        plan,
        status=status,
        steps=steps,
        predicted=predicted,
        measured=measured,
        process_bytes=0 if plan.device is Device.GPU else profile.process_bytes,  # a GPU's memory is for tensors alone
    )
    if not plan.prediction.is_absolute:
        predicted = Timeline(source="predicted", stages=())  # its seconds would mean nothing
    report = run_page(summary, steps=steps, predicted=predicted, measured=measured, schedule=schedule, sample=sample)
    folder.write(folder.summary, summary.model_dump_json(by_alias=True, indent=2))
    folder.write(folder.report, report)
    folder.write(folder.trace, chrome_trace(predicted, measured, schedule))
    return summary


def _of_plan(measured: Timeline, plan: Plan) -> Timeline:
    """Leave out what replicas and stages measured that the run has not any more."""
    degrees = plan.parallelism
    stages = tuple(each for each in measured.stages if each.replica < degrees.data and each.stage < degrees.pipeline)
    return Timeline(source=measured.source, stages=stages)
