"""The trainer's command line: run a rank, profile layers, sample text, see to checkpoints, or prepare data."""

import argparse
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NoReturn

from pipelinejob.base import names
from pipelinejob.base.errors import PipelineJobError
from pipelinejob.contract.plan import Plan
from pipelinejob.contract.progress import ExitCode
from pipelinejob.spec.job import Precision
from pipelinejob_trainer.base.errors import StoppedError, UserError
from pipelinejob_trainer.checkpoint import command as checkpoints_command
from pipelinejob_trainer.data.prepare import command as data_command
from pipelinejob_trainer.process.config import (
    Config,
    check_place,
    read_config,
    read_plan,
    read_tensor_rank,
    read_termination_log,
    read_trained,
    silence_profiler,
)
from pipelinejob_trainer.process.hang import HangWatch
from pipelinejob_trainer.process.http_server import Ear, serve
from pipelinejob_trainer.process.late_rank import await_rank
from pipelinejob_trainer.process.signals import StopRequest
from pipelinejob_trainer.process.spare import await_place, await_rank_of_another
from pipelinejob_trainer.process.stage_status import StageStatus
from pipelinejob_trainer.process.tensor_ranks import supervise
from pipelinejob_trainer.process.termination import ProcessExit
from pipelinejob_trainer.profile.workers import Worker, end_with_parent, first_worker, other_workers
from pipelinejob_trainer.recovery.station import Station

# torch takes seconds to import: what needs it is imported by the command that does, once /healthz
# answers.


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; the process ends here."""
    options = _parser().parse_args(arguments)
    options.command(options)


def _run(_: argparse.Namespace) -> NoReturn:
    process_exit = ProcessExit(read_termination_log())
    process_exit.intercept_os_exit()
    try:
        variables = await_rank_of_another(await_rank(process_exit), process_exit, warm_up=_warm_up)
        config, tensor = read_config(variables), read_tensor_rank(variables)
        plan = read_plan(config.plan)
        check_place(config, plan)
        if tensor is None and plan.parallelism.tensor > 1:
            supervise(config, plan.parallelism.tensor, variables, process_exit)
        if tensor is not None:
            _end_with_supervisor()
        status = StageStatus(
            plan, stage=config.stage, replica=config.replica, attempt=config.attempt, tensor=config.tensor
        )
    except BaseException as error:  # noqa: BLE001  # where errors become exit codes
        process_exit.end_with_error(error, step=0)
    try:
        (_train if plan.serving is None else _serve)(config, plan, status, process_exit)
    except BaseException as error:  # noqa: BLE001  # as above
        process_exit.end_with_error(error, step=status.step)
    what = f"all {plan.training.steps} steps are done" if plan.serving is None else "all requests are answered"
    process_exit.end(ExitCode.OK, "Completed", what, step=status.step)


def _import_all() -> None:
    """Do beforehand what takes a stage's start."""
    from pipelinejob_trainer.training import recovering  # noqa: F401, PLC0415  # torch, see above


def _warm_up(file: Path) -> None:
    """Do beforehand what takes the start of a stage of this plan, whichever stage it is."""
    plan = read_plan(file)
    _import_all()
    if plan.model.hugging_face is not None:
        import transformers  # noqa: F401, PLC0415  # as above


def _spare(options: argparse.Namespace) -> NoReturn:
    import torch  # noqa: PLC0415  # what takes a stage's start is done beforehand here

    _import_all()
    await_place()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    _run(options)


def _train(config: Config, plan: Plan, status: StageStatus, process_exit: ProcessExit) -> None:
    end_unsaved = _end_unsaved if plan.recovery is None else _leave_unsaved
    stop_request = StopRequest(grace_s=config.grace_s, on_overdue=lambda: end_unsaved(config, status, process_exit))
    stop_request.listen()
    HangWatch(status.unhealthy_reason, status.describe_wait, tell=status.add_stacks).start()
    if plan.recovery is not None:
        _train_with_recovery(config, plan, status, stop_request)
        return
    serve(status, config.metrics_port)

    from pipelinejob_trainer.training import loop  # noqa: PLC0415  # torch, see above
    from pipelinejob_trainer.training.membership import join, leave, watch_over  # noqa: PLC0415  # as above
    from pipelinejob_trainer.training.preparation import Preparation  # noqa: PLC0415  # as above

    prepared = Preparation(config, plan)
    membership = join(config, prepared.rank)
    liveness = watch_over(membership, on_lost=lambda rank: _end_without_peer(rank, plan, status, process_exit))
    stop_request.start_honouring()
    try:
        loop.run(prepared, membership, status, stop_request)
    except StoppedError:
        leave(membership, liveness)
        raise
    except BaseException:
        liveness.give_up()
        raise
    leave(membership, liveness)


def _serve(config: Config, plan: Plan, status: StageStatus, process_exit: ProcessExit) -> None:
    stop_request = StopRequest(grace_s=config.grace_s, on_overdue=lambda: _end_unsaved(config, status, process_exit))
    stop_request.listen()
    serve(status, config.metrics_port)

    from pipelinejob_trainer.serving.command import serve_rank  # noqa: PLC0415  # torch, see above

    stop_request.start_honouring()
    serve_rank(config, plan, status, stop_request.is_set)


def _train_with_recovery(config: Config, plan: Plan, status: StageStatus, stop_request: StopRequest) -> None:
    if config.token is None:
        raise UserError(
            "NoToken",
            f"{names.ENV_TOKEN} is not set, by which the operator is known; set it to any secret, and let the operator "
            "and the trainer be of the same version",
        )
    rank = config.replica * plan.parallelism.pipeline + config.stage
    station = Station(job=f"{config.namespace}/{config.job}", attempt=config.attempt, rank=rank)
    status.listen(station.port)
    # At once, so that the operator, which asks again soon, does not take this rank for one that
    # still waits.
    ear = Ear(hear=lambda body: status.hear(station.hear(body)), token=config.token)
    serve(status, config.metrics_port, ear=ear)

    from pipelinejob_trainer.training.preparation import Preparation  # noqa: PLC0415  # torch, see above
    from pipelinejob_trainer.training.recovering import Recovering  # noqa: PLC0415  # as above

    # A further stage that the plan does not have yet is told the plan that has it.
    prepared = Preparation(config, plan) if config.stage < plan.parallelism.pipeline else None
    Recovering(config, plan, station, status, stop_request).run(prepared)
    station.close()


def _end_with_supervisor() -> None:
    """End when the process does that started this one: its end of our standard input closes then."""

    def wait() -> None:
        sys.stdin.buffer.read()
        os.kill(os.getpid(), signal.SIGKILL)  # nobody reads what this one writes any more

    threading.Thread(target=wait, name="supervisor", daemon=True).start()


def _end_unsaved(config: Config, status: StageStatus, process_exit: ProcessExit) -> NoReturn:
    process_exit.end(
        ExitCode.STOPPED,
        "Stopped",
        f"asked to stop; no step ended within the {config.grace_s:g} s of grace, so nothing newer than the last"
        " checkpoint was saved"
        if status.is_ready()
        else "asked to stop before the first step; there was nothing to save",
        step=status.step,
    )


def _leave_unsaved(config: Config, status: StageStatus, process_exit: ProcessExit) -> NoReturn:
    """End alone, with recovery in place: the others take it for lost, as if this process had been killed."""
    process_exit.end(
        ExitCode.LEFT,
        "GraceTooShort",
        f"asked to stop; no step ended within the {config.grace_s:g} s of grace, so nothing was handed over: the others"
        " go back to the last step border in memory; let terminationGracePeriodSeconds of spec.template be longer than"
        " a step takes"
        if status.is_ready()
        else "asked to stop before its first step; there was nothing to hand over",
        step=status.step,
    )


def _end_without_peer(rank: int, plan: Plan, status: StageStatus, process_exit: ProcessExit) -> NoReturn:
    from pipelinejob_trainer.communication.process_groups import who  # noqa: PLC0415  # torch, see above

    lost = who(rank, pipeline=plan.parallelism.pipeline, tensor=plan.parallelism.tensor)
    process_exit.end(ExitCode.PEER_LOST, "PeerLost", f"{lost} went away or is silent", step=status.step)


def _profile(options: argparse.Namespace) -> None:
    _command(lambda: _measure(options.plan, options.worker))


def _measure(file: Path, given: Worker | None) -> None:
    silence_profiler()
    plan = read_plan(file)
    worker = given or first_worker(plan)
    if given is not None:
        end_with_parent()
    with nullcontext() if worker is None or given else other_workers(file, worker):
        from pipelinejob_trainer.profile.profile import main as profile  # noqa: PLC0415  # torch, see above

        profile(plan, worker)


def _sample(options: argparse.Namespace) -> None:
    from pipelinejob_trainer.sample import Request  # noqa: PLC0415  # torch, see above
    from pipelinejob_trainer.sample import main as sample  # noqa: PLC0415  # as above

    _command(
        lambda: sample(
            read_plan(options.plan),
            options.checkpoints,
            Request(prompt=options.prompt, tokens=options.tokens, seed=options.seed, temperature=options.temperature),
        )
    )


def _export(options: argparse.Namespace) -> None:
    import torch  # noqa: PLC0415  # as above

    from pipelinejob_trainer.export.export import main as export  # noqa: PLC0415  # as above
    from pipelinejob_trainer.export.request import Request  # noqa: PLC0415  # as above

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(ExitCode.STOPPED))  # so that nothing half-written is left behind
    request = Request(
        checkpoint=options.checkpoint,
        to=options.to,
        adapters_only=options.adapters_only,
        dtype=torch.bfloat16 if options.dtype is Precision.BF16 else torch.float32,
        shard_bytes=options.shard_bytes,
    )
    _command(lambda: export(read_trained(options.trained), request))


def _command(work: Callable[[], None]) -> None:
    try:
        work()
    except PipelineJobError as error:
        sys.stderr.write(f"{error}\n")
        code = ExitCode.USER_ERROR if isinstance(error, UserError) else ExitCode.FAILURE
        sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pipelinejob-trainer", description=__doc__)
    commands = parser.add_subparsers(title="commands", required=True)

    run = commands.add_parser("run", help="run this rank, as the environment says; what a stage's pod does")
    run.set_defaults(command=_run)

    spare = commands.add_parser("spare", help="import what a stage needs, and wait on stdin for a place to take")
    spare.set_defaults(command=_spare)

    profile = commands.add_parser("profile", help="measure what each layer costs here; prints a Profile as JSON")
    profile.add_argument("--plan", type=Path, required=True, help="the plan, as JSON")
    profile.add_argument("--worker", type=Worker.parse, help=argparse.SUPPRESS)  # for the processes that it starts
    profile.set_defaults(command=_profile)

    sample = commands.add_parser("sample", help="generate text from the newest checkpoint, in one process")
    sample.add_argument("--plan", type=Path, required=True, help="the plan, as JSON")
    sample.add_argument("--checkpoints", type=Path, required=True, help="the folder of the checkpoints")
    sample.add_argument("--prompt", default="", help="what to go on from")
    sample.add_argument("--tokens", type=_count, default=200, help="how many tokens to generate")
    sample.add_argument("--seed", type=int, default=0, help="of the choice among likely tokens")
    sample.add_argument("--temperature", type=_temperature, default=0.8, help="0: always the likeliest token")
    sample.set_defaults(command=_sample)

    export = commands.add_parser("export", help="write a checkpoint as a folder that transformers or PEFT loads")
    export.add_argument("--trained", type=Path, required=True, help="model, data and training of the job, as JSON")
    export.add_argument("--checkpoint", type=Path, required=True, help="its folder, or that of all checkpoints")
    export.add_argument("--to", type=Path, required=True, help="the folder to write, which must not exist")
    export.add_argument("--adapters-only", action="store_true", help="write adapters alone, in PEFT's format")
    export.add_argument("--dtype", type=Precision, default=Precision.FP32, help="of what is written: fp32 or bf16")
    export.add_argument("--shard-bytes", type=_count, default=5_000_000_000, help="the most bytes of one file")
    export.set_defaults(command=_export)

    data_command.add_to(commands)
    checkpoints_command.add_to(commands)
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is too few; use 1 or more")
    return value


def _temperature(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text} is no temperature; use 0 or more")
    return value
