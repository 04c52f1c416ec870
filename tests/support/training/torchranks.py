"""A job's ranks played by torch's own runtime; in a file of its own, as processes must find it by name."""

from pipelinejob_trainer.models.part import build_part
from support.training.pipelines import CPU, Job, Outcome, keep_gradients, merged, run_processes
from support.training.torch_runtime import TorchRuntime


def torch_rank(rank: int, job: Job) -> Outcome:
    """Run one rank of a single replica."""
    schedule, cut = job.built, job.cut()
    part = build_part(
        job.model, job.data, stretches=[cut[each.stage] for each in schedule.held_by(rank)], seed=job.seed
    )
    runtime = TorchRuntime(
        schedule=schedule,
        rank=rank,
        chunks=part.chunks,
        batches=job.dataset(),
        rows=job.rows,
        seed=job.seed,
        device=CPU,
        precision=job.precision,
    )
    outcome = Outcome()
    for step in range(1, job.steps + 1):
        outcome.losses.append(float(runtime.run_step(step).loss_sum))
        keep_gradients(part, outcome)
    return outcome


def run_torch(job: Job) -> Outcome:
    """Run the job as one process a rank."""
    outcomes = run_processes(torch_rank, job, world=job.stages)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return merged(outcomes)
