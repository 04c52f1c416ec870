"""The pictures in docs/images: pages of the project as a browser shows them, made by one command.

    python tests/pictures.py [plan] [report]      # or `make pictures`: both

It needs chromium, and for the report a few minutes, as it trains the example. `drawn_from.json`
beside the pictures holds a digest of the page that each shows, so that a test finds out without a
browser when a picture is out of date: for a plan the page itself, for a report that of a made-up
run, as no two runs measure the same.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelinejob_operator.report.pages.run import run_page
from pipelinejob_operator.report.summary import summarise
from support.plans import run_samples

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "images"
DRAWN_FROM = FOLDER / "drawn_from.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """The page that is drawn, the page whose digest tells if it is current, and the pixels."""

    page: Callable[[], str]
    held_by: Callable[[], str]
    size: tuple[int, int]


def plan() -> str:
    """Return the page of the README's plan."""
    example = ROOT / "examples"
    fabric = "examples/fabrics/uneven-leaf-spine.yaml"
    return _written_by("plan", str(example / "gpt-13b.yaml"), "--fabric", fabric, "--html", "{file}")


def top_of_plan() -> str:
    """Return what of that page the picture shows: all down to the fabric."""
    return plan().partition("</section>")[0]


def report() -> str:
    """Train the example, and return its report."""
    return _written_by("run", str(ROOT / "examples" / "stdlib-gpt.yaml"), "--output", "{folder}")


def sample_report() -> str:
    """Return the report of a made-up run."""
    timelines = {"predicted": run_samples.predicted(), "measured": run_samples.measured()}
    steps = run_samples.steps()
    summary = summarise(run_samples.plan(), status=run_samples.status(), steps=steps, **timelines)
    return run_page(summary, steps=steps, schedule=run_samples.schedule(), **timelines)


PICTURES = {
    "plan": Picture(page=plan, held_by=top_of_plan, size=(1240, 940)),
    "report": Picture(page=report, held_by=sample_report, size=(1200, 1480)),
}


def _written_by(*arguments: str) -> str:
    """Run a command of ours, and return the page that it writes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.html"
        filled_in = [argument.format(file=file, folder=folder) for argument in arguments]
        subprocess.run(
            [sys.executable, "-m", "pipelinejob", *filled_in], cwd=ROOT, stdout=subprocess.DEVNULL, check=True
        )
        return file.read_text(encoding="utf-8")


def digest(name: str) -> str:
    """Return the digest of the page that tells whether a picture is current."""
    return hashlib.sha256(PICTURES[name].held_by().encode()).hexdigest()


def recorded() -> dict[str, str]:
    """Return the digests with which the pictures were drawn, by name."""
    found: dict[str, str] = json.loads(DRAWN_FROM.read_text())
    return found


def draw(name: str) -> None:
    """Draw one picture, and record what it was drawn from."""
    picture = PICTURES[name]
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(picture.page(), encoding="utf-8")
        width, height = picture.size
        look = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},{height}"]
        file = f"--screenshot={FOLDER / name}.png"
        subprocess.run(
            ["chromium", *look, f"--user-data-dir={folder}/browser", file, page.as_uri()],
            check=True,
            capture_output=True,
        )
    DRAWN_FROM.write_text(json.dumps({**recorded(), name: digest(name)}, indent=1, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{' or '.join(PICTURES)}; all if none is given")
    names = parser.parse_args().names or [*PICTURES]
    unknown = [name for name in names if name not in PICTURES]
    if unknown:
        parser.error(f"{unknown[0]}: there is no such picture; there are {', '.join(PICTURES)}")
    for name in names:
        draw(name)
        print(f"drew {FOLDER / name}.png")


if __name__ == "__main__":
    main()
