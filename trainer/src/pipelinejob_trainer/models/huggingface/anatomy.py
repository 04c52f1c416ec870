"""What a model does before, in and after its blocks: seen in one forward pass of a small whole copy.

Every operation of torch is watched for the tensors that stand outside the blocks. Those used
before the first block are the embedding's, those used after the last one the head's. Buffers are
of no stage: every stage computes them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipelinejob_trainer.models.huggingface.find import find_blocks, refused

_BEFORE = "before"
_IN = "in"
_BETWEEN = "between"
_AFTER = "after"


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """What a cut has to know of a model beyond its modules.

    `head` are the full names of parameters that only the head uses, `both` of those that embedding
    and head use from one place. `answers` is by a block's class the length of the tuple that it
    returns; None where it returns the tensor itself. `counts_positions` is whether a token's
    position by default is its place in the row; else the model is left to find positions itself.
    """

    blocks: str
    head: frozenset[str]
    both: frozenset[str]
    answers: Mapping[str, int | None]
    counts_positions: bool


def anatomy_of(model: nn.Module, config: Any, run: Callable[[], None], *, counts_positions: bool) -> Anatomy:
    """Call `run` once, which runs the whole model, and return what was seen.

    Raises UserError where parameters are used in a way that no cut can serve.
    """
    path, blocks = find_blocks(model, config)
    inside = {id(each) for each in (*blocks.parameters(), *blocks.buffers())}
    watched = {id(each): name for name, each in model.named_parameters() if id(each) not in inside}
    watch = _Watch(watched)
    with _hooks(model, blocks, watch), watch:
        run()
    for name, phases in watch.phases.items():
        for phase, what in ((_IN, "which blocks use, though it is none of theirs"), (_BETWEEN, "used between blocks")):
            if phase in phases:
                raise refused(config, f"it has the parameter {name}, {what}, so that every stage would have to hold it")
    if watch.beside:
        raise refused(
            config, f"its blocks are given {watch.beside} beside the hidden state, which depends on parameters"
        )
    places = {name: watch.phases_of(model, name) for name, _ in _all_places(model) if not _is_under(name, path)}
    return Anatomy(
        blocks=path,
        head=frozenset(name for name, phases in places.items() if phases == {_AFTER}),
        both=frozenset(name for name, phases in places.items() if phases == {_BEFORE, _AFTER}),
        answers=dict(watch.answers),
        counts_positions=counts_positions,
    )


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch leaves it untyped
    """Notes in which phase of a forward pass each watched tensor, and each module, is used."""

    def __init__(self, watched: Mapping[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # as above
        self._watched = watched
        self.phase = _BEFORE
        self.phases: dict[str, set[str]] = {}
        self.modules: dict[str, set[str]] = {}
        self.answers: dict[str, int | None] = {}
        self.beside = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for each in _tensors((args, kwargs)):
            name = self._watched.get(id(each))
            if name is not None:
                self.phases.setdefault(name, set()).add(self.phase)
        return func(*args, **(kwargs or {}))

    def phases_of(self, model: nn.Module, name: str) -> set[str]:
        """Return the phases that use a tensor from this place; a tied one has others elsewhere."""
        tensor = model.get_parameter(name)
        of_tensor = self.phases.get(self._watched.get(id(tensor), ""), set())
        of_module = self.modules.get(name.rpartition(".")[0], set())
        return (of_tensor & of_module) or of_tensor


def _tensors(of: Any) -> Iterator[torch.Tensor]:
    if isinstance(of, torch.Tensor):
        yield of
    elif isinstance(of, (list, tuple)):
        for each in of:
            yield from _tensors(each)
    elif isinstance(of, dict):
        yield from _tensors(tuple(of.values()))


def _all_places(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return iter(model.named_parameters(remove_duplicate=False))


def _is_under(name: str, path: str) -> bool:
    return name.startswith(f"{path}.")


@contextmanager
def _hooks(model: nn.Module, blocks: nn.ModuleList, watch: _Watch) -> Iterator[None]:
    """Let a model's modules tell a watch what they do."""
    count = len(blocks)
    inside = set(blocks.modules())

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        watch.phase = _IN
        hidden = args[0] if args else kwargs.get("hidden_states")
        named = [(f"argument {place + 1}", each) for place, each in enumerate(args)] + list(kwargs.items())
        for name, value in named:
            if any(each.requires_grad for each in _tensors(value) if each is not hidden):
                watch.beside = watch.beside or name

    def leave(index: int, block: nn.Module, _: Any, output: Any) -> None:
        watch.phase = _AFTER if index == count - 1 else _BETWEEN
        watch.answers[type(block).__qualname__] = len(output) if isinstance(output, (tuple, list)) else None

    def called(name: str, _: nn.Module, __: Any) -> None:
        watch.modules.setdefault(name, set()).add(watch.phase)

    handles = [
        handle
        for index, block in enumerate(blocks)
        for handle in (
            block.register_forward_pre_hook(enter, with_kwargs=True),
            block.register_forward_hook(partial(leave, index)),
        )
    ]
    handles += [
        module.register_forward_pre_hook(partial(called, name))
        for name, module in model.named_modules(remove_duplicate=False)
        if module not in inside
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_answers(anatomy: Anatomy, config: Any, blocks: nn.ModuleList) -> None:
    """Raise UserError where a block is of a class that the small copy had none of."""
    for index, block in enumerate(blocks):
        if type(block).__qualname__ not in anatomy.answers:
            raise refused(
                config,
                f"block {index} is a {type(block).__name__}, which no small copy of it has: it cannot be checked",
            )
