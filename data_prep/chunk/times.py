"""Times as people write them -> microseconds since 1970 in UTC, and the form that was read."""

from __future__ import annotations

import re
import unicodedata
from datetime import date, datetime, time, timezone
from typing import Any

from data_prep.errors import DataError, shown

# Units of numbers since 1970, and what they must span to be taken for such: 1990 to 2100.
EPOCHS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_FIRST, _LAST = 631_152_000, 4_102_444_800
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?")
_USUAL = re.compile(r"\d{4}-\d\d-\d\d(?:[T ](?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d)?Z?")
_DATE = re.compile(
    r"(?P<year>\d{4})(?:"
    r"(?P<sep>[-/._ ])(?P<month>\d\d?)(?P=sep)(?P<day>\d\d?)"
    r"|(?P<exif>:)(?P<month1>\d\d):(?P<day1>\d\d)|(?P<month2>\d\d)(?P<day2>\d\d)"
    r"|-(?P<nth>\d{3})(?!\d)|-(?P<month3>\d\d)(?!\d)"
    r"|-?W(?P<week>\d\d)(?:-?(?P<weekday>[1-7]))?"
    r"|\s?[\u5e74\ub144]\s?(?P<month4>\d\d?)\s?[\u6708\uc6d4]\s?(?P<day4>\d\d?)\s?[\u65e5\uc77c])"
)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = rf"(?P<name>{'|'.join(_MONTHS)})[a-z]*"
_WEEKDAY = r"(?:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*[,.]?\s+)?"
_NTH = r"(?P<day>\d\d?)(?:st|nd|rd|th)?"
# "5 January 2024", "05-Jan-2024", "05/Jan/2024:", "Jan 5, 2024"; "Jan 5 10:11:12 +0000 2024"
_NAMED = re.compile(
    rf"{_WEEKDAY}(?:{_NTH}[-/\s.]*{_MONTH}[-/\s.,]*|{_MONTH.replace('name', 'name1')}[-\s.]*"
    rf"{_NTH.replace('day', 'day1')}[,\s-]+)(?P<year>\d{{4}})",
    re.IGNORECASE,
)
_YEAR_LAST = re.compile(
    rf"{_WEEKDAY}{_MONTH}\s+{_NTH}\s+(?P<time>\d\d?:\d\d:\d\d(?:\s+[-+A-Z]\S*)?)\s+(?P<year>\d{{4}})",
    re.IGNORECASE,
)
_TIME = re.compile(
    r"[T\s_:.-]+(?P<hour>\d\d?)(?:(?P<sep>[:.-]?)(?P<minute>\d\d)(?:(?P=sep)(?P<second>\d\d)"
    r"(?:[.,](?P<part>\d+))?)?)?\s*(?P<half>[ap]\.?m\.?)?"
    r"\s*(?P<zone>Z|UTC|GMT|[-+]\d\d(?::?\d\d)?)?(?(zone)(?:\[[\w/+-]+\])?)",
    re.IGNORECASE,
)
_YEAR = range(1000, 2200)
# Digits alone, by their count (7: year and day of the year).
# 201001 could be the month or a day of 2020: it is not read.
_DIGITS = {7: "%Y%j", 8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}


def microseconds(value: Any, column: str, epoch: str | None = None) -> tuple[int, str]:
    """Return a time stamp as microseconds since 1970 in UTC, and its form in words.

    A time without a zone counts as UTC, a year as its first day.

    Args:
        value: a date or a time; text that begins with the year (ISO 8601 in all its forms, EXIF,
            other marks between the parts) or names the month in English; a year; or a number since
            1970 whose unit follows from its size if that puts it between 1990 and 2100. Never
            05/06/2024, which is a day of May in one country and of June in another.
        column: for the message.
        epoch: s, ms, us or ns: all numbers are that, whatever their size.

    Raises:
        DataError: none of these.
    """
    try:
        if isinstance(value, bool):
            raise ValueError
        # pandas makes whole numbers floats where another row has none.
        if isinstance(value, int | float):
            value = str(int(value)) if float(value).is_integer() else repr(value)
        if isinstance(value, date) and not isinstance(value, datetime):
            value = datetime.combine(value, time())
        if isinstance(value, datetime):
            return _stamp(value), "dates and times"
        text = unicodedata.normalize("NFKC", value).replace("\u2212", "-").strip()
        if epoch or _NUMBER.fullmatch(text):
            return _from_number(text, epoch)
        if _USUAL.fullmatch(text):
            return _stamp(datetime.fromisoformat(text.removesuffix("Z"))), "dates and times"
        return _from_text(text)
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(
            "time",
            f"column {column!r}: found {shown(value)}, expected a time such as "
            "2026-01-31T12:00:00, 20260131, 2026 or seconds since 1970 (from 1990 to 2100; "
            "--epoch s for others); 05/06/2024 may be May or June",
        ) from error


def _from_text(text: str) -> tuple[int, str]:
    match = _DATE.match(text) or _NAMED.match(text)
    rest = text[match.end() :] if match else ""
    if last := _YEAR_LAST.fullmatch(text):
        match, rest = last, " " + last["time"]
    if match is None:
        raise ValueError
    parts = {key.rstrip("1234"): part for key, part in match.groupdict().items() if part}
    year = int(parts["year"])
    if "week" in parts:
        day = date.fromisocalendar(year, int(parts["week"]), int(parts.get("weekday", 1)))
    elif "nth" in parts:
        day = _strict(f"{year:04}{parts['nth']}", "%Y%j").date()
    else:
        named = parts.get("name", "").lower()
        month = _MONTHS.index(named) + 1 if named else int(parts["month"])
        day = date(year, month, int(parts.get("day", 1)))
    form = "EXIF times" if "exif" in parts else "dates and times"
    return _stamp(datetime.combine(day, time())) + _time_of_day(rest), form


def _time_of_day(text: str) -> int:
    """Return the microseconds since midnight in UTC; of no text none."""
    if not text.strip(":,_"):
        return 0
    match = _TIME.fullmatch(text)
    if match is None or (text[0] == "-" and not match["second"]):  # "-08:00" may be a zone
        raise ValueError
    hour, minute, second = (int(match[key] or 0) for key in ("hour", "minute", "second"))
    if half := (match["half"] or "").lower():
        if not 1 <= hour <= 12:
            raise ValueError
        hour = hour % 12 + 12 * half.startswith("p")
    if hour > 24 or minute > 59 or second > 60:  # 24:00 and a leap second are the next day's
        raise ValueError
    zone = (match["zone"] or "").lstrip("ZzUuTtCcGgMm").replace(":", "")
    ahead = (
        (int(zone[1:3]) * 60 + int(zone[3:] or 0)) * (-1 if zone[0] == "-" else 1) if zone else 0
    )
    part = int((match["part"] or "0")[:6].ljust(6, "0"))
    return ((hour * 60 + minute - ahead) * 60 + second) * 1_000_000 + part


def _strict(text: str, form: str) -> datetime:
    moment = datetime.strptime(text, form)
    if moment.year != int(text[:4]):  # Python takes day 366 of any year
        raise ValueError
    return moment


def _stamp(moment: datetime) -> int:
    moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    return int(moment.timestamp() * 1e6)


def _from_number(text: str, epoch: str | None) -> tuple[int, str]:
    """Return what a number means: digits of a date, a year, or the time since 1970."""
    if epoch:
        return int(float(text) * EPOCHS[epoch] * 1e6), f"numbers since 1970 in {epoch}"
    if text.isdecimal() and len(text) == 4 and int(text) in _YEAR:
        return _stamp(datetime(int(text), 1, 1)), "years"
    # Before dates in digits: as a number since 1970, none of those lies between 1990 and 2100.
    for unit, seconds in EPOCHS.items():
        if _FIRST <= float(text) * seconds < _LAST:
            return int(float(text) * seconds * 1e6), f"numbers since 1970 in {unit}"
    if text.isdecimal() and len(text) in _DIGITS and int(text[:4]) in _YEAR:
        return _stamp(_strict(text, _DIGITS[len(text)])), "dates without dashes"
    raise ValueError
