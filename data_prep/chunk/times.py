"""Times as people write them -> microseconds since 1970 in UTC, and the form that was read."""

from __future__ import annotations

import re
from datetime import date, datetime, time, timezone
from typing import Any

from data_prep.errors import DataError, shown

# Units of numbers since 1970, and what they must span to be taken for such: 1990 to 2100.
EPOCHS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_FIRST, _LAST = 631_152_000, 4_102_444_800
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?")
_EXIF = re.compile(r"(\d{4}):(\d\d):(\d\d)(?: (\d\d:\d\d:\d\d(?:\.\d+)?))?")
_YEAR = range(1000, 2200)
# Digits alone, by their count. 201001 could be the month or a day of 2020: it is not read.
_DIGITS = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}


def microseconds(value: Any, column: str, epoch: str | None = None) -> tuple[int, str]:
    """Return a time stamp as microseconds since 1970 in UTC, and its form in words.

    A time without a zone counts as UTC, a year as its first day.

    Args:
        value: ISO 8601 text (basic or extended), a year, an EXIF time, a date, or a number since
            1970 whose unit follows from its size if that puts it between 1990 and 2100.
        column: for the message.
        epoch: s, ms, us or ns: all numbers are that, whatever their size.

    Raises:
        DataError: none of these.
    """
    try:
        if isinstance(value, bool):
            raise ValueError
        if isinstance(value, int | float):
            value = str(int(value)) if float(value).is_integer() else repr(value)
        if isinstance(value, date) and not isinstance(value, datetime):
            value = datetime.combine(value, time())
        if isinstance(value, datetime):
            return _stamp(value), "dates and times"
        text = value.strip()
        if epoch or _NUMBER.fullmatch(text):
            return _from_number(text, epoch)
        if match := _EXIF.fullmatch(text):
            year, month, day, rest = match.groups()
            moment = datetime.fromisoformat(f"{year}-{month}-{day}T{rest or '00:00:00'}")
            return _stamp(moment), "EXIF times"
        return _stamp(datetime.fromisoformat(_iso(text))), "dates and times"
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(
            "time",
            f"column {column!r}: found {shown(value)}, expected a time such as "
            "2026-01-31T12:00:00, 20260131, 2026 or seconds since 1970 (from 1990 to 2100; "
            "--epoch s for others)",
        ) from error


def _iso(text: str) -> str:
    text = text[:-1] + "+00:00" if text.endswith(("Z", "z")) else text
    return f"{text}-01" if re.fullmatch(r"\d{4}-\d\d", text) else text


def _stamp(moment: datetime) -> int:
    moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    return int(moment.timestamp() * 1e6)


def _from_number(text: str, epoch: str | None) -> tuple[int, str]:
    """Return what a number means: digits of a date, a year, or the time since 1970."""
    if epoch:
        return int(float(text) * EPOCHS[epoch] * 1e6), f"numbers since 1970 in {epoch}"
    if text.isdecimal() and len(text) == 4 and int(text) in _YEAR:
        return _stamp(datetime(int(text), 1, 1)), "years"
    for unit, seconds in EPOCHS.items():
        if _FIRST <= float(text) * seconds < _LAST:
            return int(float(text) * seconds * 1e6), f"numbers since 1970 in {unit}"
    if text.isdecimal() and len(text) in _DIGITS and int(text[:4]) in _YEAR:
        return _stamp(datetime.strptime(text, _DIGITS[len(text)])), "dates without dashes"
    raise ValueError
