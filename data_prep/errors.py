"""Errors in samples, files and images, and how they are shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ERROR, WARNING = "error", "warning"


class DataError(ValueError):
    """A sample or file that cannot be used; `text` says what was found and how to fix it."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(code, text)
        self.code, self.text = code, text

    def __str__(self) -> str:
        return self.text

    def at(self, where: str, sample: str = "") -> Problem:
        """Return the problem with its place and the id of its sample, which may hold anything."""
        # A problem is written as JSON in UTF-8, which half a surrogate pair in an id would stop.
        return Problem(self.code, where, self.text, ERROR, printable(sample))


@dataclass(frozen=True)
class Problem:
    """One finding.

    Attributes:
        code: its kind, for example `image-missing`.
        where: file and line ("chunks/001.jsonl:12"), file and sample, or the file alone.
        text: what was found, what was expected, and the fix.
        severity: `error` (the data must not be trained on) or `warning`.
        sample: the sample's id, where it has one.
    """

    code: str
    where: str
    text: str
    severity: str = ERROR
    sample: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.text} [{self.code}]"

    def as_json(self) -> dict[str, Any]:
        """Return the problem as a JSON object."""
        return asdict(self)


def shown(value: Any, length: int = 60) -> str:
    """Return a value as an error message shows it: its repr, cut to `length` characters."""
    # Cut before repr: a text may be a picture of megabytes in base64.
    text = repr(value[:length]) if isinstance(value, str | bytes) else repr(value)
    whole = len(value) if isinstance(value, str | bytes) else len(text)
    return text if whole <= length else f"{text[:length]}..."


def printable(text: str) -> str:
    """Return a text as UTF-8 can hold it: what names of files may have beside becomes `\\udce9`."""
    return text.encode(errors="backslashreplace").decode()


def expect_utf8(path: Path) -> None:
    """Raise DataError where a name in `path` is not UTF-8: no manifest or report can hold it."""
    for name in path.parts:
        if printable(name) != name:
            raise DataError("file-name", f"the name {name!r} is not UTF-8; rename it")


def listing(problems: Sequence[Problem], most: int = 20, of_a_kind: int | None = None) -> str:
    """Return the first `most` problems, one a line, and how many more there are by code.

    Problems with the same words are one line, at the first place where they were found; of one
    code at most `of_a_kind` are shown (None: no limit).
    """
    same: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        same.setdefault((problem.code, problem.text), []).append(problem)
    lines: list[str] = []
    shown_of, rest = Counter[str](), Counter[str]()
    for (code, _), group in same.items():
        if len(lines) < most and (of_a_kind is None or shown_of[code] < of_a_kind):
            shown_of[code] += 1
            lines.append(f"{group[0]}" + (f" (and {len(group) - 1} more)" if group[1:] else ""))
        else:
            rest[code] += len(group)
    if rest:
        kinds = ", ".join(f"{code} x {count}" for code, count in sorted(rest.items()))
        lines.append(f"... and {rest.total()} more: {kinds}")
    return "\n".join(lines)
