"""Progress of anything that takes longer than two seconds."""

from __future__ import annotations

import time
from typing import Any

EVERY = 2.0  # seconds between two lines of a log


class Progress:
    """Shows progress: a bar on a terminal, a plain line every few seconds in a log."""

    def __init__(self, title: str, unit: str = "samples") -> None:
        self.title, self.unit = title, unit
        self.last = time.monotonic()
        self._bar: Any = None  # rich's, made when first needed

    def __call__(self, done: int, total: int | None, last: str = "") -> None:
        """Report `done` of `total` units (None: not known), `last` being what was just done."""
        from rich.console import Console
        from rich.progress import Progress as Bar

        if Console(stderr=True).is_terminal:
            if self._bar is None:
                self._bar = Bar(transient=True, console=Console(stderr=True))
                self._bar.start()
                self._row = self._bar.add_task(self.title, total=total)
            self._bar.update(self._row, completed=done, total=total)
            if done == total:
                self.close()
        elif time.monotonic() - self.last > EVERY:
            self.last = time.monotonic()
            of = "" if total is None else f" of {total}"
            what = f" ({last})" if last else ""
            print(f"{self.title}: {done}{of} {self.unit}{what}", flush=True)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
