"""What a server on this machine or in a pod answers over HTTP."""

from __future__ import annotations

import urllib.error
import urllib.request


def fetch(request: str | urllib.request.Request, *, timeout_s: float) -> str:
    """Return the body of an answer.

    Raises RuntimeError for an answer that is an error, with its code and what it says; OSError
    where nobody answers.
    """
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        with error:  # holds its connection until it is closed
            raise RuntimeError(f"{error.url}: {error.code} {error.read().decode()}") from error
