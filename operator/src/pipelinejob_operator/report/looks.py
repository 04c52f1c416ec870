"""The look of all that is drawn: name, letter and colour, the same on pages and in terminals.

The colours were chosen so that any two of them, shades included, stay apart under protanopia,
deuteranopia and tritanopia; letters say the same a second time. Work is strong, waiting is pale.
"""

from collections.abc import Collection
from dataclasses import dataclass

from pipelinejob.schedules.actions import ActionKind
from pipelinejob.schedules.causes import WaitCause

_SHADES = (0.0, 0.45, 0.22, 0.62)  # how far towards white: chunk 0, 1, 2, 3, then again from the first
_BRIGHT = 0.2  # of white's luminance: above it black text reads better than white


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How a kind of span, or a cause of a wait, is drawn. `key` is its class in style sheets."""

    key: str
    name: str
    light: str  # on a light page; #rrggbb
    dark: str | None = None  # on a dark page, where it differs
    letter: str = ""  # of work done on a micro-batch

    @property
    def is_work(self) -> bool:
        """Whether it is work rather than waiting; work fills the height of its row."""
        return self.dark is None

    @property
    def has_shades(self) -> bool:
        """Whether it is done chunk by chunk."""
        return bool(self.letter) and self.letter != ActionKind.UPDATE.value

    def shaded(self, shade: int) -> str:
        """Return a chunk's colour on a light page: the first has the look's own, others paler."""
        return _mixed(self.light, _SHADES[shade % len(_SHADES)])

    def ink(self, shade: int = 0) -> str:
        """Return the class of text that is readable on it, `on-dark` or `on-light`."""
        return "on-light" if luminance(self.shaded(shade)) > _BRIGHT else "on-dark"


FORWARD = Look(key="forward", name="forward", light="#3766b9", letter=ActionKind.FORWARD.value)
BACKWARD = Look(key="backward", name="backward", light="#b83602", letter=ActionKind.BACKWARD.value)
INPUT = Look(key="input", name="input gradient", light="#fbca3e", letter=ActionKind.INPUT.value)
WEIGHT = Look(key="weight", name="weight gradient", light="#76d0b7", letter=ActionKind.WEIGHT.value)
OPTIMIZER = Look(key="optimizer", name="optimizer", light="#7d2770", letter=ActionKind.UPDATE.value)
DATA = Look(key="data", name="data", light="#4f9a3a")
CHECKPOINT = Look(key="checkpoint", name="checkpoint", light="#6f7683")
EVALUATION = Look(key="evaluation", name="evaluation", light="#a9b82e")
WAIT = Look(key="wait", name="waiting", light="#dfe3ea", dark="#2f3641")

_WAITS = {
    WaitCause.SEND.value: Look(key="send", name="sending", light="#b5b75d", dark="#7b7330"),
    WaitCause.WARM_UP.value: Look(key="warm-up", name="waiting: warm-up", light="#8fadd0", dark="#3f5c84"),
    WaitCause.ACTIVATION.value: Look(
        key="activation", name="waiting for an activation", light="#b4cbe8", dark="#617087"
    ),
    WaitCause.GRADIENT.value: Look(key="gradient", name="waiting for a gradient", light="#dcc2b0", dark="#6f5045"),
    WaitCause.COOL_DOWN.value: Look(key="cool-down", name="waiting: cool-down", light="#d09f8b", dark="#5e3218"),
    WaitCause.PROCESSOR.value: Look(key="processor", name="waiting for a processor", light="#c9b8d6", dark="#5d4a6b"),
    WaitCause.BARRIER.value: Look(key="barrier", name="waiting at the barrier", light="#9e91ac", dark="#513e54"),
}

# By the names that seconds are counted under (`summary.seconds_by_cause`), and in the order in
# which they are stacked: what is wanted first, what is not last.
LOOKS = {
    "forward": FORWARD,
    "backward_input": BACKWARD,
    "input": INPUT,
    "backward_weight": WEIGHT,
    "optimizer": OPTIMIZER,
    "data": DATA,
    "checkpoint": CHECKPOINT,
    "evaluation": EVALUATION,
    **_WAITS,
    "recv": WAIT,
    "idle": WAIT,
}


def look_of(name: str) -> Look:
    """Return the look of a span kind or a cause, also of unknown ones."""
    return LOOKS.get(name) or Look(key=WAIT.key, name=f"waiting: {name}", light=WAIT.light, dark=WAIT.dark)


def looks_of(names: Collection[str]) -> list[Look]:
    """Return the looks of span kinds and causes, each once, in the order of legends."""
    return list({look.key: look for look in map(look_of, in_order(names))}.values())


def in_order(names: Collection[str]) -> list[str]:
    """Put span kinds and causes into the order in which they are stacked and explained."""
    order = list(LOOKS)
    return sorted(names, key=lambda name: order.index(name) if name in LOOKS else len(order))


def style_sheet() -> str:
    """Write the rules for all looks; a page's or a picture's own rules say the rest."""
    looks = tuple({look.key: look for look in LOOKS.values()}.values())
    plain = [f".{look.key}{{fill:{look.light};background:{look.light}}}" for look in looks]
    shaded = [
        f".{look.key}.s{shade}{{fill:{look.shaded(shade)};background:{look.shaded(shade)}}}"
        for look in looks
        if look.has_shades
        for shade in range(1, len(_SHADES))
    ]
    at_night = [f".{look.key}{{fill:{look.dark};background:{look.dark}}}" for look in looks if look.dark]
    return "".join([*plain, *shaded, "@media (prefers-color-scheme: dark){", *at_night, "}"])


def shade_class(shade: int) -> str:
    """Return the class that `style_sheet` has for a shade; nothing for the first."""
    number = shade % len(_SHADES)
    return f" s{number}" if number else ""


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour, 0 to 1 (WCAG 2)."""
    red, green, blue = (_linear(int(colour[at : at + 2], 16) / 255) for at in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _linear(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4  # noqa: PLR2004  # sRGB's own


def _mixed(colour: str, towards_white: float) -> str:
    parts = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(part + (255 - part) * towards_white):02x}" for part in parts)
