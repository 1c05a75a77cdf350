"""Keep a value as it is, or leave it out."""

from typing import Any

from streams.transforms.form import ABSENT, SCALARS, Context, Example, Form, Kind

__all__ = ["DROP", "KEEP", "keep"]


def keep(value: Any, _at: int) -> Any:
    """Return a scalar as it is; an object or array would carry leaves that nobody named."""
    return value if type(value) in SCALARS else ABSENT


def _keep(_parameters: None, _context: Context) -> Form:
    return keep


def _drop(_parameters: None, _context: Context) -> Form:
    return lambda _value, _at: ABSENT


KEEP = Kind(
    "keep",
    "the value as it is, if it is a string, number, true or false",
    "nothing by itself",
    _keep,
    examples=(
        Example(None, "lamp", "lamp"),
        Example(None, 0, 0),
        Example(None, False, False),
        Example(None, {"hidden": "ana@example.org"}, ABSENT),
        Example(None, ["ana@example.org"], ABSENT),
        Example(None, None, ABSENT),
    ),
)
DROP = Kind("drop", "nothing", "everything", _drop, examples=(Example(None, "lamp", ABSENT),))
