"""Copies of published checkpoints in other places: volumes, or object stores that fsspec knows.

    <url>/<namespace>/<job>/step-00000100/     the files of the folder

SHA256SUMS is written last, so that what has none is half a copy.

One process copies, beside training. An object store has no rename, which is why a copy is only
ever read through its sums: it is fetched into the folder under a name of its own, verified, and
published there as a checkpoint is.
"""

import hashlib
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec

from pipelinejob.contract.plan import Plan
from pipelinejob_trainer.base.disk import sync
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.checkpoint.folder import STEP, SUMS, CheckpointFolder
from pipelinejob_trainer.checkpoint.shards import DamagedCheckpointError, file_digest, parse_sums


def places_of(plan: Plan) -> tuple[str, ...]:
    """Return the URLs below which a job's copies are, no other job's: as on the volume, by namespace and name."""
    return tuple(f"{url.rstrip('/')}/{plan.namespace}/{plan.name}" for url in plan.checkpoint.copies)


class Copies:
    """Where a job's checkpoints are copied to, as the one process sees it that does so."""

    def __init__(
        self, urls: Sequence[str], folder: CheckpointFolder, *, keep: int, warn: Callable[[str], None]
    ) -> None:
        self._urls = tuple(urls)
        self._folder = folder
        self._keep = keep
        self._warn = warn
        self._lock = threading.Lock()
        self._next: int | None = None
        self._copying: int | None = None
        self._thread: threading.Thread | None = None
        self._failures: list[str] = []

    def prepare(self) -> None:
        """Check that all places can be written, before the first step is trained. Raises UserError."""
        for url in self._urls:
            try:
                files, root = _open(url)
                files.pipe_file(f"{root}/.probe", b"copies of checkpoints can be written here\n")
                files.rm_file(f"{root}/.probe")
            except Exception as error:  # each store raises errors of its own
                raise UserError(
                    "CopyUnwritable",
                    f"spec.checkpoint.copies: {url}: {type(error).__name__}: {error}; give the trainer's image what"
                    " fsspec needs for it (s3fs, gcsfs, adlfs), and its pods the right to write there",
                ) from error

    def begin(self, step: int) -> None:
        """Start to copy a checkpoint, or note that it is the next, in place of one that waits for its turn."""
        if not self._urls:
            return
        with self._lock:
            if self._next is not None:
                self._warn(f"step {self._next} is not copied, as the copy before it took until step {step}")
            self._next = step
            if self._copying is None:
                self._copying = step
                self._thread = threading.Thread(target=self._run, name="copies", daemon=True)
                self._thread.start()

    def in_use(self) -> frozenset[int]:
        """Return the steps that are being copied, or are about to be."""
        with self._lock:
            return frozenset(each for each in (self._copying, self._next) if each is not None)

    def wait(self) -> None:
        """Wait until what was begun is there, or has failed."""
        if self._thread is not None:
            self._thread.join()

    def take_failures(self) -> list[str]:
        """Return why copies could not be written since the last call."""
        failures, self._failures = self._failures, []
        return failures

    def fetch_newer(self, than: int, *, is_allowed: Callable[[int, str], bool]) -> None:
        """Fetch the newest whole copy into the folder, if it is newer than a step that is there.

        `is_allowed` says of a step, and of the run that wrote it, whether it belongs to the job's
        history. Damaged copies are passed over, and told of.
        """
        for url, step in sorted(self._steps(), key=lambda each: -each[1]):
            if step <= than:
                return
            try:
                if self._fetch(url, step, is_allowed):
                    self._warn(
                        f"checkpoint step-{step:08d}: fetched from {url}, as {self._folder.root} has none so new"
                    )
                    return
            except Exception as error:  # noqa: BLE001  # as above
                self._warn(f"{url}/{_name(step)}: {type(error).__name__}: {error}; it is passed over")

    def _steps(self) -> Iterator[tuple[str, int]]:
        for url in self._urls:
            try:
                files, root = _open(url)
                names = [str(each).rstrip("/").rpartition("/")[2] for each in files.ls(root, detail=False)]
            except FileNotFoundError:
                continue
            except Exception as error:  # noqa: BLE001  # as above
                self._warn(f"{url}: {type(error).__name__}: {error}; no copy there is looked at")
                continue
            yield from ((url, int(match[1])) for name in names if (match := STEP.fullmatch(name)))

    def _fetch(self, url: str, step: int, is_allowed: Callable[[int, str], bool]) -> bool:
        files, root = _open(url)
        there, here = f"{root}/{_name(step)}", self._folder.root / f".{_name(step)}.fetched"
        sums = parse_sums(files.cat_file(f"{there}/{SUMS}").decode())
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir(parents=True)
        for name, digest in sums.items():
            if Path(name).name != name:
                raise DamagedCheckpointError(f"{SUMS} names {name}, which is no file of the copy")
            files.get_file(f"{there}/{name}", str(here / name))
            if file_digest(here / name) != digest:
                raise DamagedCheckpointError(f"{name} is not as it was written: its SHA-256 differs")
            sync(here / name)
        files.get_file(f"{there}/{SUMS}", str(here / SUMS))
        run = CheckpointFolder.run_of(here)
        if not is_allowed(step, run):
            shutil.rmtree(here)
            return False
        self._folder.adopt(here, step)
        return True

    def _run(self) -> None:
        while True:
            with self._lock:
                self._copying, self._next = self._next, None
                step = self._copying
            if step is None:
                return
            self._copy(step)

    def _copy(self, step: int) -> None:
        for url in self._urls:
            try:
                _write(url, self._folder.path(step), keep=self._keep)
            except Exception as error:  # noqa: BLE001  # as above
                failure = f"step {step}: cannot copy the checkpoint to {url}: {type(error).__name__}: {error}"
                self._warn(failure)
                self._failures.append(failure)


def _write(url: str, source: Path, *, keep: int) -> None:
    files, root = _open(url)
    there = f"{root}/{source.name}"
    files.makedirs(there, exist_ok=True)
    if files.exists(f"{there}/{SUMS}"):  # of an earlier run: no longer whole from here on
        files.rm_file(f"{there}/{SUMS}")
    for name in parse_sums((source / SUMS).read_text()):
        files.put_file(str(source / name), f"{there}/{name}")
    content = (source / SUMS).read_bytes()
    files.pipe_file(f"{there}/{SUMS}", content)
    if hashlib.sha256(files.cat_file(f"{there}/{SUMS}")).digest() != hashlib.sha256(content).digest():
        raise DamagedCheckpointError(f"{SUMS} reads back differently than it was written")
    names = [str(each).rstrip("/").rpartition("/")[2] for each in files.ls(root, detail=False)]
    older = sorted((name for name in names if STEP.fullmatch(name) and name < source.name), reverse=True)
    for name in older[keep - 1 :]:
        files.rm(f"{root}/{name}", recursive=True)


def _open(url: str) -> tuple[Any, str]:
    """Return a store and a path in it, which need not exist; what was listed before may have changed."""
    files, root = fsspec.url_to_fs(url, use_listings_cache=False)
    files.makedirs(root, exist_ok=True)
    return files, str(root).rstrip("/")


def _name(step: int) -> str:
    return f"step-{step:08d}"
