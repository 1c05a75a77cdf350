"""The reference of the crowd gate: counted slowly and obviously, from the whole history, each time anew.

It shares no code with `streams`, only the rule as a value. Cells are bytes of JSON here too, because that is what the
parts are compared by; what is in them is read with plain `json`. If it disagrees with the program, one of the two is
wrong; find out which.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from copy import deepcopy
from fractions import Fraction
from itertools import combinations
from typing import NamedTuple

from streams.crowd.rule import CrowdRule

Told = tuple[int, int, list[int]]
"""People, events and sums of one cell."""
Since = Mapping[str, int]
"""Who allows the purpose, and for events from when on (ms). Who is not named allows nothing."""


class Event(NamedTuple):
    """One event that was counted."""

    person: str
    cell: bytes
    sums: list[int]
    recorded: int


class Partition:
    """All that was counted in one partition for one purpose, as a list."""

    def __init__(self, rule: CrowdRule) -> None:
        self.rule = rule
        self.events: list[Event] = []
        self.full: set[int] = set()
        self.closed: int | None = None

    def copy(self) -> "Partition":
        """Return what a restart goes back to."""
        return deepcopy(self)

    def start(self, recorded: int) -> int:
        """Return the beginning of the window of a time, found by looking, not by dividing."""
        start = recorded - recorded % self.rule.window
        assert start <= recorded < start + self.rule.window
        return start

    def of(self, start: int) -> list[Event]:
        """Return the events of one window."""
        return [event for event in self.events if self.start(event.recorded) == start]

    def add(self, event: Event) -> str:
        """Count an event; return the word that says what became of it."""
        start = self.start(event.recorded)
        if self.closed is not None and start <= self.closed:
            return "late"
        if start in self.full:
            return "window_is_full"
        others = self.of(start)
        mine = {other.cell for other in others if other.person == event.person}
        if event.cell not in mine and len(mine) == self.rule.most_per_person:
            return "person_is_full"
        cells = {other.cell for other in others}
        if event.cell not in cells and len(cells) == self.rule.most_cells:
            self.events = [other for other in self.events if self.start(other.recorded) != start]
            self.full.add(start)
            return "window_is_full"
        self.events.append(event)
        return "counted"

    def open(self) -> list[int]:
        """Return the windows that something was counted in or that are full, and that are not closed."""
        starts = {self.start(event.recorded) for event in self.events} | self.full
        return sorted(start for start in starts if self.closed is None or start > self.closed)

    def close(self, through: int, since: Since) -> list[tuple[int, dict[bytes, Told] | None]]:
        """Close the windows up to one, and return them with what they come to; None for a full one."""
        ready = [start for start in self.open() if start <= through]
        self.closed = through if self.closed is None else max(self.closed, through)
        return [(start, None if start in self.full else self._told(self.of(start), since)) for start in ready]

    def _told(self, events: list[Event], since: Since) -> dict[bytes, Told]:
        people = {event.person for event in events}
        allowing = {
            person
            for person in people
            if person in since and all(event.recorded >= since[person] for event in events if event.person == person)
        }
        told = {}
        for cell in {event.cell for event in events if event.person in allowing}:
            here = [event for event in events if event.cell == cell and event.person in allowing]
            of_each = [
                [event for event in here if event.person == person] for person in {event.person for event in here}
            ]
            most = self.rule.most_events
            told[cell] = (
                len(of_each),
                sum(len(mine) if most is None or len(mine) <= most else most for mine in of_each),
                [
                    sum(_within(one.low, sum(event.sums[number] for event in mine), one.high) for mine in of_each)
                    for number, one in enumerate(self.rule.sums)
                ],
            )
        return told


def _within(low: int, value: int, high: int) -> int:
    return sorted((low, value, high))[1]


def together(partitions: Collection[Mapping[bytes, Told]]) -> dict[bytes, Told]:
    """Add up the cells of one window over partitions that share no people."""
    total: dict[bytes, Told] = {}
    for cells in partitions:
        for cell, (people, events, sums) in cells.items():
            before = total.get(cell, (0, 0, [0] * len(sums)))
            total[cell] = (
                before[0] + people,
                before[1] + events,
                [one + other for one, other in zip(before[2], sums, strict=True)],
            )
    return total


def threshold(people: Mapping[bytes, int], k: int) -> set[bytes]:
    """Return the cells of at least k people."""
    return {cell for cell in people if people[cell] >= k}


def guarded_on_one_line(people: Mapping[bytes, int], k: int) -> set[bytes]:
    """Return what may be told of cells that make one line: the smallest ones are missing, and none or enough of them.

    Enough are two cells and k people. The cells that are missing are always the first ones in the order of people and
    bytes, so it is enough to try how many.
    """
    order = sorted(people, key=lambda cell: (people[cell], cell))
    small = sum(people[cell] < k for cell in order)
    if small == 0:
        return set(order)
    for missing in range(max(small, 2), len(order) + 1):
        if sum(people[cell] for cell in order[:missing]) >= k:
            return set(order[missing:])
    return set()


def lines(cells: Collection[bytes], fields: int, free: Collection[int] = (1,)) -> Iterator[list[bytes]]:
    """Yield what a total can be known of: all cells, and those that differ in so many fields only as `free` says."""
    yield list(cells)
    for count in free:
        for open_ in combinations(range(fields), count):
            lines: dict[str, list[bytes]] = {}
            for cell in cells:
                values = json.loads(cell)
                others = json.dumps([[number, value] for number, value in enumerate(values) if number not in open_])
                lines.setdefault(others, []).append(cell)
            yield from lines.values()


def unguarded(
    cells: Collection[bytes], told: Collection[bytes], enough: int, people: Mapping[bytes, int], fields: int
) -> list[list[bytes]]:
    """Return the lines along which less than two cells or less than enough people are missing, though some are."""
    found = []
    for line in lines(cells, fields):
        missing = [cell for cell in line if cell not in told]
        enough_are_missing = len(missing) >= 2 and sum(people[cell] for cell in missing) >= enough
        if missing and len(missing) < len(line) and not enough_are_missing:
            found.append(line)
    return found


def derived(cells: Collection[bytes], told: Collection[bytes], totals: Collection[Collection[bytes]]) -> set[bytes]:
    """Return cells that are not told, and that follow from totals and what is told, but not from the totals alone.

    Totals less what is told are equations for the cells that are missing. One that has a solution of its own is found:
    in the reduced row echelon form of the equations it has a row to itself.
    """
    missing = [cell for cell in sorted(cells) if cell not in told]
    return _solved(missing, totals) - _solved(sorted(cells), totals)


def _solved(unknown: list[bytes], totals: Collection[Collection[bytes]]) -> set[bytes]:
    rows = [[Fraction(cell in total) for cell in unknown] for total in totals]
    pivots: list[tuple[int, list[Fraction]]] = []
    for column in range(len(unknown)):
        row = next((row for row in rows if row[column] != 0), None)
        if row is None:
            continue
        rows.remove(row)
        row = [value / row[column] for value in row]
        rows = [_less(other, row, other[column]) for other in rows]
        pivots = [(place, _less(other, row, other[column])) for place, other in pivots] + [(column, row)]
    return {unknown[place] for place, row in pivots if sum(value != 0 for value in row) == 1}


def _less(row: list[Fraction], other: list[Fraction], times: Fraction) -> list[Fraction]:
    return [mine - times * more for mine, more in zip(row, other, strict=True)] if times else row
