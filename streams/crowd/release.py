"""Which cells of a window may be told, once all partitions have said what they add to it.

    threshold   a cell of fewer than k distinct people is suppressed
    guard       where what is suppressed could be found by subtracting what is told from totals that somebody knows, the
                smallest cells that are told are suppressed too (complementary suppression; Cox, "Suppression
                Methodology and Statistical Disclosure Control", JASA 1980)

Somebody may know the totals over any of the fields, and over all of them. Two things are kept from them:

- the difference of one total and what is told of it: at least two cells and k people are missing, or none;
- the differences of several totals. Where fields are split into two groups, a suppressed cell joins a value of the one
  with a value of the other; it follows from the totals of both exactly if nothing else joins the two sides of it: if it
  is a bridge of that graph (Gusfield, "A Graph Theoretic Approach to Statistical Data Security", SIAM J. Comput. 1988).

Laws, each a property test: no cell below k is told; of no total is less than that missing; no suppressed cell follows
from totals over two groups of fields; the order of cells does not matter.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import NamedTuple

import msgspec

from streams.crowd.rule import CrowdRule
from streams.crowd.window import Cell, Part

__all__ = ["Released", "guarded", "merged", "release"]

Values = tuple[bytes, ...]


class Released(NamedTuple):
    """One window: the cells that are told, and about how many are not."""

    cells: dict[Cell, Part]
    suppressed_at_least: int
    """how many cells are suppressed, rounded down to a multiple of k; 0 unless k people are in all but the largest"""


def merged(parts: Iterable[Mapping[Cell, Part]]) -> dict[Cell, Part]:
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
    told = guarded(rule, people)
    # The largest was suppressed for the others' sake: they are who could be found.
    small = sorted(count for cell, count in people.items() if cell not in told)[:-1]
    counted = (len(small) + 1) // rule.k * rule.k if _distinct(small, rule.most_per_person) >= rule.k else 0
    return Released({cell: cells[cell] for cell in sorted(told)}, counted)


def guarded(rule: CrowdRule, people: Mapping[Cell, int]) -> set[Cell]:
    """Return the cells that may be told when everybody knows the totals over any fields.

    Among cells of one size the first in the order of their bytes goes: a choice that says nothing about people.
    """
    values = {cell: _values(cell) for cell in people}
    ordered = sorted(people, key=lambda cell: (people[cell], cell))
    told = {cell for cell, count in people.items() if count >= rule.k}
    lines = [line for fields in _some_of(len(rule.by)) for line in _lines(ordered, values, fields)]
    # What follows from the totals alone is known to who knows them, whatever is told.
    known = {fields: set(_bridges(ordered, values, fields)) for fields in _halves(len(rule.by))}
    while True:
        _guard_lines(rule, people, lines, told)
        gone = [cell for cell in ordered if cell not in told]
        found = {
            cell for fields, trivial in known.items() for cell in _bridges(gone, values, fields) if cell not in trivial
        }
        if not found or not told:
            return told
        for cell in sorted(found):
            _hide(cell, ordered, values, told)


def _guard_lines(rule: CrowdRule, people: Mapping[Cell, int], lines: list[list[Cell]], told: set[Cell]) -> None:
    again = True
    while again:
        again = False
        for line in lines:
            left = [cell for cell in line if cell in told]
            gone = [people[cell] for cell in line if cell not in told]
            while gone and left and (len(gone) < 2 or _distinct(gone, rule.most_per_person) < rule.k):
                smallest = left.pop(0)
                gone.append(people[smallest])
                told.discard(smallest)
                again = True


def _distinct(people: list[int], most_per_person: int) -> int:
    """Return how many distinct people are in some cells at the least: one may be in so many of them."""
    return max(max(people, default=0), -(-sum(people) // most_per_person))


def _hide(cell: Cell, ordered: list[Cell], values: Mapping[Cell, Values], told: set[Cell]) -> None:
    """Suppress the smallest cell that is told and has a value in common with one that could be found; else any."""
    mine = values[cell]
    near = (
        other for other in ordered if other in told and any(a == b for a, b in zip(values[other], mine, strict=True))
    )
    smallest = next(near, None) or next((other for other in ordered if other in told), None)
    if smallest is not None:
        told.discard(smallest)


def _values(cell: Cell) -> Values:
    return tuple(bytes(value) for value in msgspec.json.decode(cell, type=list[msgspec.Raw]))


def _some_of(fields: int) -> Iterator[tuple[int, ...]]:
    """Yield the fields that a total keeps apart: none, and each set of them but all."""
    for count in range(fields):
        yield from combinations(range(fields), count)


def _halves(fields: int) -> Iterator[tuple[int, ...]]:
    """Yield one half of each split of the fields into two groups."""
    for half in _some_of(fields):
        if half and (0 in half):
            yield half


def _lines(ordered: list[Cell], values: Mapping[Cell, Values], fields: tuple[int, ...]) -> list[list[Cell]]:
    """Return the cells behind each total over all but some fields, the smallest first."""
    lines: dict[Values, list[Cell]] = {}
    for cell in ordered:
        lines.setdefault(tuple(values[cell][field] for field in fields), []).append(cell)
    return list(lines.values())


def _bridges(cells: Iterable[Cell], values: Mapping[Cell, Values], fields: tuple[int, ...]) -> Iterator[Cell]:
    """Yield the cells that are bridges between the values of some fields and those of the others.

    R. E. Tarjan, "A Note on Finding the Bridges of a Graph", Information Processing Letters 2 (1974).
    """
    graph: dict[object, list[tuple[object, Cell]]] = {}
    for cell in cells:
        one = 0, tuple(value for field, value in enumerate(values[cell]) if field in fields)
        other = 1, tuple(value for field, value in enumerate(values[cell]) if field not in fields)
        graph.setdefault(one, []).append((other, cell))
        graph.setdefault(other, []).append((one, cell))
    order: dict[object, int] = {}
    lowest: dict[object, int] = {}
    for root in graph:
        if root in order:
            continue
        order[root] = lowest[root] = len(order)
        path: list[tuple[object, Cell | None, Iterator[tuple[object, Cell]]]] = [(root, None, iter(graph[root]))]
        while path:
            node, came_by, edges = path[-1]
            step = next(edges, None)
            if step is None:
                path.pop()
                if path and came_by is not None:
                    above = path[-1][0]
                    lowest[above] = min(lowest[above], lowest[node])
                    if lowest[node] > order[above]:
                        yield came_by
                continue
            to, by = step
            if by == came_by:
                continue
            if to in order:
                lowest[node] = min(lowest[node], order[to])
            else:
                order[to] = lowest[to] = len(order)
                path.append((to, by, iter(graph[to])))
