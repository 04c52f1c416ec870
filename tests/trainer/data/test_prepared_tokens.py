"""Reading prepared tokens: packing, mixtures, order, and what is not as it was written."""

from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelinejob.spec.job import Data, Evaluation, Packing, TokenSource
from pipelinejob.spec.training import OnDataChange
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.data.dataset import open_evaluation
from pipelinejob_trainer.data.micro_batch import IGNORED
from pipelinejob_trainer.data.position import Order, TextPosition, samples_before
from pipelinejob_trainer.data.tokens.folder import TokenFolder
from pipelinejob_trainer.data.tokens.mixture import turns
from pipelinejob_trainer.data.tokens.packing import Documents, Pieces, packed
from support.examples import examples
from support.tokens.prepared_tokens import dataset, written


def pairs_of(rows: list[tuple[torch.Tensor, torch.Tensor]]) -> Counter[tuple[int, int]]:
    """Count the pairs of a token and a target that counts."""
    return Counter(
        (int(token), int(target))
        for tokens, targets in rows
        for token, target in zip(tokens, targets, strict=True)
        if target != IGNORED
    )


@settings(max_examples=examples(60), deadline=None)
@given(
    lengths=st.lists(st.integers(1, 23), min_size=1, max_size=30),
    length=st.integers(1, 12),
    shards=st.integers(1, 3),
    packing=st.sampled_from([Packing.DOCUMENTS, Packing.PADDED]),
    seed=st.integers(0, 2**31 - 1),
)
def test_an_epoch_of_packed_documents_has_every_pair_once_and_none_across_documents(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    *,
    length: int,
    shards: int,
    packing: Packing,
    seed: int,
) -> None:
    if max(lengths) < 2:
        lengths = [*lengths, 2]
    folder = written(tmp_path_factory.mktemp("tokens") / "a", lengths, shards=min(shards, len(lengths)))
    batches = dataset(folder, length=length, packing=packing, seed=seed)
    (documents,) = batches.samples._packed
    rows = [batches.batch(step, 0, 0) for step in range(1, documents.size + 1)]

    ends = np.cumsum(lengths)
    expected = {(token, token + 1) for end, n in zip(ends, lengths, strict=True) for token in range(end - n + 1, end)}
    assert pairs_of([(row.tokens[0], row.targets[0]) for row in rows]) == Counter(expected)
    for row in rows:
        places = row.positions[0] if packing is Packing.DOCUMENTS else torch.arange(length)
        counted = [int(row.tokens[0, k]) for k in range(length) if row.targets[0, k] != IGNORED]
        for k in range(1, length):
            # Positions go on just where the token does; they begin anew with each document, and
            # with what fills up.
            goes_on = row.tokens[0, k] == row.tokens[0, k - 1] + 1 and row.tokens[0, k] not in ends - lengths + 1
            if packing is Packing.DOCUMENTS and row.targets[0, k] != IGNORED:
                assert int(places[k]) == (int(places[k - 1]) + 1 if goes_on and places[k] else 0)
        assert (packing is Packing.DOCUMENTS) == (row.positions is not None)
        assert counted


def test_documents_share_rows_with_little_left_over_and_are_not_cut_where_they_fit(tmp_path: Path) -> None:
    dice = np.random.default_rng(0)
    lengths = [int(each) for each in dice.integers(2, 200, 3000)]
    folder = TokenFolder(written(tmp_path / "a", lengths), field="test")
    rows = packed(Documents(folder, 0, len(lengths), 0, sum(lengths)), Packing.DOCUMENTS, 256)

    assert isinstance(rows, Pieces)
    assert rows.filled > 0.99
    begins = {end - n + 1 for end, n in zip(np.cumsum(lengths), lengths, strict=True)}
    for place in range(0, rows.size, 17):
        row = rows.row(place, epoch_key=0)
        assert row.positions is not None
        starts = row.tokens[(row.positions == 0) & (row.targets != IGNORED)]
        assert set(starts.tolist()) <= begins


def test_concatenated_documents_are_one_text_that_each_epoch_cuts_elsewhere(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", [3, 40, 7, 50], shards=2)
    batches = dataset(folder, length=8, packing=Packing.CONCATENATE)
    (documents,) = batches.samples._packed
    epochs = [
        sorted(int(batches.batch(1 + epoch * documents.size + k, 0, 0).tokens[0, 0]) for k in range(documents.size))
        for epoch in range(4)
    ]

    for firsts in epochs:
        assert np.diff(firsts).tolist() == [8] * (documents.size - 1)
    assert len({firsts[0] for firsts in epochs}) > 1
    row = batches.batch(1, 0, 0)
    assert torch.equal(row.targets, row.tokens + 1)
    assert row.positions is None


@pytest.mark.parametrize("packing", list(Packing))
def test_targets_that_do_not_count_stay_out_in_every_packing(tmp_path: Path, packing: Packing) -> None:
    counts = [[number % 3 == 0 for number in range(length)] for length in (9, 9, 11, 11)]
    folder = written(tmp_path / "a", [9, 9, 11, 11], shards=2, counts=counts)
    batches = dataset(folder, length=6, packing=packing)
    (documents,) = batches.samples._packed
    flat = [each for document in counts for each in document]
    counted = {number + 1 for number, each in enumerate(flat) if each}

    targets = {int(t) for k in range(documents.size) for t in batches.batch(k + 1, 0, 0).targets[0] if t != IGNORED}

    assert targets <= counted
    if packing is not Packing.CONCATENATE:
        assert targets == counted - {1, 10, 19, 30}  # a document's first token is nobody's target


@settings(max_examples=examples(100), deadline=None)
@given(st.lists(st.one_of(st.integers(1, 50), st.floats(0.01, 100)), min_size=1, max_size=8), st.data())
def test_no_stretch_of_a_mixture_drifts_from_its_weights(weights: list[float], draw: st.DataObject) -> None:
    mixture = turns([float(weight) for weight in weights])
    number = draw.draw(st.integers(0, 10**9))
    taken = mixture.taken(number)

    assert sum(taken) == number
    total = sum(Fraction(repr(float(weight))) for weight in weights)
    for had, weight in zip(taken, weights, strict=True):
        ideal = number * Fraction(repr(float(weight))) / total
        rounded = number * len(weights) / 2**16 if total else 0  # to the nearest 65,536th, and at least one of them
        assert abs(had - ideal) <= len(weights) + rounded
    source, before = mixture.turn(number)
    assert before == taken[source]
    assert mixture.taken(number + 1)[source] == before + 1


def test_weights_in_whole_numbers_are_kept_exactly() -> None:
    mixture = turns([3.0, 1.0, 0.5])

    assert mixture.shares == (6, 2, 1)
    assert mixture.taken(9 * 10**12) == (6 * 10**12, 2 * 10**12, 10**12)


@settings(max_examples=examples(40), deadline=None)
@given(
    micro_batches=st.integers(1, 5),
    size=st.integers(1, 4),
    replicas=st.integers(1, 3),
    stopped_after=st.integers(0, 3),
    packing=st.sampled_from(list(Packing)),
)
def test_the_order_is_the_same_however_it_is_divided_and_wherever_it_is_resumed(
    two_sources: tuple[Path, Path],
    *,
    micro_batches: int,
    size: int,
    replicas: int,
    stopped_after: int,
    packing: Packing,
) -> None:
    one_by_one = dataset(*two_sources, weights=[2, 1], packing=packing)
    divided = dataset(
        *two_sources, weights=[2, 1], packing=packing, micro_batches=micro_batches, size=size, replicas=replicas
    )
    before = stopped_after * 7  # steps of another size
    resumed = divided.resumed(step=stopped_after, samples=before)

    read = [
        row
        for step in (stopped_after + 1, stopped_after + 2)
        for replica in range(replicas)
        for k in range(micro_batches)
        for row in zip(*resumed.batch(step, replica, k)[:2], strict=True)
    ]

    expected = [one_by_one.batch(before + n + 1, 0, 0) for n in range(len(read))]
    for (tokens, targets), alone in zip(read, expected, strict=True):
        assert torch.equal(tokens, alone.tokens[0])
        assert torch.equal(targets, alone.targets[0])


@pytest.fixture(scope="module")
def two_sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("two")
    return written(folder / "a", [5, 9, 30, 2, 17, 40]), written(folder / "b", [12, 3, 25, 31], first=1000)


def test_sources_take_turns_by_weight_and_say_how_often_they_are_read(two_sources: tuple[Path, Path]) -> None:
    batches = dataset(*two_sources, weights=[3, 1], packing=Packing.CONCATENATE)
    taken = Counter(int(batches.batch(step, 0, 0).tokens[0, 0]) >= 1000 for step in range(1, 401))
    first, second = batches.describe(400)

    assert taken == {False: 300, True: 100}
    assert first.endswith(f"{two_sources[0]}: 75.0% of the sequences, 12.50 epochs of 24 sequences (Concatenate)")
    assert "25.0% of the sequences, 6.25 epochs of 16 sequences" in second


def test_documents_that_are_cut_are_said(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", [5, 6, 3, 12])

    (first, second), (alone,) = dataset(folder, length=4).describe(9), dataset(folder, length=16).describe(9)

    assert "epochs of 6 sequences" in first
    assert "2 documents are longer than 4 tokens and are cut: what comes after a cut" in second
    assert "longer than" not in alone


def test_the_last_twentieth_of_the_documents_is_evaluated_on_and_not_trained_on(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", [3] * 40)
    evaluation = Evaluation(interval_steps=1)
    training = dataset(folder, length=2, evaluation=evaluation)
    held_out = open_evaluation(Data(tokens=(TokenSource(path=str(folder)),)), evaluation, training=training)

    trained = {int(training.batch(step, 0, 0).tokens[0, 0]) for step in range(1, 39)}
    evaluated = {int(held_out.batch(step, 0, 0).tokens[0, 0]) for step in range(1, 3)}

    assert trained == {1 + 3 * k for k in range(38)}
    assert evaluated == {115, 118}
    assert training.samples.identity() != held_out.samples.identity()


def test_another_mixture_is_another_order_for_a_resumed_run(two_sources: tuple[Path, Path]) -> None:
    was, now = (dataset(*two_sources, weights=[1, weight]).samples.identity() for weight in (1, 2))
    same = dataset(*two_sources, weights=[4, 4]).samples.identity()
    order = Order(text=was, sequence_length=4, seed=3)

    assert same == was
    with pytest.raises(UserError, match=r"trained on 174 prepared tokens .* whose content, weights, packing"):
        samples_before(
            TextPosition(samples=9, order=order),
            order.model_copy(update={"text": now}),
            checkpoint_step=1,
            on_change=OnDataChange.REFUSE,
        )
