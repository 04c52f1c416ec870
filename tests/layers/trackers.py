"""Trackers of a user's own, as tests want them."""

from collections.abc import Callable, Mapping
from typing import Any

TOLD: list[Any] = []


class Run:
    def __init__(self, description: Mapping[str, Any]) -> None:
        TOLD.append(description)

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        TOLD.append((step, dict(values)))

    def close(self) -> None:
        TOLD.append("closed")


def failing(_: Mapping[str, Any]) -> Callable[..., None]:
    def fail(step: int, values: Mapping[str, float]) -> None:
        raise ConnectionError(f"the server is on holiday in step {step}")

    return fail


def never(_: Mapping[str, Any]) -> None:
    raise SystemExit(3)


NO_FUNCTION = 3
