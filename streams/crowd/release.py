"""Which cells of a window may be told, once all partitions have said what they add to it.

    threshold   a cell of fewer than k distinct people is suppressed
    guard       where what is suppressed along one field could be found by subtracting what is told from a total that
                somebody knows, the smallest cell that is told is suppressed too, until at least two cells and k people
                are missing (complementary suppression; Cox, "Suppression Methodology and Statistical Disclosure
                Control", JASA 1980)

Laws, each a property test: no cell below k is told; along every field, with all others fixed, and over the whole
window, either nothing is missing or k people and two cells are, or nothing is told; the order of cells does not matter.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from streams.crowd.counts import Cell, Part
from streams.crowd.rule import CrowdRule

__all__ = ["Released", "guarded", "merged", "release"]


class Released(NamedTuple):
    """One window: the cells that are told, and about how many are not."""

    cells: dict[Cell, Part]
    suppressed_at_least: int
    """how many cells are suppressed, rounded down to a multiple of k: one person more or less rarely shows in it"""


def merged(parts: Iterator[Mapping[Cell, Part]]) -> dict[Cell, Part]:
    """Add up what partitions say. People add up, because each lives in one partition."""
    total: dict[Cell, Part] = {}
    for some in parts:
        for cell, part in some.items():
            if (known := total.get(cell)) is None:
                total[cell] = Part(part.people, part.events, list(part.sums))
            else:
                known.people += part.people
                known.events += part.events
                known.sums = [one + other for one, other in zip(known.sums, part.sums, strict=True)]
    return total


def release(rule: CrowdRule, cells: Mapping[Cell, Part]) -> Released:
    """Decide which cells are told.

    >>> rule = CrowdRule("stock", 5, window=100, late=0, by=("country",))
    >>> people = {"UK": 90, "DE": 7, "FR": 6, "IS": 1}
    >>> cells = {msgspec.json.encode([name]): Part(count, count, []) for name, count in people.items()}
    >>> sorted(release(rule, cells).cells)
    [b'["DE"]', b'["UK"]']
    """
    people = {cell: part.people for cell, part in cells.items()}
    told = guarded({cell for cell, count in people.items() if count >= rule.k}, people, rule.k, len(rule.by))
    missing = len(cells) - len(told)
    return Released({cell: cells[cell] for cell in sorted(told)}, missing // rule.k * rule.k)


def guarded(told: set[Cell], people: Mapping[Cell, int], k: int, fields: int) -> set[Cell]:
    """Return the cells that may be told when everybody knows the totals along each field, and over all.

    Among cells of one size the first in the order of their bytes goes: a choice that says nothing about people.
    """
    lines = _lines(people, fields)
    told = set(told)
    again = True
    while again:
        again = False
        for line in lines:
            left = [cell for cell in line if cell in told]
            gone = [cell for cell in line if cell not in told]
            while gone and left and (len(gone) < 2 or sum(people[cell] for cell in gone) < k):
                smallest = min(left, key=lambda cell: (people[cell], cell))
                left.remove(smallest)
                gone.append(smallest)
                told.discard(smallest)
                again = True
    return told


def _lines(people: Mapping[Cell, int], fields: int) -> list[list[Cell]]:
    """Return the cells that differ in one field only, for each field, and all of them."""
    lines: dict[tuple[int, bytes], list[Cell]] = {(-1, b""): sorted(people)}
    if fields > 1:
        for cell in sorted(people):
            values = msgspec.json.decode(cell, type=list[msgspec.Raw])
            for field in range(fields):
                others = msgspec.json.encode(values[:field] + values[field + 1 :])
                lines.setdefault((field, others), []).append(cell)
    return list(lines.values())
