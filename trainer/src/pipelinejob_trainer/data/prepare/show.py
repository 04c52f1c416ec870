"""What a prepared folder holds, in words, as JSON, or document by document."""

import json
import sys
from pathlib import Path

from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.data.prepare.prepare import summary
from pipelinejob_trainer.data.prepare.tokenizer import load_tokenizer
from pipelinejob_trainer.data.tokens.folder import TokenFolder
from pipelinejob_trainer.data.tokens.index import TOKENIZER


def show(path: Path, *, verifies: bool, document: int | None, is_json: bool) -> None:
    """Print what a folder holds; `verifies` reads all of it and holds it against its checksums.

    Raises UserError for a folder that is not as it was written.
    """
    folder = TokenFolder(path, field="DIR")
    if verifies:
        folder.verify()
    if document is not None:
        _show_document(folder, document)
        return
    if is_json:
        index = folder.index
        facts = {
            "documents": index.documents,
            "tokens": index.tokens,
            "counted": index.counted,
            "contentSha256": index.content_sha256,
            "isVerified": verifies,
        }
        shards = {"shards": [shard.model_dump(by_alias=True, exclude={"crc32"}) for shard in index.shards]}
        sys.stdout.write(
            json.dumps(facts | index.model_dump(by_alias=True, exclude={"shards"}) | shards, indent=1) + "\n"
        )
        return
    lines = summary(path, folder.index)
    if verifies:
        lines.insert(1, "verified: every shard is as it was written")
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _show_document(folder: TokenFolder, number: int) -> None:
    """Print a document; what does not count as a target stands between ⟦ and ⟧."""
    if number >= folder.index.documents:
        raise UserError(
            "NoSuchDocument",
            f"--document {number}: there are {folder.index.documents}, counted from 0; give a smaller one",
        )
    ends = folder.document_ends()
    begin = int(ends[number - 1]) if number else 0
    count = int(ends[number]) - begin
    tokens, counts = folder.tokens(begin, count).tolist(), folder.counts(begin, count).tolist()
    tokenizer = load_tokenizer(folder.path / TOKENIZER)
    text = ""
    while tokens:
        size = next((at for at, each in enumerate(counts) if each != counts[0]), len(counts))
        piece = tokenizer.decode(tokens[:size])
        text += piece if counts[0] else f"⟦{piece}⟧"
        tokens, counts = tokens[size:], counts[size:]
    sys.stdout.write(text + "\n")
