"""A job's batches, in an order that is a pure function of seed and position.

Nothing is kept between batches, so a run that resumes after so many samples reads exactly what a
run that never stopped would have read next, and a step has the same sequences however they are
divided among replicas and micro-batches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from pipelinejob.spec.job import Data, Evaluation, Model, ScheduleSpec
from pipelinejob.spec.workload import Packing, packing_of
from pipelinejob_trainer.data.micro_batch import MicroBatch
from pipelinejob_trainer.data.text import evaluation_text, training_text
from pipelinejob_trainer.data.tokens.model_tokenizer import check_model_tokenizer
from pipelinejob_trainer.data.tokens.samples import Part, Reading, TokenSamples
from pipelinejob_trainer.data.windows import ByteWindows

Samples = ByteWindows | TokenSamples
"""Sequences by their number, counted from 0; there is no last one."""


def open_dataset(
    data: Data,
    *,
    schedule: ScheduleSpec,
    replicas: int,
    seed: int,
    model: Model | None = None,
    vocabulary: int | None = None,
    evaluation: Evaluation | None = None,
) -> "Dataset":
    """Open the data that a job trains on: all of it, or what its evaluation leaves.

    The model limits the tokens, and says how documents are packed where `data` does not; None: no
    limit. So many tokens its layers know, `vocabulary`, if that was seen when they were made.
    Raises UserError when data are missing, damaged, too short, or of another tokenizer.
    """
    return Dataset(
        samples=_training_samples(data, seed, model, vocabulary, evaluation),
        rows=schedule.micro_batch_sizes,
        replicas=replicas,
    )


def open_evaluation(data: Data, evaluation: Evaluation, *, training: "Dataset") -> "Dataset":
    """Open the data that a job is evaluated on; step i is batch i of every evaluation.

    Raises UserError as `open_dataset` does.
    """
    samples = training.samples
    if isinstance(samples, TokenSamples):
        return replace(training, samples=samples.held_out(evaluation.tokens))
    return replace(training, samples=replace(samples, text=evaluation_text(data, evaluation)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A job's batches. The first step is 1; replicas and micro-batches count from 0.

    `rows` are the sequences of each micro-batch of one replica. `samples_before` samples were
    consumed before step `first_step`, by steps of this size or another.
    """

    samples: Samples
    rows: tuple[int, ...]
    replicas: int
    first_step: int = 1
    samples_before: int = 0

    def resumed(self, *, step: int, samples: int) -> "Dataset":
        """Return the same data after `step` steps, in which `samples` were consumed."""
        return replace(self, first_step=step + 1, samples_before=samples)

    def shared_by(self, replicas: int, *, rows: tuple[int, ...]) -> "Dataset":
        """Return the same data, divided among so many replicas."""
        return replace(self, replicas=replicas, rows=rows)

    def batch(self, step: int, replica: int, micro_batch: int) -> MicroBatch:
        """Return a micro-batch, (rows[micro_batch], sequence_length).

        Raises UserError for a token outside the vocabulary, and for data that cannot be read or
        trusted.
        """
        done = ((step - self.first_step) * self.replicas + replica) * sum(self.rows)
        first = self.samples_before + done + sum(self.rows[:micro_batch])
        rows = [self.samples.sample(number) for number in range(first, first + self.rows[micro_batch])]
        positions = [row.positions for row in rows if row.positions is not None]
        return MicroBatch(
            _stacked([row.tokens for row in rows]),
            _stacked([row.targets for row in rows]),
            _stacked(positions) if positions else None,
        )

    def describe(self, num_samples: int) -> Iterator[str]:
        """Return what is worth saying of `num_samples` samples of this data, a line for each source."""
        if isinstance(self.samples, TokenSamples):
            yield from self.samples.describe(num_samples)


def _training_samples(
    data: Data, seed: int, model: Model | None, vocabulary: int | None, evaluation: Evaluation | None
) -> Samples:
    vocabulary_size = vocabulary or (None if model is None else model.vocabulary_size)
    if data.tokens is None:
        return ByteWindows(
            text=training_text(data, evaluation),
            sequence_length=data.sequence_length,
            seed=seed,
            vocabulary_size=vocabulary_size,
        )
    unasked = data.packing or Packing.CONCATENATE
    reading = Reading(
        packing=unasked if model is None else packing_of(model, data),
        sequence_length=data.sequence_length,
        seed=seed,
        vocabulary_size=vocabulary_size,
        part=Part.TRAINING if evaluation is not None and evaluation.is_held_out else Part.ALL,
    )
    samples = TokenSamples(data.tokens, reading, field="spec.data.tokens")
    if model is not None and model.hugging_face is not None:
        # The sources have one tokenizer, so the first one's is all of theirs.
        check_model_tokenizer(samples.folders[0], Path(model.hugging_face.path), field="spec.data.tokens")
    return samples


def _stacked(rows: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.array(rows))
