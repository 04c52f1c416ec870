"""The frame of every page: one file that needs nothing else, no network; its few lines of script only move tips."""

from html import escape

from pipelinejob_operator.report.looks import style_sheet
from pipelinejob_operator.report.style import SCRIPT, STYLE


def page(title: str, content: str, *, is_wide: bool = False) -> str:
    """Write a page around its content."""
    main = '<main class="wide">' if is_wide else "<main>"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{style_sheet()}</style></head><body>{main}{content}"
        f'</main><div id="tip" aria-hidden="true"></div><script>{SCRIPT}</script></body></html>\n'
    )


def section(title: str, content: str) -> str:
    """Write one card of a page."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>"
