"""Text from a trained model: its newest intact checkpoint, read into one process."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from pipelinejob.contract.plan import Plan
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.base.user_code import through_layer
from pipelinejob_trainer.checkpoint import snapshot
from pipelinejob_trainer.checkpoint.folder import CheckpointFolder
from pipelinejob_trainer.checkpoint.shards import DamagedCheckpointError
from pipelinejob_trainer.data.prepare.tokenizer import load_tokenizer
from pipelinejob_trainer.data.tokens.index import TOKENIZER, read_index
from pipelinejob_trainer.models.first_layer import extra_inputs
from pipelinejob_trainer.models.part import Part, build_part, num_layers, walk_of
from pipelinejob_trainer.process.output import warn


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to generate."""

    prompt: str
    tokens: int
    seed: int
    temperature: float


class Alphabet(Protocol):
    """What tokens mean. `end` closes a text, None where none does."""

    size: int
    end: int | None

    def encode(self, text: str) -> list[int]:
        """Return a text's tokens, at least one."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return tokens' text."""


class _Bytes:
    """Text that is read as bytes; invalid UTF-8 becomes U+FFFD."""

    size: int = 256  # though a vocabulary may be padded
    end: int | None = None

    def encode(self, text: str) -> list[int]:
        return list(text.encode() or b"\n")

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode(errors="replace")


BYTES = _Bytes()


class _Prepared:
    """Tokens of the tokenizer that prepared a folder of them."""

    def __init__(self, folder: Path) -> None:
        """Raise UserError for a folder that is not here, or without its tokenizer."""
        identity = read_index(folder, field="spec.data.tokens[0].path").tokenizer
        self.size: int = identity.vocabulary_size
        self.end: int | None = identity.end_of_text
        self._tokenizer: Any = load_tokenizer(folder / TOKENIZER, field="spec.data.tokens[0].path")

    def encode(self, text: str) -> list[int]:
        tokens: list[int] = self._tokenizer(text)["input_ids"] if text else []
        return tokens or [self.end or 0]

    def decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(tokens))
        return text


def main(plan: Plan, checkpoints: Path, request: Request) -> None:
    """Print the prompt and the text that the model continues it with.

    Raises UserError when there is no checkpoint to sample from.
    """
    model = _model(plan)
    load_newest(model, CheckpointFolder(checkpoints))
    tokens = plan.data.tokens
    alphabet: Alphabet = BYTES if tokens is None else _Prepared(Path(tokens[0].path))
    generated = generate(model, request, context=plan.data.sequence_length, alphabet=alphabet)
    sys.stdout.write(request.prompt + generated + "\n")


def load_newest(model: Part, folder: CheckpointFolder) -> int:
    """Read the newest intact checkpoint's parameters; return its step.

    Raises UserError when there is none, or it is of another model.
    """
    base = model.base_digest()
    for found in folder.candidates():
        try:
            if isinstance(found, DamagedCheckpointError):
                raise found
            found.check_base(base)
            tensors = found.read(snapshot.wanted(model), snapshot.may_hold(model))
        except DamagedCheckpointError as error:
            warn(f"{error}; the checkpoint before it is used")
            continue
        snapshot.restore(model, None, tensors)
        return found.step
    raise UserError(
        "NoCheckpoint", f"{folder.root} holds no intact checkpoint; name the folder with --checkpoints, or train first"
    )


@torch.no_grad()
def generate(model: Part, request: Request, *, context: int, alphabet: Alphabet = BYTES) -> str:
    """Return `request.tokens` tokens as text, or fewer, where one closes the text."""
    dice = torch.Generator().manual_seed(request.seed)
    tokens = alphabet.encode(request.prompt)
    begin = len(tokens)
    while len(tokens) < begin + request.tokens:
        logits = _last_logits(model, torch.tensor([tokens[-context:]]))[: alphabet.size]
        token = _choose(logits, request.temperature, dice)
        if token == alphabet.end:
            break
        tokens.append(token)
    return alphabet.decode(tokens[begin:])


def _last_logits(model: Part, tokens: torch.Tensor) -> torch.Tensor:
    (layers,) = model.chunks
    output = walk_of(layers)(tokens, _through)
    if not isinstance(output, torch.Tensor):
        raise UserError(
            "NoLogits",
            f"the last layer returned {type(output).__name__}; text can be sampled from a model whose last layer"
            " returns logits, one tensor (batch, sequence, vocabulary)",
        )
    return output[0, -1].float()


def _through(index: int, layer: nn.Module, given: Any, call: Callable[[Any], Any] | None = None) -> Any:
    return through_layer(index, layer, given, extra_inputs(index, layer, None), call)


def _choose(logits: torch.Tensor, temperature: float, dice: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    likely = torch.softmax(logits / temperature, dim=-1)
    return int(torch.multinomial(likely, 1, generator=dice))


def _model(plan: Plan) -> Part:
    stretches, training = [(0, num_layers(plan.model))], plan.training
    whole = build_part(plan.model, plan.data, stretches=stretches, seed=training.seed, lora=training.lora)
    whole.settle(torch.device("cpu"))
    for layer in whole.layers:
        layer.module.eval()
    return whole
