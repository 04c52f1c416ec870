"""Reading prepared tokens: packing, mixtures, order, and what is not as it was written."""

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelinejob.spec.job import Data, Evaluation, GptModel, Model, Packing, ScheduleSpec, TokenSource
from pipelinejob.spec.training import OnDataChange
from pipelinejob.spec.workload import HuggingFaceModel
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.data.dataset import Dataset, open_dataset, open_evaluation
from pipelinejob_trainer.data.micro_batch import IGNORED
from pipelinejob_trainer.data.position import Order, TextPosition, samples_before
from pipelinejob_trainer.data.prepare.writer import ShardWriter
from pipelinejob_trainer.data.tokens.folder import TokenFolder
from pipelinejob_trainer.data.tokens.index import BLOCK_BYTES, Index, Settings, TokenizerIdentity
from pipelinejob_trainer.data.tokens.mixture import turns
from pipelinejob_trainer.data.tokens.packing import Documents, Pieces, packed
from support.training.preparing import prepared, texts, tokenizer_folder

END = 0


def written(
    folder: Path, lengths: list[int], *, shards: int = 1, first: int = 1, counts: list[list[bool]] | None = None
) -> Path:
    """Write documents of these lengths, each token another number, as `data prepare` writes them."""
    folder.mkdir()
    numbers = iter(range(first, first + sum(lengths)))
    documents = [[next(numbers) for _ in range(length)] for length in lengths]
    records, at = [], 0
    per_shard = -(-len(documents) // shards)
    for number in range(shards):
        writer = ShardWriter(folder / "new", token_bytes=4, has_marks=counts is not None)
        for document in documents[at : at + per_shard]:
            writer.add(document, None if counts is None else counts[len(records) * per_shard + writer.documents])
        at += per_shard
        records.append(writer.finish(folder / f"tokens-{number:05}-000.bin"))
    index = Index(
        tokenizer=TokenizerIdentity(sha256="ab" * 32, vocabulary_size=2**20, end_of_text=END),
        settings=Settings(column="text", is_chat=counts is not None),
        inputs=(),
        token_bytes=4,
        largest_token=first + sum(lengths) - 1,
        stops=0,
        shards=tuple(records),
        left_out={},
    )
    (folder / "index.json").write_text(index.model_dump_json(by_alias=True))
    return folder


def dataset(
    *folders: Path, weights: list[float] | None = None, length: int = 4, packing: Packing = Packing.DOCUMENTS, **more
) -> Dataset:
    sources = tuple(
        TokenSource(path=str(folder), weight=weight)
        for folder, weight in zip(folders, weights or [1.0] * len(folders), strict=True)
    )
    data = Data(tokens=sources, packing=packing, sequence_length=length)
    schedule = ScheduleSpec(
        micro_batches=more.pop("micro_batches", 1), micro_batch_size=more.pop("size", 1), batch_size=None
    )
    return open_dataset(data, schedule=schedule, replicas=more.pop("replicas", 1), seed=more.pop("seed", 3), **more)


def pairs_of(rows: list[tuple[torch.Tensor, torch.Tensor]]) -> Counter[tuple[int, int]]:
    """Count the pairs of a token and a target that counts."""
    return Counter(
        (int(token), int(target))
        for tokens, targets in rows
        for token, target in zip(tokens, targets, strict=True)
        if target != IGNORED
    )


@settings(max_examples=60, deadline=None)
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
            # Positions go on just where the token does; they begin anew with each document, and with what fills up.
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


@settings(max_examples=100, deadline=None)
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


@settings(max_examples=40, deadline=None)
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


def _big(folder: Path) -> Path:
    return written(folder, [BLOCK_BYTES // 8] * 8)  # four blocks of tokens


def _read_all(batches: Dataset, read: set[int]) -> None:
    for step in range(1, batches.samples._packed[0].size + 1):
        read.update(batches.batch(step, 0, 0).tokens[0].tolist())


@pytest.mark.parametrize("block", [0, 2, 3])
def test_a_flipped_bit_is_found_before_it_is_trained_on(tmp_path: Path, block: int) -> None:
    folder = _big(tmp_path / "a")
    shard = folder / "tokens-00000-000.bin"
    content = bytearray(shard.read_bytes())
    content[block * BLOCK_BYTES + 4321] ^= 16
    shard.write_bytes(content)
    batches = dataset(folder, length=1024, packing=Packing.CONCATENATE)
    damaged = range(block * BLOCK_BYTES // 4 + 1, (block + 1) * BLOCK_BYTES // 4 + 1)

    read: set[int] = set()
    with pytest.raises(UserError, match=rf"tokens-00000-000\.bin is not as it was written: block {block} ") as caught:
        _read_all(batches, read)
    assert not read & set(damaged)
    assert caught.value.reason == "DataDamaged"
    with pytest.raises(UserError, match=f"block {block} "):
        TokenFolder(folder, field="test").verify()


def test_damaged_document_borders_are_found_when_the_data_are_opened(tmp_path: Path) -> None:
    folder = _big(tmp_path / "a")
    shard = folder / "tokens-00000-000.bin"
    content = bytearray(shard.read_bytes())
    content[-7] ^= 1
    shard.write_bytes(content)

    with pytest.raises(UserError, match="block 4"):
        dataset(folder, length=1024)


def test_what_is_missing_or_cut_short_is_named_when_the_data_are_opened(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", [9, 9], shards=2)
    (folder / "tokens-00001-000.bin").write_bytes(b"short")
    with pytest.raises(UserError, match=r"tokens-00001-000\.bin has 5 bytes, its index says 48") as caught:
        dataset(folder)
    assert caught.value.reason == "DataDamaged"

    (folder / "tokens-00001-000.bin").unlink()
    with pytest.raises(UserError, match=r"tokens-00001-000\.bin of the index is not here") as caught:
        dataset(folder)
    assert caught.value.reason == "DataNotFound"

    index = folder / "index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "format": 2}))
    with pytest.raises(UserError, match="has format 2, this version reads 1; prepare it anew"):
        dataset(folder)
    index.write_text("{")
    with pytest.raises(UserError, match=r"index\.json is not as `pipelinejob data prepare` writes it"):
        dataset(folder)
    index.unlink()
    with pytest.raises(UserError, match=r"holds no index\.json; mount what"):
        dataset(folder)
    with pytest.raises(UserError, match=r"spec\.data\.tokens\[0\]\.path: .*/b is no folder here"):
        dataset(tmp_path / "b")


def test_a_shard_that_is_cut_short_while_it_is_read_is_an_error_and_no_crash(tmp_path: Path) -> None:
    folder = _big(tmp_path / "a")
    batches = dataset(folder, length=8, packing=Packing.CONCATENATE)
    with (folder / "tokens-00000-000.bin").open("r+b") as shard:
        shard.truncate(1000)

    with pytest.raises(UserError, match="became shorter while it was read"):
        _read_all(batches, set())


def test_tokens_beyond_the_models_vocabulary_are_refused_before_the_first_step(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", [300])
    gpt = GptModel(num_layers=1, hidden_size=8, num_heads=1, vocabulary_size=300)

    with pytest.raises(UserError, match=r"has token 300, .* the model's vocabulary ends at 299; prepare") as caught:
        dataset(folder, packing=Packing.CONCATENATE, model=Model(gpt=gpt))
    assert caught.value.reason == "VocabularyTooSmall"
    wide = gpt.model_copy(update={"vocabulary_size": 301})
    assert dataset(folder, packing=Packing.CONCATENATE, model=Model(gpt=wide)).batch(1, 0, 0).tokens.max() < 301


def test_two_tokenizers_do_not_mix_and_a_source_is_named_once(tmp_path: Path) -> None:
    small, large = (tokenizer_folder(tmp_path / str(size), size=size) for size in (300, 400))
    one = prepared(tmp_path / "one", small, texts(2)).path
    two = prepared(tmp_path / "two", large, texts(2)).path

    with pytest.raises(UserError, match=r"two was made by another tokenizer .* than .*/one .*; prepare both"):
        dataset(one, two)
    with pytest.raises(UserError, match="is named twice; name it once, with the sum of the weights"):
        dataset(one, one)


def test_tokens_of_another_tokenizer_than_the_models_are_refused_however_its_file_is_written(
    tmp_path: Path,
) -> None:
    one, other = (tokenizer_folder(tmp_path / str(size), size=size) for size in (300, 400))
    folder = prepared(tmp_path / "tokens", one, texts(2)).path
    model = Model(hugging_face=HuggingFaceModel(path=str(one)), num_layers=3)
    dataset(folder, packing=Packing.CONCATENATE, model=model)
    (one / "tokenizer.json").write_text(json.dumps(json.loads((one / "tokenizer.json").read_text()), indent=2))
    dataset(folder, packing=Packing.CONCATENATE, model=model)
    foreign = Model(hugging_face=HuggingFaceModel(path=str(other)), num_layers=3)

    with pytest.raises(UserError, match=r"another tokenizer than that of .*/400: '.*' is token none, to the model 3"):
        dataset(folder, packing=Packing.CONCATENATE, model=foreign)


def test_too_little_data_is_named_with_what_there_is(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", [3, 3])

    with pytest.raises(UserError, match=r"a has 2 documents of 6 tokens .all., too few for one sequence of 64"):
        dataset(folder, length=64, packing=Packing.CONCATENATE)
    assert dataset(folder, length=64, packing=Packing.DOCUMENTS).batch(1, 0, 0).tokens[0, :4].tolist() == [1, 2, 4, 5]
