"""Data sets that `datasets` has saved: Arrow files, which a folder's state.json names.

Beside these such a folder may hold files that `datasets` keeps of earlier work on it; they are no
data.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelinejob_trainer.base.errors import UserError

_STATE, _SPLITS = "state.json", "dataset_dict.json"
_FILE_MAGIC = b"ARROW1"  # of a file; `datasets` writes streams


def saved_files(folder: Path) -> list[Path] | None:
    """Return the files of a data set that was saved into this folder; None if none was.

    Raises UserError for one of several splits, and for a state that names no file that is there.
    """
    if (folder / _SPLITS).is_file():
        splits = sorted(each.parent.name for each in folder.glob(f"*/{_STATE}"))
        raise UserError(
            "DataSplits",
            f"--from {folder}: is a data set of the splits {', '.join(splits) or 'none'}; name one of them, as in"
            f" --from {folder / (splits[0] if splits else 'train')}",
        )
    if not (folder / _STATE).is_file():
        return None
    try:
        state = json.loads((folder / _STATE).read_bytes())
        files = [folder / str(each["filename"]) for each in state["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            "DataUnreadable", f"--from {folder}: {_STATE} is none of a saved data set ({error!r}); name the files"
        ) from error
    for file in files:
        if not file.is_file():
            raise UserError("DataNotFound", f"--from {folder}: {_STATE} names {file.name}, which is not there; copy it")
    return files


def record_batches(path: str) -> Iterator[Any]:
    """Return an Arrow file's record batches, mapped and not read. Raises UserError for what is none."""
    import pyarrow as pa  # noqa: PLC0415  # takes long to import

    try:
        with pa.memory_map(path) as source:
            is_file = source.read(len(_FILE_MAGIC)) == _FILE_MAGIC
            source.seek(0)
            if is_file:
                opened = pa.ipc.open_file(source)
                yield from map(opened.get_batch, range(opened.num_record_batches))
            else:
                yield from pa.ipc.open_stream(source)
    except (OSError, pa.ArrowException) as error:
        raise UserError("DataUnreadable", f"--from {path}: is no whole Arrow file: {error}") from error
