"""The periods into which samples are cut by time: of a fixed length, or of the calendar."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from data_prep.stream import StreamError

# Lengths of a period: in microseconds from the first sample on, or in months of the calendar.
_LENGTHS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_MONTHS = {"mo": 1, "q": 3, "y": 12}


@dataclass(frozen=True)
class Period:
    """The time between two cuts: `microseconds` from the first sample on, or calendar `months`."""

    microseconds: int = 0
    months: int = 0

    @classmethod
    def read(cls, text: str) -> Period:
        """Return what --every says. Raises StreamError."""
        match = re.fullmatch(r"(\d+)(mo|[smhdwqy])", text)
        if not match or not int(match.group(1)):
            raise StreamError(
                f"--every {text}: expected a number and s, m (minutes), h, d, w, mo (months), q "
                "(quarters) or y, such as 7d or 1mo"
            )
        count, unit = int(match.group(1)), match.group(2)
        if unit in _MONTHS:
            return cls(months=count * _MONTHS[unit])
        return cls(microseconds=count * _LENGTHS[unit] * 1_000_000)

    def numbers(self, times: np.ndarray, first: int) -> np.ndarray:
        """Return the number of the period of each time; `first` is the first sample's time."""
        if self.months:
            since_1970 = times.astype("datetime64[us]").astype("datetime64[M]").astype(np.int64)
            return since_1970 // self.months
        return (times - first) // self.microseconds

    def start(self, moment: int, first: int) -> int:
        """Return the start of the period that holds `moment`, in microseconds since 1970."""
        number = int(self.numbers(np.array([moment]), first)[0])
        if not self.months:
            return first + number * self.microseconds
        month = np.datetime64(number * self.months, "M")
        return int(month.astype("datetime64[us]").astype(np.int64))

    def name(self, start: int) -> str:
        """Return what the period that begins at `start` is called: 2026, 2026-Q1, 2026-03, ..."""
        text = str(np.datetime64(start, "us"))
        year, month = text[:4], int(text[5:7])
        if self.months == 12:
            return year
        if self.months == 3:
            return f"{year}-Q{(month + 2) // 3}"
        if self.months:
            return text[:7]
        whole_days = self.microseconds % (_LENGTHS["d"] * 1_000_000) == 0
        # A test set, and so a file, is named by this: no colons.
        return text[:10] if whole_days else text[:19].replace(":", "-")
