"""One thing that was found out about this machine before a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What was found, what was expected, and the fix; `stops`: the run cannot start so."""

    subject: str
    text: str
    stops: bool = True

    def __str__(self) -> str:
        return f"{self.subject}: {self.text}"

    def line(self) -> str:
        """The finding as one comment of a dry run, of as many lines as its text."""
        text = str(self).replace("\n", "\n#          ")
        return f"# {'MISSING ' if self.stops else 'NOTE    '} {text}"
