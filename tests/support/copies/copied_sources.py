"""Copies of the sources, which a test changes as an author would, and uses in another process."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def copied(root: Path) -> Path:
    """Copy core, operator and trainer below a folder; return where packages are imported from."""
    source, without = root / "src", shutil.ignore_patterns("__pycache__")
    for part in ("operator", "trainer"):
        shutil.copytree(ROOT / part / "src", source, ignore=without, dirs_exist_ok=True)
    return source


def insert(file: Path, text: str, *, before: str | None) -> None:
    """Put a text before another one, or at a file's end."""
    content = file.read_text()
    position = len(content) if before is None else content.index(before)
    file.write_text(content[:position] + text + content[position:])


def used(source: Path, script: str, *arguments: str | Path) -> str:
    """Run a script of this folder over copied sources; return what it printed."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name(script), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(source), str(ROOT / "tests")]), "COLUMNS": "140"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
