"""One open window of one partition: who adds what to which cell, and what its state does not hold yet.

Most of what it does comes once for each event, with people in any order: it holds no more objects than it must.
"""

from collections.abc import Callable

import msgspec

from streams.crowd.rule import CrowdRule

__all__ = ["Cell", "Change", "Changes", "OpenCell", "Part", "Window"]

Cell = bytes
"""The values of the `by` fields, as JSON: `["viewed","lamps"]`. Bytes, because 1, 1.0 and true are equal in Python."""


class Entry(msgspec.Struct, gc=False):
    """What one person adds to one cell."""

    events: int
    sums: list[int]
    """in millionths, not yet clamped"""
    earliest: int
    """when the first of the events was recorded: consent must reach back to it"""

    def add(self, sums: list[int], recorded: int) -> None:
        """Add an event."""
        self.events += 1
        if sums:
            mine = self.sums
            for at, part in enumerate(sums):
                mine[at] += part
        if recorded < self.earliest:
            self.earliest = recorded


Change = tuple[bytes, list[int], int]
"""One event: subject, parts of the sums, and when it was recorded."""
Changes = list[tuple[Cell, list[Change]]]
"""Additions by cell, as the state topic holds them."""


class Part(msgspec.Struct, array_like=True, gc=False):
    """What a partition, or all of them, add to one cell."""

    people: int
    events: int
    sums: list[int]


class OpenCell:
    """One cell of an open window: the entries of its people, and those changes that the state does not hold yet."""

    __slots__ = ("changes", "people")

    def __init__(self) -> None:
        self.people: dict[bytes, Entry] = {}
        self.changes: list[Change] = []


class Window:
    """One open window: its cells, in how many of them each person is, and the keys of its state."""

    __slots__ = ("cells", "changed", "end", "full", "keys", "people", "start")

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end
        self.full = False
        """more cells came than it may have"""
        self.cells: dict[Cell, OpenCell] = {}
        self.people: dict[bytes, int] = {}
        self.keys: list[bytes] = []
        self.changed: dict[Cell, OpenCell] = {}

    def fill(self) -> None:
        """Keep nothing of it but that it is full."""
        self.full = True
        for kept in (self.cells, self.people, self.changed):
            kept.clear()

    def add(self, cell: Cell, change: Change) -> OpenCell:
        """Add to an entry, and return its cell."""
        found = self.cells.get(cell)
        if found is None:
            found = self.cells[cell] = OpenCell()
        subject, sums, recorded = change
        if (entry := found.people.get(subject)) is not None:
            entry.add(sums, recorded)
        else:
            found.people[subject] = Entry(1, sums.copy(), recorded)
            self.people[subject] = self.people.get(subject, 0) + 1
        return found

    def take_changes(self) -> Changes | None:
        """Return what was added since the last time; None: too much was, and nothing is kept."""
        if self.full:
            return None
        changes = [(cell, found.changes) for cell, found in self.changed.items()]
        for found in self.changed.values():
            found.changes = []
        self.changed = {}
        return changes

    def parts(self, rule: CrowdRule, allows: Callable[[bytes, int], bool]) -> dict[Cell, Part]:
        """Return what the window comes to: cells without those who do not allow it any more."""
        earliest: dict[bytes, int] = {}
        for found in self.cells.values():
            for subject, entry in found.people.items():
                earliest[subject] = min(entry.earliest, earliest.get(subject, entry.earliest))
        # INVARIANT (T1 for crowds): asked now, after the gate. One event too old for a grant takes all out.
        allowed = {subject for subject, recorded in earliest.items() if allows(subject, recorded)}
        parts: dict[Cell, Part] = {}
        for cell, found in self.cells.items():
            if entries := [entry for subject, entry in found.people.items() if subject in allowed]:
                parts[cell] = _part(rule, entries)
        return parts


def _part(rule: CrowdRule, entries: list[Entry]) -> Part:
    """Add up what the people of one cell add to it, each within their bounds."""
    most = rule.most_events
    events = sum(entry.events if most is None else min(entry.events, most) for entry in entries)
    sums = [sum(one.clamp(entry.sums[at]) for entry in entries) for at, one in enumerate(rule.sums)]
    return Part(len(entries), events, sums)
