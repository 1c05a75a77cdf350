"""Builds the minimized event up from nothing.

Rules of this file:
- The raw document is read through the recipe's getter and never copied or edited: a field that nobody named has no
  way into the result.
- What a form cannot take is left out, and so is what is no string, number, true or false. What a form breaks on
  rejects the whole event: nothing half made is published.
"""

from typing import Any

import msgspec

from streams.crowd.rule import LONGEST_CELL, fixed
from streams.crowd.window import Cell
from streams.event import Reason, Rejected
from streams.plan import CrowdRecipe, Layout, Recipe
from streams.transforms import ABSENT, SCALARS

__all__ = ["cell_of", "minimize"]

_encode = msgspec.json.Encoder().encode
_REMEMBERED = 10_000
"""So many cells of an event type are not encoded again."""


def minimize(document: Any, recipe: Recipe, recorded: int) -> Any:
    """Return the fields of the minimized event as an object of the recipe's type; ABSENT where nothing is left.

    `document` is what the source's reader returned, `recorded` the time in ms that rotating forms go by.

    Raises:
        Rejected: a form raised.
    """
    values = list(recipe.fields(document))
    try:
        for index, form in recipe.forms:
            values[index] = form(values[index], recorded)
    except Exception:
        raise Rejected(Reason.TRANSFORM_FAILED) from None
    # INVARIANT (minimal): an object or array would carry leaves that nobody named, whatever form returned it.
    if not SCALARS.issuperset(map(type, values)):
        values = [value if type(value) in SCALARS else ABSENT for value in values]
    return _fill(recipe.layout, values)


def cell_of(document: Any, recipe: CrowdRecipe, recorded: int) -> tuple[Cell, list[int]] | None:
    """Return the cell of an event and what it adds to the sums, in millionths; None where a value is missing.

    A sum to which the event has no finite number adds 0.

    Raises:
        Rejected: a form raised, or the cell is longer than `LONGEST_CELL`.
    """
    values = recipe.fields(document)
    if recipe.forms:
        changed = list(values)
        try:
            for index, form in recipe.forms:
                changed[index] = form(changed[index], recorded)
        except Exception:
            raise Rejected(Reason.TRANSFORM_FAILED) from None
        values = tuple(changed)
    cells = recipe.cells
    of = values[:cells]
    try:
        cell = recipe.known.get(of)
    except TypeError:
        return None  # An object or array makes no cell.
    if cell is None:
        cell = _cell(recipe, of)
        if cell is None:
            return None
        # Of strings only: 1, 1.0 and true are equal in Python, and so would be their cells.
        if len(recipe.known) < _REMEMBERED and {str}.issuperset(map(type, of)):
            recipe.known[of] = cell
    sums: list[int] = []
    for value in values[cells:]:
        sums.append(fixed(value) or 0)  # noqa: PERF401  A comprehension is one call more.
    return cell, sums


def _cell(recipe: CrowdRecipe, values: tuple[Any, ...]) -> Cell | None:
    # INVARIANT (minimal): an object or array would carry leaves that nobody named.
    if not SCALARS.issuperset(map(type, values)):
        return None
    at = recipe.type_at
    cell = _encode(values if at is None else (*values[:at], recipe.event, *values[at:]))
    if len(cell) > LONGEST_CELL:
        raise Rejected(Reason.TOO_LARGE)
    return cell


def _fill(layout: Layout, values: list[Any]) -> Any:
    mine = values[layout.start : layout.end]
    for group in layout.groups:
        mine.append(_fill(group, values))
    return ABSENT if mine.count(ABSENT) == len(mine) else layout.type(*mine)
