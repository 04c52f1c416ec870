"""Which rank gives which tensors to which other, where layers are divided among ranks anew; decided purely.

A state is found by its name, whoever has it: as its own, or as a copy, by the layout that there
was before or by the new one. All ranks decide alike, from what all have told.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipelinejob_trainer.models.identity import layer_of

Names = Mapping[int, Collection[str]]
"""Names of tensors by the step at which they are held, or wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """A step border, and for each rank who gives it which of its tensors; some are its own already."""

    step: int
    sources: tuple[Mapping[int, tuple[str, ...]], ...]


def choose_moves(held: Sequence[Names], wanted: Sequence[Names]) -> Moves | None:
    """Return the newest step at which every rank finds all that it wants; None if there is none.

    A rank `wanted` nothing of a step at which something that it needs was held by nobody.
    """
    whole = set.intersection(*(set(each) for each in wanted)) if wanted else set()
    if not whole:
        return None
    step = max(whole)
    having = [frozenset(each.get(step, ())) for each in held]
    return Moves(step=step, sources=tuple(_sources(rank, each[step], having) for rank, each in enumerate(wanted)))


def all_names(held: Sequence[Names]) -> dict[int, frozenset[str]]:
    """Return what anybody has, by step."""
    steps = {step for each in held for step in each}
    return {step: frozenset(name for each in held for name in each.get(step, ())) for step in steps}


def described(names: Iterable[str]) -> str:
    """Name the layers that tensors are of."""
    layers = sorted({layer_of(name.partition("/")[2]) for name in names})
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return f"layer{'s' * (len(layers) > 1)} {', '.join(texts)}"


def _sources(rank: int, names: Collection[str], having: Sequence[frozenset[str]]) -> dict[int, tuple[str, ...]]:
    found: dict[int, list[str]] = {}
    for name in sorted(names):
        givers = [each for each, has in enumerate(having) if name in has]
        # Of several another for each rank, so that not all wait for one.
        source = rank if name in having[rank] else givers[rank % len(givers)]
        found.setdefault(source, []).append(name)
    return {source: tuple(of) for source, of in sorted(found.items())}
