"""Numbers made coarse: rounded to a step, or told as a range."""

from bisect import bisect_right
from itertools import pairwise
from math import floor, isfinite
from typing import Any

from streams.transforms.form import ABSENT, Context, Example, Form, Kind

__all__ = ["BUCKET", "ROUND"]


def _number(value: Any) -> bool:
    # Integers beyond the range of a double are nobody's price, and rounding could make them longer than JSON may be.
    return (type(value) is int and value.bit_length() <= 1024) or (type(value) is float and isfinite(value))


def _round(step: Any, _context: Context) -> Form:
    if not _number(step) or not step > 0:
        raise ValueError("wanted the step, a number above 0, as in {round: 10}")

    def round_to_step(value: Any, _at: int) -> Any:
        if not _number(value):
            return ABSENT
        if type(step) is int and type(value) is int:
            return (2 * value + step) // (2 * step) * step
        try:
            rounded = floor(value / step + 0.5) * step
        except OverflowError:
            return ABSENT
        if type(step) is int:
            return int(rounded)
        # 3 * 0.1 is 0.30000000000000004: fifteen digits are all that two doubles multiplied can promise.
        rounded = float(f"{rounded:.15g}")
        return rounded if isfinite(rounded) else ABSENT

    return round_to_step


def _bucket(edges: Any, _context: Context) -> Form:
    if type(edges) is not list or not edges or not all(map(_number, edges)) or any(a >= b for a, b in pairwise(edges)):
        raise ValueError("wanted the edges, numbers that rise, as in {bucket: [0, 10, 50]}")
    inner = [f"{a}..{b}" for a, b in pairwise(edges)]
    labels = [f"<{edges[0]}", *inner, f">={edges[-1]}"]
    known = frozenset(labels)

    def bucket(value: Any, _at: int) -> Any:
        if _number(value):
            return labels[bisect_right(edges, value)]
        return value if type(value) is str and value in known else ABSENT

    return bucket


_STEP = {"type": "number", "exclusiveMinimum": 0}
_EDGES = {"type": "array", "items": {"type": "number"}, "minItems": 1}

ROUND = Kind(
    "round",
    "a number to the nearest multiple of a step, halves up",
    "an exact price or amount, which often is one order only",
    _round,
    _STEP,
    examples=(
        Example(10, 14, 10),
        Example(10, 15, 20),
        Example(10, -15, -10),
        Example(10, 2.55, 0),
        Example(0.1, 0.32, 0.3),
        Example(10, 9007199254740993, 9007199254740990),
        Example(10, True, ABSENT),
        Example(10, "14", ABSENT),
    ),
)
BUCKET = Kind(
    "bucket",
    "a number to its range between declared edges: the lower edge is in, the upper is not",
    "an exact quantity, age of an account, or amount",
    _bucket,
    _EDGES,
    examples=(
        Example([0, 10, 50], 7, "0..10"),
        Example([0, 10, 50], 10, "10..50"),
        Example([0, 10, 50], -1, "<0"),
        Example([0, 10, 50], 1e300, ">=50"),
        Example([0, 10, 50], "10..50", "10..50"),
        Example([0, 10, 50], "many", ABSENT),
    ),
)
