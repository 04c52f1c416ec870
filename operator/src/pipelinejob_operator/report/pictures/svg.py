"""The few elements of all pictures, as SVG markup. Colours come by class, from style sheets."""

from html import escape

WIDTH = 1076
LEFT = 64  # room for the names of rows and axes


def opened(height: float, label: str, *, width: float = WIDTH) -> str:
    """Open a picture that fills its page's width."""
    return f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(label)}">'


def line(x1: float, y1: float, x2: float, y2: float, *, style: str = "grid") -> str:
    """Draw a line."""
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def text(x: float, y: float, content: str, *, anchor: str, style: str = "") -> str:
    """Write a line of text; `anchor` is start, middle or end."""
    styled = f' class="{style}"' if style else ""
    return f'<text{styled} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def rect(x: float, y: float, width: float, height: float, *, style: str, tip: str = "", radius: float = 0.0) -> str:
    """Draw a rectangle that says `tip` when pointed at."""
    rounded = f' rx="{radius:g}"' if radius else ""
    shape = f'<rect class="{style}" x="{x:.2f}" y="{y:.1f}" width="{width:.2f}" height="{height:.1f}"{rounded}'
    return f"{shape}><title>{escape(tip)}</title></rect>" if tip else f"{shape}/>"
