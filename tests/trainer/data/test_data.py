"""The order of training text."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelinejob.spec.job import Corpus, Data, Evaluation, GptModel, Model, ScheduleSpec
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.data.dataset import Dataset, open_dataset, open_evaluation
from pipelinejob_trainer.data.text import Text
from support.examples import examples


def dataset(
    data: Data,
    *,
    micro_batches: int = 2,
    size: int = 2,
    batch_size: int | None = None,
    replicas: int = 1,
    seed: int = 3,
    evaluation: Evaluation | None = None,
) -> Dataset:
    schedule = ScheduleSpec(micro_batches=micro_batches, micro_batch_size=size, batch_size=batch_size)
    return open_dataset(data, schedule=schedule, replicas=replicas, seed=seed, evaluation=evaluation)


def test_targets_are_the_inputs_one_token_on(text: Path) -> None:
    inputs, targets, _ = dataset(Data(paths=(str(text),), sequence_length=8)).batch(1, 0, 0)

    assert inputs.shape == targets.shape == (2, 8)
    assert inputs.dtype == torch.int64
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_a_batch_is_a_stretch_of_the_text(text: Path) -> None:
    inputs, targets, _ = dataset(Data(paths=(str(text),), sequence_length=8)).batch(5, 0, 1)
    window = bytes([*inputs[0].tolist(), int(targets[0, -1])])

    assert window in text.read_bytes()


def test_a_reopened_dataset_goes_on_where_the_first_would_have(text: Path) -> None:
    data = Data(paths=(str(text),), sequence_length=8)
    first, second = dataset(data), dataset(data)
    for step in range(1, 5):
        first.batch(step, 0, 0)

    assert torch.equal(first.batch(5, 0, 1)[0], second.batch(5, 0, 1)[0])


def test_another_seed_gives_another_order(text: Path) -> None:
    data = Data(paths=(str(text),), sequence_length=8)

    assert not torch.equal(dataset(data, seed=1).batch(1, 0, 0)[0], dataset(data, seed=2).batch(1, 0, 0)[0])


def test_two_replicas_share_what_one_reads_alone(text: Path) -> None:
    data = Data(paths=(str(text),), sequence_length=8)
    two, one = dataset(data, micro_batches=3, replicas=2), dataset(data, micro_batches=6)
    shared = [two.batch(4, replica, micro_batch)[0] for replica in range(2) for micro_batch in range(3)]

    assert torch.equal(torch.cat(shared), torch.cat([one.batch(4, 0, micro_batch)[0] for micro_batch in range(6)]))


@pytest.mark.parametrize("step", [1, 4])
def test_unequal_micro_batches_share_the_same_sequences_as_equal_ones(text: Path, step: int) -> None:
    data = Data(paths=(str(text),), sequence_length=8)
    unequal = dataset(data, micro_batches=3, size=4, batch_size=10, replicas=2)
    equal = dataset(data, micro_batches=5, size=2, replicas=2)
    pieces = [unequal.batch(step, replica, k)[0] for replica in range(2) for k in range(3)]

    assert [len(piece) for piece in pieces] == [4, 4, 2, 4, 4, 2]
    assert torch.equal(torch.cat(pieces), torch.cat([equal.batch(step, r, k)[0] for r in range(2) for k in range(5)]))


def test_the_last_twentieth_of_the_text_is_evaluated_on_and_not_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    path.write_bytes(b"".join(number.to_bytes(2) for number in range(2000)))
    data, evaluation = Data(paths=(str(path),), sequence_length=2), Evaluation(interval_steps=1)
    training = dataset(data, seed=0, evaluation=evaluation)
    held_out = open_evaluation(data, evaluation, training=training)

    assert training.samples.text.size == 3800
    assert held_out.samples.text.size == 200
    assert training.samples.text.read(3798, 2).tobytes() == (1899).to_bytes(2)
    assert held_out.samples.text.read(0, 2).tobytes() == (1900).to_bytes(2)


def test_an_evaluation_reads_the_same_batches_every_time(text: Path) -> None:
    data, evaluation = Data(paths=(str(text),), sequence_length=8), Evaluation(interval_steps=1, batches=2)
    once, again = (open_evaluation(data, evaluation, training=dataset(data, evaluation=evaluation)) for _ in range(2))

    assert torch.equal(once.batch(2, 0, 1)[0], again.batch(2, 0, 1)[0])
    assert not torch.equal(once.batch(1, 0, 1)[0], once.batch(2, 0, 1)[0])


def test_with_a_text_of_its_own_to_evaluate_on_all_of_the_text_is_trained_on(text: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"other text")
    data = Data(paths=(str(text),), sequence_length=4)
    evaluation = Evaluation(interval_steps=1, paths=(f"{tmp_path}/other",))
    training = dataset(data, evaluation=evaluation)

    assert training.samples.text.size == text.stat().st_size
    assert open_evaluation(data, evaluation, training=training).samples.text.read(0, 5).tobytes() == b"other"


def test_a_held_out_text_shorter_than_a_sequence_says_where_to_give_more(text: Path) -> None:
    data, evaluation = Data(paths=(str(text),), sequence_length=1000), Evaluation(interval_steps=1)

    with pytest.raises(
        UserError, match=r"last 5 % of the text has 1000 bytes, .* 1001; give evaluation\.paths"
    ) as caught:
        open_evaluation(data, evaluation, training=dataset(data, evaluation=evaluation))
    assert caught.value.reason == "DataTooShort"


@settings(max_examples=examples(25), deadline=None)
@given(windows=st.integers(1, 70), seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 3))
def test_an_epoch_visits_every_window_once(
    tmp_path_factory: pytest.TempPathFactory, windows: int, seed: int, epoch: int
) -> None:
    length = 4
    path = tmp_path_factory.mktemp("epoch") / "numbers"
    # One byte names its window's place, so that windows are told apart whatever the epoch's
    # offset.
    size = (windows + 1) * length
    path.write_bytes(bytes(i // length for i in range(size)))
    data = dataset(Data(paths=(str(path),), sequence_length=length), micro_batches=1, size=1, seed=seed)

    firsts = [int(data.batch(1 + epoch * windows + i, 0, 0)[0][0, 0]) for i in range(windows)]

    assert sorted(firsts) == list(range(windows)) or sorted(firsts) == list(range(1, windows + 1))


@given(st.lists(st.binary(max_size=9), min_size=1, max_size=8), st.data())
@settings(max_examples=examples(50), deadline=None)
def test_files_read_as_one_text(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], draw: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("pieces")
    for number, piece in enumerate(pieces):
        (folder / str(number)).write_bytes(piece)
    whole = b"".join(pieces)
    begin = draw.draw(st.integers(0, len(whole)))
    end = draw.draw(st.integers(begin, len(whole)))

    text = Text([folder / str(number) for number in range(len(pieces))])

    assert text.size == len(whole)
    assert text.read(begin, end - begin).astype(np.uint8).tobytes() == whole[begin:end]


def test_the_standard_library_is_megabytes_of_text() -> None:
    data = dataset(Data(corpus=Corpus.PYTHON_STDLIB, sequence_length=64))

    assert data.samples.text.size > 5_000_000
    assert int(data.batch(1, 0, 0)[0].max()) < 256


def test_globs_are_read_in_sorted_order(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"BBBB")
    (tmp_path / "a.txt").write_bytes(b"AAAA")

    text = dataset(Data(paths=(f"{tmp_path}/*.txt",), sequence_length=4)).samples.text

    assert text.read(0, 8).tobytes() == b"AAAABBBB"


def test_a_pattern_that_matches_nothing_is_named(tmp_path: Path) -> None:
    pattern = f"{tmp_path}/*.txt"

    with pytest.raises(UserError, match=r"spec\.data\.paths .*/\*\.txt' matches no file") as caught:
        dataset(Data(paths=(pattern,)))
    assert caught.value.reason == "DataNotFound"


def test_a_text_shorter_than_a_sequence_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"abcd")

    with pytest.raises(UserError, match="has 4 bytes, one sequence needs 5") as caught:
        dataset(Data(paths=(f"{tmp_path}/short",), sequence_length=4))
    assert caught.value.reason == "DataTooShort"


def test_a_text_of_just_one_window_is_enough(tmp_path: Path) -> None:
    (tmp_path / "just").write_bytes(b"abcde")

    inputs, targets, _ = dataset(Data(paths=(f"{tmp_path}/just",), sequence_length=4), size=1).batch(9, 0, 0)

    assert bytes(inputs[0].tolist()) == b"abcd"
    assert bytes(targets[0].tolist()) == b"bcde"


def test_a_text_that_shrinks_during_a_run_is_an_error(text: Path) -> None:
    data = dataset(Data(paths=(str(text),), sequence_length=8))
    os.truncate(text, 1)

    with pytest.raises(UserError, match="became shorter") as caught:
        data.batch(1, 0, 0)
    assert caught.value.reason == "DataChanged"


def test_a_byte_outside_the_vocabulary_is_an_error(text: Path) -> None:
    schedule = ScheduleSpec(micro_batches=1, micro_batch_size=8)
    data = Data(paths=(str(text),), sequence_length=64)
    gpt = GptModel(num_layers=1, hidden_size=8, num_heads=1, vocabulary_size=100)
    narrow = open_dataset(data, schedule=schedule, replicas=1, seed=0, model=Model(gpt=gpt))

    with pytest.raises(UserError, match="the vocabulary ends at 99; text that is read as bytes needs 256") as caught:
        narrow.batch(1, 0, 0)
    assert caught.value.reason == "VocabularyTooSmall"
