"""Templates filled in: what all pages have in common, and the charts that stand on them.

Templates escape whatever they are given. Only charts and style sheets, which are markup of our
own, go in as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipelinejob_operator.report.looks import Look, shade_class, style_sheet
from pipelinejob_operator.report.numbers import count, gib, percent, seconds
from pipelinejob_operator.report.pictures.svg import WIDTH
from pipelinejob_operator.report.plan_view import counts_text, price_text
from pipelinejob_operator.report.run_view import layers

_LEAST_SCALE = 0.7  # of a chart's own size: a label of 12 pixels can still be read on a large screen
_WRITERS = (count, counts_text, gib, layers, percent, price_text, seconds, shade_class)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A picture with its legend, in a box that scrolls where the page is too narrow to read it.

    Sizes are in pixels. `shades` says what the shades of the looks stand for; without looks there
    is no legend.
    """

    svg: Markup
    full: float
    least: float
    looks: Sequence[Look]
    shades: Mapping[int, str]


def chart(
    svg: str,
    width: float = WIDTH,
    *,
    page_width: float = WIDTH,
    looks: Sequence[Look] = (),
    shades: Mapping[int, str] | None = None,
) -> Chart:
    """Put a picture into its box.

    One that is drawn wider than its page is not shrunk at all; others somewhat, but not on a
    phone.
    """
    least = width if width > page_width else width * _LEAST_SCALE
    drawn = Markup(svg)  # noqa: S704  # by our own `pictures`, which escape the names in it
    return Chart(svg=drawn, full=width, least=least, looks=looks, shades=shades or {})


def render(template: str, **content: Any) -> str:
    """Fill in the template of that name; every name that it uses must be given."""
    return _environment().get_template(template).render(**content)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipelinejob_operator.report.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals |= {writer.__name__: writer for writer in _WRITERS}
    environment.globals["look_rules"] = Markup(style_sheet())  # noqa: S704  # colours of ours
    return environment
