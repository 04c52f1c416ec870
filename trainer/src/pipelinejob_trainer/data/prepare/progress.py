"""How far preparing has come: one line that is written anew on a terminal, a line now and then elsewhere."""

import sys
import time

_EVERY_S, _LINE_EVERY_S = 0.2, 10.0


class Progress:
    """Tells of progress on standard error."""

    def __init__(self, total_bytes: int, *, done_bytes: int) -> None:
        self._total = max(1, total_bytes)
        self._done = self._before = done_bytes
        self._began = time.monotonic()
        self._is_terminal = sys.stderr.isatty()
        self._due = self._began + (0.0 if self._is_terminal else _LINE_EVERY_S)

    def finish_piece(self, count: int) -> None:
        """Add a piece of so many bytes."""
        self._done += count

    def show(self, documents: int, tokens: int) -> None:
        """Tell how far it is, if it is time."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + (_EVERY_S if self._is_terminal else _LINE_EVERY_S)
        self._write(self._line(documents, tokens))

    def end(self) -> None:
        """Leave the line."""
        if self._is_terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def _line(self, documents: int, tokens: int) -> str:
        passed = max(1e-9, time.monotonic() - self._began)
        left = (self._total - self._done) * passed / max(1, self._done - self._before)
        ahead = f"  {left / 60:.0f} min left" if self._done > self._before and left > 90 else ""  # noqa: PLR2004
        return (
            f"{self._done / self._total:4.0%}  {documents:,} documents  {tokens:,} tokens"
            f"  {tokens / passed:,.0f} tokens/s{ahead}"
        )

    def _write(self, line: str) -> None:
        sys.stderr.write(f"\r\x1b[K{line}" if self._is_terminal else f"{line}\n")
        sys.stderr.flush()
