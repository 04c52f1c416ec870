"""Prepared tokens that are damaged, missing, too few or of another tokenizer: named before they are trained on."""

import json
from pathlib import Path

import pytest

from pipelinejob.spec.job import GptModel, Model, Packing
from pipelinejob.spec.workload import HuggingFaceModel
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.data.dataset import Dataset
from pipelinejob_trainer.data.tokens.folder import TokenFolder
from pipelinejob_trainer.data.tokens.index import BLOCK_BYTES
from support.tokens.prepared_tokens import dataset, written
from support.tokens.preparing import prepared, texts, tokenizer_folder


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
