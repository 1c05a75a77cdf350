"""What a policy says about one crowd purpose, compiled.

Rules of this file:
- Numbers are fixed-point, in millionths: sums of them do not depend on the order, or on how often it was restarted.
- `k` is never below `LEAST_K`, whatever a policy says.
"""

import math
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

__all__ = ["LEAST_K", "LONGEST_CELL", "MOST_BYTES", "UNIT", "CrowdRule", "Noise", "Sum", "fixed"]

LEAST_K = 5
"""No policy lowers the number of people below which a cell is not told."""
_FARTHEST = 2**62
LONGEST_CELL = 10_000
"""Bytes of the values of one cell, as JSON: what is longer tells a person, or is text."""
MOST_BYTES = 500_000
"""Of a record of state, and of one between the stages. Brokers take 1,048,588 as they come."""
UNIT = 1_000_000
"""What one is, in fixed-point."""


def fixed(number: Any) -> int | None:
    """Return a number in millionths, rounded half to even; None for what is no finite number.

    What is beyond any range that a policy may declare comes to the same as the farthest that 64 bits hold.

    >>> fixed(2.55), fixed(-1), fixed(float("inf")), fixed(True), fixed("7"), fixed(1e300) == 2**62
    (2550000, -1000000, None, None, None, True)
    """
    if type(number) is float:
        if -1e12 < number < 1e12:
            return round(number * UNIT)
        if not math.isfinite(number):
            return None
        number = int(number)
    elif type(number) is not int:
        return None
    return int(min(max(number * UNIT, -_FARTHEST), _FARTHEST))


@dataclass(frozen=True, slots=True)
class Sum:
    """A field that is summed up. What one person adds to one cell of a window lies between `low` and `high`."""

    path: str
    low: int
    """in millionths"""
    high: int
    """in millionths"""

    def clamp(self, value: int) -> int:
        """Return a person's part of a sum, brought into the range.

        >>> Sum("quantity", 0, 100).clamp(250), Sum("quantity", 0, 100).clamp(-3)
        (100, 0)
        """
        return min(max(value, self.low), self.high)


@dataclass(frozen=True, slots=True)
class Noise:
    """Differential privacy for one window of one purpose (Dwork, Roth: The Algorithmic Foundations, 2014)."""

    epsilon: float
    """what one window costs each person in it"""
    delta: float
    """the chance that a cell of few people is told because of the noise"""
    daily: float
    """the most that one person may spend in a day (UTC) of event time"""


@dataclass(frozen=True, slots=True)
class CrowdRule:
    """How one purpose counts. Times are in milliseconds."""

    purpose: str
    k: int
    """the fewest distinct people of a cell that is told"""
    window: int
    late: int
    """how long after its end a window still takes events"""
    by: tuple[str, ...]
    """the fields whose values make a cell"""
    sums: tuple[Sum, ...] = ()
    most_per_person: int = 1
    """the most cells of a window that one person adds to: the first ones count"""
    most_events: int | None = None
    """the most events of a person that count in one cell; None: all"""
    most_cells: int = 10_000
    """the most cells of an open window that a partition holds, and that a release holds"""
    hold: int = 86_400_000
    """how long after `late` a window waits for partitions that are behind, before it is dropped"""
    noise: Noise | None = None
    top: int | None = None
    """tell only so many of the largest cells"""

    def shape(self) -> str:
        """Return what tells what was counted under this rule from what was counted under one that counts otherwise.

        >>> rule = CrowdRule("stock", 5, 3_600_000, 0, ("country",))
        >>> rule.shape() == CrowdRule("stock", 50, 3_600_000, 60_000, ("country",)).shape()
        True
        >>> rule.shape() == CrowdRule("stock", 5, 3_600_000, 0, ("city",)).shape()
        False
        """
        sums = [(one.path, one.low, one.high) for one in self.sums]
        said = self.window, self.by, sums, self.most_per_person, self.most_events, self.noise
        return blake2b(repr(said).encode(), digest_size=6).hexdigest()

    def window_of(self, recorded: int) -> int:
        """Return the beginning of the window in which an event lies.

        >>> CrowdRule("stock", 5, 3_600_000, 0, ("country",)).window_of(3_700_000)
        3600000
        """
        return recorded // self.window * self.window

    def closes(self, window: int) -> int:
        """Return the time that every partition must have passed before a window is closed."""
        return window + self.window + self.late

    def closable(self, watermark: int) -> int:
        """Return the last window that a watermark closes.

        >>> rule = CrowdRule("stock", 5, window=100, late=10, by=("country",))
        >>> [rule.closable(watermark) for watermark in (109, 110, 209, 210)]
        [-100, 0, 0, 100]
        """
        return (watermark - self.late) // self.window * self.window - self.window
