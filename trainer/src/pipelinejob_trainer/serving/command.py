"""A rank of a job that serves: its stage of the chain, and on the first one the HTTP front."""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from pipelinejob.contract.plan import Plan
from pipelinejob.contract.trained import Trained
from pipelinejob.serving.chunks import PassCost
from pipelinejob.serving.scheduler import Limits, Scheduler
from pipelinejob.spec.job import Model, Serving
from pipelinejob_trainer.base.errors import PeerLostError, StoppedError, UserError
from pipelinejob_trainer.export.source import open_checkpoint
from pipelinejob_trainer.process.config import Config
from pipelinejob_trainer.process.output import say
from pipelinejob_trainer.process.stage_status import StageStatus
from pipelinejob_trainer.serving.batches.batch import Batch
from pipelinejob_trainer.serving.calibration import measured_cost
from pipelinejob_trainer.serving.engine import Engine
from pipelinejob_trainer.serving.front.answering import Answering
from pipelinejob_trainer.serving.front.app import Front
from pipelinejob_trainer.serving.front.metrics import Metrics
from pipelinejob_trainer.serving.front.server import LOOK_S, Ending, listening, run_front
from pipelinejob_trainer.serving.front.text import Bytes, FolderTokenizer, Tokenizer
from pipelinejob_trainer.serving.later_stage import LaterStage, asked_step, tell_gone
from pipelinejob_trainer.serving.meter import Meter, check_moves, longest_pass_s
from pipelinejob_trainer.serving.stage_model import StageModel, load_stage, trusts_code
from pipelinejob_trainer.serving.trained_weights import TrainedWeights, of_step

ENV_KEYS = "PIPELINEJOB_API_KEYS"  # one or several, parted by commas or line ends; none: no key is asked for


def serve_rank(config: Config, plan: Plan, status: StageStatus, is_stopping: Callable[[], bool]) -> None:
    """Serve until all requests of a batch are answered, or until asked to stop, which raises StoppedError.

    Raises UserError for a model that cannot be served, a port that is taken, or a batch's files.
    """
    serving = plan.serving
    assert serving is not None, "a job that serves"
    batch = None
    if serving.batch is not None and config.stage == 0:
        batch = Batch(Path(serving.batch.input), Path(serving.batch.output))
        if not batch.num_left:
            return
    trained = _trained(config, plan, serving, is_stopping) if serving.from_checkpoint else None
    weights = f"step {trained.step}" if trained else ""
    stage, cost = _load(plan, config.stage, serving, trained)
    if config.stage:
        later = LaterStage(
            stage=config.stage,
            front=config.rendezvous,
            compute=stage.forward,
            meter=Meter(),
            cost=cost,
            weights=weights,
            longest_pass_s=longest_pass_s(cost, Limits.of(serving, num_stages=plan.parallelism.pipeline)),
        )
        _serve_later(later, status, is_stopping)
    else:
        engine, answering = _answering(config, plan, stage, cost=cost, weights=weights)
        status.add_metrics(answering.metrics.text)
        if batch is not None:
            _run_batch(batch, answering, engine, status, is_stopping)
            return
        ending = Ending(leaving_s=config.leaving_s, grace_s=config.grace_s)
        with listening(config.front_port or serving.port) as listener:
            front = Front(answering, keys=read_keys())
            run_front(front, engine, listener, status, is_stopping=is_stopping, ending=ending)
    raise StoppedError("asked to stop")


def read_keys(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return the keys that clients may use.

    Raises UserError where the variable is there and holds none.
    """
    text = (os.environ if environment is None else environment).get(ENV_KEYS)
    if text is None:
        return ()
    keys = tuple(each.strip() for each in text.replace("\n", ",").split(",") if each.strip())
    if not keys:
        raise UserError("BadEnvironment", f"{ENV_KEYS} is set and holds no key; give one, or leave it out")
    return keys


def _trained(config: Config, plan: Plan, serving: Serving, is_stopping: Callable[[], bool]) -> TrainedWeights:
    """Return the newest checkpoint's weights; a later stage takes the step that the first one has."""
    if config.stage == 0:
        checkpoint = open_checkpoint(config.checkpoints)
    else:
        step = asked_step(config.rendezvous, is_stopping)
        found = of_step(config.checkpoints, step)
        if found is None:
            tell_gone(config.rendezvous, step)
            raise PeerLostError(f"the checkpoint of step {step} is gone; the first stage takes the newest")
        checkpoint = found
    return TrainedWeights(Trained.of(plan), checkpoint, positions=serving.cache_tokens)


def _load(plan: Plan, stage: int, serving: Serving, trained: TrainedWeights | None) -> tuple[StageModel, PassCost]:
    (stretch,) = plan.stages[stage].chunks
    limits = Limits.of(serving, num_stages=plan.parallelism.pipeline)
    loaded = load_stage(
        plan.model,
        stretch,
        num_blocks=limits.num_blocks,
        block=limits.block,
        trained=trained,
        apart=limits.batch_invariant,
    )
    for remark in loaded.remarks:
        say(remark)
    say(f"stage {stage} has layers {stretch[0]} to {stretch[1] - 1}")
    cost = measured_cost(
        loaded.forward,
        limits,
        width=loaded.width if stage else None,
        longest=loaded.positions or limits.cache_tokens,
        clock=time.thread_time if plan.shares_processors else time.perf_counter,
    )
    shown = ((1, 1), (limits.group_size, 1), (1, limits.chunk_tokens))
    one, many, chunk = (f"{cost.seconds(rows=rows, past=0, new=new) * 1000:.3g} ms" for rows, new in shown)
    say(
        f"measured: a pass of one token takes {one}, one of {limits.group_size} sequences {many},"
        f" a chunk of {limits.chunk_tokens} tokens {chunk}"
    )
    return loaded, cost


def _serve_later(later: LaterStage, status: StageStatus, is_stopping: Callable[[], bool]) -> None:
    stop = threading.Event()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            later.serve(stop)
        except BaseException as error:  # noqa: BLE001 # the main thread ends the process with it
            failed.append(error)

    thread = threading.Thread(target=run, name="stage", daemon=True)
    thread.start()
    status.begin_serving(is_ready=True)
    while thread.is_alive() and not is_stopping():
        check_moves(later.meter.read(), later.longest_pass_s)
        thread.join(LOOK_S)
    stop.set()
    if failed:
        raise failed[0]


def _answering(
    config: Config, plan: Plan, stage: StageModel, *, cost: PassCost, weights: str
) -> tuple[Engine, Answering]:
    serving, num_stages = plan.serving, plan.parallelism.pipeline
    assert serving is not None, "a job that serves"
    limits = Limits.of(serving, num_stages=num_stages)
    tokenizer = _tokenizer(plan.model, serving)
    port = config.rendezvous.port
    engine = Engine(
        Scheduler(limits),
        stage.forward,
        num_stages=num_stages,
        port=port,
        cost=cost,
        weights=weights,
        processors=plan.prediction.concurrency,
        longest_pass_s=longest_pass_s(cost, limits),
    )
    answering = Answering(
        engine,
        tokenizer,
        limits,
        Metrics(engine, namespace=plan.namespace, job=plan.name),
        model=serving.model_name or plan.name,
        positions=stage.positions,
        timeout_s=None if serving.batch else float(serving.timeout_seconds),
    )
    return engine, answering


def _tokenizer(model: Model, serving: Serving) -> Tokenizer:
    if model.hugging_face is not None:
        return FolderTokenizer(Path(model.hugging_face.path), trust_remote_code=trusts_code(model))
    if serving.tokenizer is not None:
        return FolderTokenizer(Path(serving.tokenizer), field="spec.serving.tokenizer")
    return Bytes()


def _run_batch(
    batch: Batch, answering: Answering, engine: Engine, status: StageStatus, is_stopping: Callable[[], bool]
) -> None:
    """Answer a batch in a thread of its own; raise what ends it."""
    limits = engine.limits
    loop = asyncio.new_event_loop()
    work = loop.create_task(batch.answer(answering, at_once=limits.groups * limits.group_size))

    def run() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(work)

    thread = threading.Thread(target=run, name="batch", daemon=True)
    engine.start()
    thread.start()
    while thread.is_alive() and engine.error is None and not is_stopping():
        engine.check_moves()
        requests = batch.num_requests
        status.begin_serving(is_ready=engine.is_ready, answered=requests - batch.num_left, requests=requests)
        thread.join(LOOK_S)
    if thread.is_alive():
        loop.call_soon_threadsafe(work.cancel)
        thread.join()
    engine.close()
    loop.close()
    if engine.error is not None:
        raise engine.error
    if work.cancelled():
        raise StoppedError("asked to stop; what has no answer yet is answered when it begins again")
    work.result()
