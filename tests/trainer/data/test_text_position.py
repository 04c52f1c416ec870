"""The place in the training text: a count of samples, which goes on whatever a step takes."""

from pathlib import Path

import pytest
import torch

from pipelinejob.spec.job import Data, OnDataChange, ScheduleSpec
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.data.dataset import Dataset, open_dataset
from pipelinejob_trainer.data.position import (
    Order,
    TextIdentity,
    TextPosition,
    agreed_text,
    identity_of,
    samples_before,
)
from pipelinejob_trainer.data.text import Text

TEXT = TextIdentity(bytes=20_000, sha256="aa" * 32)
ORDER = Order(text=TEXT, sequence_length=16, seed=7)


def dataset(text: Path, *, micro_batches: int, size: int, replicas: int = 1, batch_size: int | None = None) -> Dataset:
    schedule = ScheduleSpec(micro_batches=micro_batches, micro_batch_size=size, batch_size=batch_size)
    data = Data(paths=(str(text),), sequence_length=8)
    return open_dataset(data, schedule=schedule, replicas=replicas, seed=3)


def samples(batches: Dataset, *steps: int) -> torch.Tensor:
    """Return the sequences of whole steps, one after the other."""
    return torch.cat(
        [
            batches.batch(step, replica, micro_batch)[0]
            for step in steps
            for replica in range(batches.replicas)
            for micro_batch in range(len(batches.rows))
        ]
    )


@pytest.mark.parametrize(
    "later",
    [
        {"micro_batches": 8, "size": 2},
        {"micro_batches": 2, "size": 2},
        {"micro_batches": 2, "size": 2, "replicas": 4},
        {"micro_batches": 3, "size": 6, "batch_size": 16},
    ],
    ids=str,
)
def test_a_run_goes_on_with_the_next_sample_whatever_a_step_takes(text: Path, later: dict[str, int]) -> None:
    before, after = dataset(text, micro_batches=4, size=2), dataset(text, **later)
    unbroken = dataset(text, micro_batches=1, size=1)

    read = torch.cat([samples(before, 1, 2, 3), samples(after.resumed(step=3, samples=24), 4, 5)])

    assert torch.equal(read, samples(unbroken, *range(1, len(read) + 1)))


def test_a_batch_that_changed_in_the_middle_of_an_epoch_repeats_no_window_of_it_and_leaves_none_out(text: Path) -> None:
    windows = 2499  # of eight bytes, in a text of 20,000 and one for the last target
    first, then = dataset(text, micro_batches=7, size=100), dataset(text, micro_batches=3, size=300)

    read = torch.cat([samples(first, 1, 2), samples(then.resumed(step=2, samples=1400), 3, 4)])

    unbroken = dataset(text, micro_batches=1, size=windows)
    assert torch.equal(read[:windows], samples(unbroken, 1))
    assert torch.equal(read[windows:], samples(unbroken, 2)[: len(read) - windows])


def test_in_the_same_order_the_count_of_the_checkpoint_is_gone_on_from() -> None:
    found = TextPosition(samples=24, order=ORDER)

    assert samples_before(found, ORDER, checkpoint_step=3, on_change=OnDataChange.REFUSE) == (
        24,
        "24 samples into the text",
    )


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (
            TextPosition(samples=24, order=ORDER.model_copy(update={"sequence_length": 32})),
            "sequenceLength was 32 and is 16",
        ),
        (
            TextPosition(
                samples=24, order=ORDER.model_copy(update={"text": TextIdentity(bytes=19_000, sha256=TEXT.sha256)})
            ),
            "the training text had 19000 bytes and has 20000 (an evaluation without paths takes the last twentieth",
        ),
        (
            TextPosition(
                samples=24, order=ORDER.model_copy(update={"text": TextIdentity(bytes=20_000, sha256="bb" * 32)})
            ),
            "the training text has other content, at the same 20000 bytes",
        ),
        (TextPosition(samples=24, order=ORDER.model_copy(update={"seed": 8})), "spec.training.seed was 8 and is 7"),
        (None, "it was written by a version that did not count samples"),
    ],
    ids=["length", "size", "content", "seed", "uncounted"],
)
def test_in_another_order_a_run_is_refused_or_told_to_start_anew(found: TextPosition | None, why: str) -> None:
    with pytest.raises(UserError) as refused:
        samples_before(found, ORDER, checkpoint_step=3, on_change=OnDataChange.REFUSE)

    assert refused.value.reason == "DataChanged"
    assert why in str(refused.value)
    assert "set spec.checkpoint.onDataChange to StartAnew" in str(refused.value)
    place, words = samples_before(found, ORDER, checkpoint_step=3, on_change=OnDataChange.START_ANEW)
    assert place == 0
    assert words.startswith("at the beginning of the text, as spec.checkpoint.onDataChange says: ")
    assert why in words


def test_texts_are_told_apart_by_length_and_by_content(tmp_path: Path) -> None:
    for name, content in {
        "one": b"abcd" * 9,
        "same": b"abcd" * 9,
        "longer": b"abcd" * 10,
        "other": b"abce" * 9,
    }.items():
        (tmp_path / name).write_bytes(content)
    one, same, longer, other = (identity_of(Text([tmp_path / name])) for name in ("one", "same", "longer", "other"))

    assert one == same
    assert len({one, longer, other}) == 3
    assert identity_of(Text([tmp_path / "one", tmp_path / "same"])).bytes == 72


def test_a_long_text_is_known_by_pieces_from_its_first_byte_to_its_last(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(bytes(5 << 20))
    before = identity_of(Text([path]))
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")

    assert identity_of(Text([path])) != before


class Gang:
    """All ranks' rows, gathered."""

    num_stages = 3

    def __init__(self, *others: TextIdentity | None) -> None:
        self.others = others

    def gather(self, row: torch.Tensor) -> list[torch.Tensor]:
        contents = [b"" if other is None else other.model_dump_json().encode() for other in self.others]
        return [row, *(torch.tensor(list(each.ljust(len(row))), dtype=torch.uint8) for each in contents)]


def test_stages_between_learn_which_text_is_trained_on() -> None:
    assert agreed_text(Gang(TEXT, None, TEXT), None, field="spec.data") == TEXT


def test_ranks_that_see_different_texts_are_refused_by_name() -> None:
    other = TextIdentity(bytes=19_000, sha256="bb" * 32)

    with pytest.raises(
        UserError, match=r"spec\.data: stage 2 of replica 0 sees a text of 19000 bytes .*stage 0 "
    ) as error:
        agreed_text(Gang(None, other), TEXT, field="spec.data")

    assert error.value.reason == "DataDiffers"
