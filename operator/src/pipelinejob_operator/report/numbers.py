"""Numbers as people read them: durations, shares, and the round ones along an axis."""

import math

_DIGITS = 5


def seconds(value: float | None) -> str:
    """Write a duration so that a person can compare it."""
    if value is None:
        return "–"
    if value >= 1:
        return f"{value:.3g} s" if value < 100 else f"{value:.0f} s"  # noqa: PLR2004  # three digits either way
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.0f} µs"  # noqa: PLR2004


def plain(value: float | None) -> str:
    """Write a duration in whatever unit it was given, with five digits."""
    if value is None:
        return "–"
    written = f"{value:,.{max(0, _DIGITS - len(str(int(abs(value)))))}f}"
    return written.rstrip("0").rstrip(".") if "." in written else written


def percent(ratio: float | None, digits: int = 1) -> str:
    """Write a share."""
    return "–" if ratio is None else f"{ratio:.{digits}%}"


def count(number: float | None) -> str:
    """Write a whole number."""
    return "–" if number is None else f"{number:,.0f}"


def gib(num_bytes: float | None) -> str:
    """Write a size of memory so that a person can compare it."""
    if num_bytes is None:
        return "–"
    return f"{num_bytes / 2**30:,.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.0f} MiB"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers that cover [low, high]."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]
