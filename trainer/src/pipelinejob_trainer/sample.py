"""Text from a trained model: the newest sound checkpoint, read into one process, whatever schedule wrote it."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from pipelinejob.plan import Plan
from pipelinejob_trainer import snapshot
from pipelinejob_trainer.checkpoint_folder import CheckpointFolder, DamagedCheckpointError
from pipelinejob_trainer.errors import UserError
from pipelinejob_trainer.models import Part, build_part, num_layers
from pipelinejob_trainer.output import warn


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to generate."""

    prompt: str
    tokens: int
    seed: int
    temperature: float


def main(plan: Plan, checkpoints: Path, request: Request) -> None:
    """Print the prompt and what the model makes of it.

    Raises UserError when there is no checkpoint to sample from.
    """
    model = _model(plan)
    load_newest(model, CheckpointFolder(checkpoints))
    generated = generate(model, request, context=plan.data.sequence_length)
    sys.stdout.write(request.prompt + generated + "\n")


def load_newest(model: Part, folder: CheckpointFolder) -> int:
    """Read the newest sound checkpoint's parameters; give its step.

    Raises UserError when there is none, or it is of another model.
    """
    for found in folder.candidates():
        try:
            if isinstance(found, DamagedCheckpointError):
                raise found
            tensors = found.read(snapshot.wanted(model, None))
        except DamagedCheckpointError as error:
            warn(f"{error}; the checkpoint before it is used")
            continue
        snapshot.restore(model, None, tensors)
        return found.step
    raise UserError(
        "NoCheckpoint", f"{folder.root} holds no sound checkpoint; name the folder with --checkpoints, or train first"
    )


@torch.no_grad()
def generate(model: Part, request: Request, *, context: int) -> str:
    """Give `request.tokens` bytes as text; what is no UTF-8 becomes U+FFFD."""
    dice = torch.Generator().manual_seed(request.seed)
    tokens = list(request.prompt.encode() or b"\n")
    for _ in range(request.tokens):
        logits = _last_logits(model, torch.tensor([tokens[-context:]]))
        tokens.append(_choose(logits, request.temperature, dice))
    return bytes(tokens[-request.tokens :]).decode(errors="replace")


def _last_logits(model: Part, tokens: torch.Tensor) -> torch.Tensor:
    output = tokens
    for layer in model.layers:
        output = layer.module(output)
    return output[0, -1, :256].float()  # tokens are bytes, though a vocabulary may be padded


def _choose(logits: torch.Tensor, temperature: float, dice: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    likely = torch.softmax(logits / temperature, dim=-1)
    return int(torch.multinomial(likely, 1, generator=dice))


def _model(plan: Plan) -> Part:
    whole = build_part(plan.model, plan.data, stretches=[(0, num_layers(plan.model))], seed=plan.training.seed)
    for layer in whole.layers:
        layer.module.float().eval()
    return whole
