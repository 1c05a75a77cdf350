"""Times made coarse. The result is the beginning of the span in UTC, in RFC 3339."""

from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from streams.event import iso, milliseconds
from streams.transforms.form import ABSENT, Context, Example, Form, Kind

__all__ = ["DAY", "HOUR", "MONTH", "floor_to_month"]

_HOUR = 3_600_000
_DAY = 24 * _HOUR
# The years 1 to 9999, in milliseconds: what RFC 3339 can write.
_FIRST, _LAST = -62_135_596_800_000, 253_402_300_799_999


@lru_cache(maxsize=1024)
def _month_of_day(day: int) -> int:
    first = datetime.fromtimestamp(day * 86_400, UTC).replace(day=1)
    return int(first.timestamp()) * 1000


def floor_to_month(ms: int) -> int:
    """Return the first moment, in ms, of the month in UTC that `ms` lies in.

    >>> floor_to_month(1_700_000_000_000)
    1698796800000
    """
    return _month_of_day(min(max(ms, _FIRST), _LAST) // _DAY)


def _floor_to(span: int) -> Form:
    def coarsen(value: Any, _at: int) -> Any:
        try:
            ms = milliseconds(value)
        except ValueError:
            return ABSENT
        if not _FIRST <= ms <= _LAST:
            return ABSENT
        return iso(ms // span * span if span <= _DAY else floor_to_month(ms))

    return coarsen


_MONTH = 31 * _DAY


def _hour(_parameters: None, _context: Context) -> Form:
    return _floor_to(_HOUR)


def _day(_parameters: None, _context: Context) -> Form:
    return _floor_to(_DAY)


def _month(_parameters: None, _context: Context) -> Form:
    return _floor_to(_MONTH)


_PROTECTS = "the moment at which somebody did something, by which two data sets are joined"

HOUR = Kind(
    "hour",
    "a time to its hour",
    _PROTECTS,
    _hour,
    precision=_HOUR,
    examples=(
        Example(None, "2026-03-01T09:59:59.999Z", "2026-03-01T09:00:00Z"),
        Example(None, "2026-03-01T00:30:00+02:00", "2026-02-28T22:00:00Z"),
        Example(None, 1_764_549_000_000, "2025-12-01T00:00:00Z"),
        Example(None, "2026-03-01T09:00:00Z", "2026-03-01T09:00:00Z"),
        Example(None, "2026-03-01 09:59:59", ABSENT),
        Example(None, "yesterday", ABSENT),
        Example(None, 1.5, ABSENT),
        Example(None, 1 << 61, ABSENT),
        Example(None, "0001-01-01T00:00:00+14:00", ABSENT),
    ),
)
DAY = Kind(
    "day",
    "a time to its day",
    _PROTECTS,
    _day,
    precision=_DAY,
    examples=(
        Example(None, "2026-03-01T09:59:59Z", "2026-03-01T00:00:00Z"),
        Example(None, "1969-12-31T23:00:00Z", "1969-12-31T00:00:00Z"),
    ),
)
MONTH = Kind(
    "month",
    "a time to its month",
    _PROTECTS,
    _month,
    precision=_MONTH,
    examples=(
        Example(None, "2026-03-31T09:59:59Z", "2026-03-01T00:00:00Z"),
        Example(None, "9999-12-31T23:59:59Z", "9999-12-01T00:00:00Z"),
        Example(None, 1 << 61, ABSENT),
    ),
)
