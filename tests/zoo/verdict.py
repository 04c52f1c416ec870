"""Whether what the trainer did is right: as plain torch does it, or refused by name before the first step.

Equal means: bit for bit where sums are added up in the same order, else within `BOUNDS` of the
largest entry of a tensor. Left out of the second are entries whose gradient is rounding alone
(`NOISE` of the largest): AdamW makes whole steps of whatever little there is, in a direction that
is anybody's.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from pipelinejob.spec.job import Precision
from pipelinejob_trainer.base.errors import UserError
from zoo import oracle, training
from zoo.case import Case
from zoo.refusals import expected_refusals

BOUNDS = {Precision.FP32: 1e-4, Precision.BF16: 3e-2}
LAST_BITS = 1e-14  # of float64: the gradient norm, by which all are clipped, is added up rank by rank
RAISED = "LayerRaised"  # the reason of whatever a user's own code raises


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came of a case: `problems` are none where it is right; `refusal` is the reason of a refusal."""

    problems: tuple[str, ...] = ()
    refusal: str | None = None


def judge(case: Case, text: Path, folder: Path) -> Verdict:
    """Train a case twice, plainly and as a pipeline, and compare."""
    try:
        trained = training.train(case, text, folder)
    except UserError as error:
        return _judge_refusal(case, text, error, num_steps=len(training.told(folder)))
    except Exception as error:  # noqa: BLE001 # whatever it is, it is not what a user should see
        return Verdict(problems=(f"a raw {type(error).__name__}: {error}",))
    return Verdict(problems=tuple(_differences(case, oracle.train(case, text), trained)))


def _judge_refusal(case: Case, text: Path, error: UserError, *, num_steps: int) -> Verdict:
    problems = []
    if error.reason not in expected_refusals(case) and not (error.reason == RAISED and _plain_raises(case, text)):
        problems.append(f"refused, but should be trained: {error.reason}: {error}")
    if num_steps not in {0, *(leg.until for leg in case.legs)}:  # each run is refused before its first step
        problems.append(f"refused after step {num_steps}: {error.reason}: {error}")
    return Verdict(problems=tuple(problems), refusal=error.reason)


def _plain_raises(case: Case, text: Path) -> bool:
    """Tell whether plain torch cannot train it either."""
    try:
        oracle.train(case, text)
    except Exception:  # noqa: BLE001 # whatever it is
        return True
    return False


def _differences(case: Case, plain: oracle.Plain, trained: training.Trained) -> Iterator[str]:
    yield from _differences_of_steps(case, plain, trained)
    expected = plain.module.state_dict()
    same = _Sameness(case, plain)
    for rank, modules in enumerate(trained.modules):
        yield from (f"rank {rank}: {problem}" for problem in same.problems(modules, expected))
    saved = {name.partition("/")[2]: each for name, each in trained.checkpoint.items() if not _is_moment(name)}
    yield from (f"checkpoint: {problem}" for problem in same.problems(saved, expected))
    aliases = _aliases(plain)
    yield from (f"checkpoint: {name} is not there" for name in expected if not aliases[name] & saved.keys())


def _differences_of_steps(case: Case, plain: oracle.Plain, trained: training.Trained) -> Iterator[str]:
    if [each.step for each in trained.steps] != list(range(1, len(plain.steps) + 1)):
        yield f"told of the steps {[each.step for each in trained.steps]}"
        return
    bound = 1e-6 if case.is_exact else BOUNDS[case.precision]
    for here, there in zip(trained.steps, plain.steps, strict=True):
        for what in ("loss", "gradient_norm", "evaluation_loss"):
            one, other = getattr(here, what), getattr(there, what)
            if (one is None) != (other is None) or (one is not None and not math.isclose(one, other, rel_tol=bound)):
                yield f"step {here.step}: {what} {one}, plain {other}"


class _Sameness:
    """What it means that two tensors of a name are equal."""

    def __init__(self, case: Case, plain: oracle.Plain) -> None:
        self._is_exact = case.is_exact
        self._bound = BOUNDS[case.precision]
        self._faint = plain.faint

    def problems(self, here: dict[str, torch.Tensor], there: dict[str, torch.Tensor]) -> Iterator[str]:
        for name, value in here.items():
            if name not in there:
                yield f"{name} is no name of the unsplit model"
            elif value.shape != there[name].shape:
                yield f"{name} has shape {tuple(value.shape)}, plain {tuple(there[name].shape)}"
            elif not self._is_same(name, value, there[name]):
                yield f"{name} differs by {_error(value, there[name]):.1e} of its largest entry"

    def _is_same(self, name: str, here: torch.Tensor, there: torch.Tensor) -> bool:
        if here.dtype is torch.float64 and self._is_exact:
            return _error(here, there) <= LAST_BITS
        if self._is_exact or not (here.is_floating_point() or here.is_complex()):
            return torch.equal(here, there)
        faint = self._faint.get(name)
        heard = torch.ones_like(there, dtype=torch.bool) if faint is None else ~faint
        return _error(here, there, heard) <= self._bound


def _error(here: torch.Tensor, there: torch.Tensor, heard: torch.Tensor | None = None) -> float:
    """Return the largest difference where it counts, of the largest entry."""
    if not there.numel():
        return 0.0
    differences = (here - there).abs()
    size = float(there.abs().max())
    largest = float(differences.max() if heard is None else (differences * heard).max())
    return largest / size if size else largest


def _is_moment(name: str) -> bool:
    return name.partition("/")[0] in {"first_moment", "second_moment"}


def _aliases(plain: oracle.Plain) -> dict[str, set[str]]:
    """Give, for each name, all names of the same tensor."""
    state = plain.module.state_dict(keep_vars=True)
    return {name: {other for other, same in state.items() if same is value} for name, value in state.items()}
