"""A value replaced by a keyed pseudonym that holds within one purpose and one epoch."""

from typing import Any

from streams.keys import Pseudonyms
from streams.transforms.form import ABSENT, Context, Example, Form, Kind

__all__ = ["PSEUDONYM"]


def _pseudonym(_parameters: None, context: Context) -> Form:
    # Another key than the subject's: a field that repeats the subject must not be recognizable as such.
    names = Pseudonyms(context.master, context.purpose, context.rotate, kind="field")

    def pseudonym(value: Any, at: int) -> Any:
        # The one form that is not idempotent: to let through what looks like a pseudonym would be a way around it.
        return names(str(value).encode(), at).decode() if type(value) in (str, int) else ABSENT

    return pseudonym


PSEUDONYM = Kind(
    "pseudonym",
    "a string or integer as a keyed pseudonym: equal values stay equal within one purpose and epoch, and only there",
    "order, session and account numbers, which lead back to the person or link two data sets",
    _pseudonym,
    idempotent=False,
    examples=(
        Example(None, "order-536365", "T2sOnQ._d1PMGhcn8hZsQmkYPMfpQ"),
        Example(None, True, ABSENT),
    ),
)
