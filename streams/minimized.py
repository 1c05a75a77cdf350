"""Builds the minimized event up from nothing.

Rules of this file:
- The raw document is read through the recipe's getter and never copied or edited: a field that nobody named has no
  way into the result.
- What a form cannot take is left out. What a form breaks on rejects the whole event: nothing half made is published.
"""

from typing import Any

from streams.event import Reason, Rejected
from streams.plan import Recipe
from streams.transforms import ABSENT

__all__ = ["minimize"]


def minimize(document: Any, recipe: Recipe, recorded: int) -> dict[str, Any] | None:
    """Return the fields of the minimized event, nested as their paths say; None where nothing is left.

    `document` is what the source's reader returned, `recorded` the time in ms that rotating forms go by.

    Raises:
        Rejected: a form raised.
    """
    body: dict[str, Any] = {}
    for value, (form, groups, name) in zip(recipe.fields(document), recipe.steps, strict=True):
        if value is ABSENT:
            continue
        try:
            kept = form(value, recorded)
        except Exception:  # noqa: BLE001 - whatever a form raises may quote the value: only the reason goes on
            raise Rejected(Reason.TRANSFORM_FAILED) from None
        if kept is ABSENT or kept is None:
            continue
        place = body
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = kept
    return body or None
