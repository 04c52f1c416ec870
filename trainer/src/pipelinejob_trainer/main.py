"""The trainer's command line: run a rank of a plan, profile a plan's layers, or sample from a checkpoint."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NoReturn

from pipelinejob.errors import PipelineJobError
from pipelinejob.plan import Plan
from pipelinejob.progress import ExitCode
from pipelinejob_trainer.account import Account
from pipelinejob_trainer.beside import Seat, end_with_parent, first_seat, others_started
from pipelinejob_trainer.config import Config, read_config, read_plan, read_termination_log, silence_profiler
from pipelinejob_trainer.errors import StoppedError, UserError
from pipelinejob_trainer.httpserver import serve
from pipelinejob_trainer.lastwords import LastWords
from pipelinejob_trainer.number import await_number
from pipelinejob_trainer.signals import StopWish

# torch takes seconds to import: what needs it is imported by the command that does, once /healthz answers.


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; the process ends here."""
    options = _parser().parse_args(arguments)
    options.command(options)


def _run(_: argparse.Namespace) -> NoReturn:
    words = LastWords(read_termination_log())
    try:
        config = read_config(await_number(words))
        plan = read_plan(config.plan)
        account = Account(plan, stage=config.stage, replica=config.replica, attempt=config.attempt)
    except BaseException as error:  # noqa: BLE001  # this is the border where errors become exit codes
        words.leave_because(error, step=0)
    try:
        _train(config, plan, account, words)
    except BaseException as error:  # noqa: BLE001  # as above
        words.leave_because(error, step=account.step)
    words.leave(ExitCode.OK, "Completed", f"all {plan.training.steps} steps are done", step=account.step)


def _train(config: Config, plan: Plan, account: Account, words: LastWords) -> None:
    stop_wish = StopWish(grace_s=config.grace_s, on_overdue=lambda: _leave_unsaved(config, account, words))
    stop_wish.listen()
    serve(account, config.metrics_port)

    from pipelinejob_trainer import loop, process  # noqa: PLC0415  # torch, see above

    prepared = loop.Preparation(config, plan)
    membership = process.join(config, prepared.rank)
    liveness = process.watch_over(
        membership, on_lost=lambda rank: _leave_bereft(rank, plan.parallelism.pipeline, account, words)
    )
    stop_wish.start_honouring()
    try:
        loop.run(prepared, membership, account, stop_wish)
    except StoppedError:
        process.leave(membership, liveness)
        raise
    except BaseException:
        liveness.give_up()
        raise
    process.leave(membership, liveness)


def _leave_unsaved(config: Config, account: Account, words: LastWords) -> NoReturn:
    words.leave(
        ExitCode.STOPPED,
        "Stopped",
        f"asked to stop; no step ended within the {config.grace_s:g} s of grace, so nothing newer than the last"
        " checkpoint was saved"
        if account.is_ready()
        else "asked to stop before the first step; there was nothing to save",
        step=account.step,
    )


def _leave_bereft(rank: int, num_stages: int, account: Account, words: LastWords) -> NoReturn:
    replica, stage = divmod(rank, num_stages)
    words.leave(
        ExitCode.PEER_LOST, "PeerLost", f"stage {stage} of replica {replica} went away or is silent", step=account.step
    )


def _profile(options: argparse.Namespace) -> None:
    _command(lambda: _measure(options.plan, options.beside))


def _measure(file: Path, given: Seat | None) -> None:
    silence_profiler()
    plan = read_plan(file)
    seat = given or first_seat(plan)
    if given is not None:
        end_with_parent()
    with nullcontext() if seat is None or given else others_started(file, seat):
        from pipelinejob_trainer.profile import main as profile  # noqa: PLC0415  # torch, see above

        profile(plan, seat)


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

    profile = commands.add_parser("profile", help="measure what each layer costs here; prints a Profile as JSON")
    profile.add_argument("--plan", type=Path, required=True, help="the plan, as JSON")
    profile.add_argument("--beside", type=Seat.parse, help=argparse.SUPPRESS)  # for the processes that it starts
    profile.set_defaults(command=_profile)

    sample = commands.add_parser("sample", help="generate text from the newest checkpoint, in one process")
    sample.add_argument("--plan", type=Path, required=True, help="the plan, as JSON")
    sample.add_argument("--checkpoints", type=Path, required=True, help="the folder of the checkpoints")
    sample.add_argument("--prompt", default="", help="what to go on from")
    sample.add_argument("--tokens", type=_count, default=200, help="how many tokens to generate")
    sample.add_argument("--seed", type=int, default=0, help="of the choice among likely tokens")
    sample.add_argument("--temperature", type=_temperature, default=0.8, help="0: always the likeliest token")
    sample.set_defaults(command=_sample)
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
