"""The learning rate of a step, and clipping by the global norm."""

import math

from pipelinejob.spec.job import Training
from pipelinejob.spec.optimization import Decay, DecayKind


def learning_rate(training: Training, step: float) -> float:
    """Return the learning rate of a step, from 1: linear warm-up, then `training.decay`.

    With k steps after warm-up, it is the peak times the factor that transformers' schedules of the
    same names have at step warm-up + k. An update within a step counts as the fraction of the step
    that is done by then.
    """
    if step <= training.warmup_steps:
        return training.learning_rate * step / training.warmup_steps
    decay = training.decay
    after = training.steps - training.warmup_steps
    return training.learning_rate * _share(decay, step - training.warmup_steps, after=after)


def changed_rate(training: Training, step: int, rate: float | None) -> str | None:
    """Return what to say where a step was done at another rate than it would have now; None where it was not."""
    now = learning_rate(training, step)
    if rate is None or math.isclose(rate, now, rel_tol=1e-6, abs_tol=1e-12):
        return None
    return (
        f"step {step} was done at a learning rate of {rate:.3g}; as spec.training has learningRate, warmupSteps, decay"
        f" and steps now it would have been {now:.3g}, and step {step + 1} has {learning_rate(training, step + 1):.3g}"
    )


def clip_factor(norm: float, clip_norm: float) -> float:
    """Return the factor for gradients of a global norm; a maximum of 0 clips nothing."""
    return 1.0 if clip_norm == 0 or norm <= clip_norm else clip_norm / norm


def _share(decay: Decay, step: float, *, after: int) -> float:
    """Return the share of the peak rate, `step` steps after the warm-up of `after` that follow it."""
    decay_steps = decay.steps_of(after)
    match decay.kind:
        case DecayKind.CONSTANT:
            return 1.0
        case DecayKind.WSD:  # warm-up, stable, decay (Hu et al. 2024, arXiv 2404.06395)
            done = _done(step - (after - decay_steps), decay_steps)
            return decay.final_share + (1 - decay.final_share) * (1 - done)
        case DecayKind.LINEAR:
            return decay.final_share + (1 - decay.final_share) * (1 - _done(step, decay_steps))
        case DecayKind.COSINE:  # Loshchilov and Hutter, 2017, arXiv 1608.03983, without restarts
            return decay.final_share + (1 - decay.final_share) * (1 + math.cos(math.pi * _done(step, decay_steps))) / 2


def _done(step: float, decay_steps: int) -> float:
    return min(1.0, max(0.0, step / decay_steps)) if decay_steps > 0 else 1.0
