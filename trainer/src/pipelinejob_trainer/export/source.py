"""A checkpoint's tensors, layer by layer, with adapters merged into the weights that they stand beside."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch

from pipelinejob.contract.trained import Trained
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.checkpoint import snapshot
from pipelinejob_trainer.checkpoint.folder import Checkpoint, CheckpointFolder
from pipelinejob_trainer.checkpoint.pieces import Contents
from pipelinejob_trainer.checkpoint.shards import DamagedCheckpointError
from pipelinejob_trainer.models.identity import layer_of
from pipelinejob_trainer.models.lora import adapted_modules, combined, digest_of
from pipelinejob_trainer.models.part import Part, build_part, num_layers
from pipelinejob_trainer.process.output import warn


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a step's folder, or the newest intact checkpoint of a folder of them; verify all of its files.

    Raises UserError.
    """
    root, steps = (path, None) if CheckpointFolder(path).steps() else (path.parent, path.name)
    folder = CheckpointFolder(root)
    wanted = [step for step in folder.steps() if steps is None or folder.path(step).name == steps]
    for step in wanted:
        try:
            checkpoint = folder.open(step)
            checkpoint.verify()
        except DamagedCheckpointError as error:
            if steps is not None:
                raise UserError("DamagedCheckpoint", f"{error}; name another step's, or train on") from error
            warn(f"{error}; the checkpoint before it is taken")
        else:
            return checkpoint
    what = "holds no intact checkpoint" if path.is_dir() else "is not there"
    raise UserError("NoCheckpoint", f"{path}: {what}; name a run's folder, its checkpoints, or one step's (step-...)")


class Source:
    """What a checkpoint and the job that wrote it say of each layer."""

    def __init__(self, trained: Trained, checkpoint: Checkpoint) -> None:
        """Raises UserError where the checkpoint is not of such a job."""
        self.trained = trained
        self.num_layers = num_layers(trained.model)
        self._checkpoint = checkpoint
        self._has_adapters = trained.training.lora is not None
        self._base_digests: list[bytes] = []
        if not self._has_adapters:
            checkpoint.check_base(None)
            self._check_layers()
        elif checkpoint.manifest.base is None:
            checkpoint.check_base("")

    def layer(self, index: int) -> dict[str, torch.Tensor]:
        """Return a layer's parameters and kept buffers, by global name; those tied to an earlier layer are not its."""
        return self._merged(index) if self._has_adapters else self._read(self._by_layer.get(index, ()))

    def adapters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Return the adapters' parameters."""
        for named in (self._by_layer[index] for index in sorted(self._by_layer)):
            yield from ((name, each) for name, each in self._read(named).items() if ".lora_" in name)

    def check_base_alone(self) -> None:
        """Check that what adapters were trained beside is what the job would take now; read it layer by layer.

        Raises UserError.
        """
        for index in range(self.num_layers):
            self._note_base(self._part(index), index)
        self.check_base()

    def check_base(self) -> None:
        """Check that adapters were merged into what they were trained beside, once all layers were asked for.

        Raises UserError.
        """
        if self._has_adapters:
            self._checkpoint.check_base(combined(self._base_digests).hex())

    @cached_property
    def _by_layer(self) -> Mapping[int, Sequence[str]]:
        """Return which of its tensors are there for each layer, by kind and name."""
        found: dict[int, list[str]] = {}
        for key in self._contents.names:
            kind, _, name = key.partition("/")
            if kind in snapshot.OF_THE_MODEL:
                found.setdefault(layer_of(name), []).append(key)
        return found

    @cached_property
    def _contents(self) -> Contents:
        return self._checkpoint.contents()

    def _read(self, keys: Iterable[str]) -> dict[str, torch.Tensor]:
        return {_name(key): self._contents.tensor(key) for key in keys}

    def _check_layers(self) -> None:
        last = max(self._by_layer, default=-1)
        if last >= self.num_layers:
            raise self.mismatch(f"it has a layer {last}, the model {self.num_layers} layers in all")

    def mismatch(self, problem: str) -> UserError:
        """Return the error for a checkpoint of another model."""
        return UserError(
            "CheckpointMismatch",
            f"checkpoint {self._checkpoint.path}: {problem}: it is of another model; name the plan or manifest that it"
            " was trained by",
        )

    def _part(self, index: int) -> Part:
        """Return a layer with adapters, as it was before it was trained."""
        trained = self.trained
        part = build_part(
            trained.model,
            trained.data,
            stretches=[(index, index + 1)],
            seed=trained.training.seed,
            lora=trained.training.lora,
        )
        part.settle(torch.device("cpu"))
        return part

    def _note_base(self, part: Part, index: int) -> dict[str, torch.nn.Parameter]:
        """Keep the digest of what a layer's adapters stand beside; return the layer's own parameters."""
        own = {name: each for name, each in part.named_parameters().items() if layer_of(name) == index}
        base = part.adapters.base
        self._base_digests.append(digest_of((name, each) for name, each in own.items() if name in base))
        return own

    def _merged(self, index: int) -> dict[str, torch.Tensor]:
        part = self._part(index)
        own = self._note_base(part, index)
        self._restore(part, index)
        layers = [(layer.index, layer.module) for layer in part.layers]
        merged = {f"{name}.weight": module.merged() for each in layers for name, module in adapted_modules(*each)}
        tensors = {name: each.detach() for name, each in own.items() if ".lora_" not in name}
        tensors |= {name: each for name, each in part.named_buffers().items() if layer_of(name) == index}
        return tensors | merged

    def _restore(self, part: Part, index: int) -> None:
        """Put the checkpoint's values of a layer into it."""
        held = self._by_layer.get(index, ())
        shapes = {key: each for key, each in snapshot.wanted(part).items() if layer_of(_name(key)) == index}
        missing = [key for key in shapes if key not in held]
        if missing:
            raise self.mismatch(f"it has no {_name(min(missing))}")
        tensors = {key: self._contents.tensor(key) for key in held}
        for key, tensor in tensors.items():
            if key.startswith("parameter/") and key not in shapes:
                raise self.mismatch(f"{_name(key)} is none of the model's")
            if key in shapes and shapes[key] != tensor.shape:
                has, wants = tuple(tensor.shape), tuple(shapes[key])
                raise self.mismatch(f"{_name(key)} has the shape {has} there, and {wants} in the model")
        snapshot.restore(part, None, tensors)


def _name(key: str) -> str:
    return key.partition("/")[2]
