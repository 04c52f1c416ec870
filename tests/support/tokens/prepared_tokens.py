"""Prepared tokens without a tokenizer: documents of given lengths, each token another number, and reading them."""

from pathlib import Path

from pipelinejob.spec.job import Data, Packing, ScheduleSpec, TokenSource
from pipelinejob_trainer.data.dataset import Dataset, open_dataset
from pipelinejob_trainer.data.prepare.writer import ShardWriter
from pipelinejob_trainer.data.tokens.index import Index, Settings, TokenizerIdentity

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
