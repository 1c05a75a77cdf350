"""Stage one: what the people of one partition add to the cells of open windows, each within their bounds.

    event -> cell and parts -> one entry a person and cell -> changes, for the transaction of the batch
    closing -> who still allows it -> parts clamped and added up -> the partition's partial counts

Rules of this file:
- A person's events lie in one partition, so people that are counted here are counted nowhere else.
- The state names people, because consent is asked again when a window closes. It leaves this file encrypted only.
- Entries are changed by adding to them, so a state is restored by adding its changes up again.
- With noise, a window costs whoever adds to it epsilon, kept for as long as the day of the window takes events. It is
  charged to the day (UTC) on which the window begins, and not paid back to those who withdraw before it closes.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum
from fractions import Fraction
from typing import TypeVar

import msgspec

from streams.crowd.rule import MOST_BYTES, UNIT, CrowdRule, Noise
from streams.crowd.sealed import Sealed
from streams.crowd.window import Cell, Change, Changes, OpenCell, Part, Window
from streams.keys import MasterKey

__all__ = ["Added", "Counts", "StateRecord"]

StateRecord = tuple[bytes, bytes | None]
"""Key and value of a record of the state topic; None: what was under the key is done with."""

_DAY = 86_400_000
_MOST_OPEN = 1_000_000
"""The most cells of all open windows of a purpose together, in one partition: events may come with any time."""
_MOST_WINDOWS = 100_000
"""The most open windows of which it is remembered that they are full."""
_CHUNK = 500
"""So many people that have spent something fit into one record, with subjects of 1,024 bytes."""
_T = TypeVar("_T")


class Added(StrEnum):
    """What became of an event in a crowd. The words stand in metrics."""

    COUNTED = "counted"
    LATE = "late"
    """its window is closed"""
    PERSON_IS_FULL = "person_is_full"
    """its person adds to as many cells of the window as one person may"""
    WINDOW_IS_FULL = "window_is_full"
    """the window has as many cells as it may: the fields in `by` have too many values"""
    BUDGET_IS_SPENT = "budget_is_spent"
    """its person has been in as many windows of the day as the noise may cost one person"""


class _Budget:
    """What the noise of one purpose has cost the people of one partition, by day; in millionths of epsilon."""

    __slots__ = ("cost", "daily", "spent")

    def __init__(self, noise: Noise) -> None:
        # Of the numbers as they are written: three times 0.1 is not more than 0.3.
        self.cost = math.ceil(Fraction(repr(noise.epsilon)) * UNIT)
        self.daily = math.floor(Fraction(repr(noise.daily)) * UNIT)
        self.spent: dict[int, dict[bytes, int]] = {}

    def affords(self, start: int, subject: bytes) -> bool:
        """Tell whether a person can add to one more window, which begins at `start`."""
        return self.spent.get(start // _DAY, {}).get(subject, 0) + self.cost <= self.daily

    def spend(self, start: int, subject: bytes, cost: int) -> None:
        day = self.spent.setdefault(start // _DAY, {})
        day[subject] = day.get(subject, 0) + cost


_encode = msgspec.msgpack.Encoder().encode
_changes = msgspec.msgpack.Decoder(Changes | None)
_spent = msgspec.msgpack.Decoder(list[tuple[bytes, int]])


class Counts:
    """The open windows of one partition.

    >>> counts = Counts([CrowdRule("stock", 5, window=100, late=0, by=("country",))], MasterKey(bytes(32)))
    >>> counts.add("stock", b"ana", b'["UK"]', [], 42)
    <Added.COUNTED: 'counted'>
    >>> list(counts.close("stock", 0, lambda subject, earliest: True))
    [(0, {b'["UK"]': Part(people=1, events=1, sums=[])})]
    >>> counts.add("stock", b"ana", b'["UK"]', [], 42)
    <Added.LATE: 'late'>
    """

    def __init__(self, rules: Iterable[CrowdRule], master: MasterKey) -> None:
        self.rules = {rule.purpose: rule for rule in rules}
        self._windows: dict[tuple[str, int], Window] = {}
        self._latest: dict[str, Window] = {}
        """by purpose: the open window that was found last, where the next event probably lies as well"""
        self._closed: dict[str, int] = {}
        """by purpose: the end of the last window that is closed (ms)"""
        self._shapes = {rule.purpose: rule.shape().encode() for rule in self.rules.values()}
        self._strange: dict[str, list[bytes]] = {}
        """keys of state that another policy has left"""
        self._changed: dict[tuple[str, int], Window] = {}
        """windows with changes that the state topic does not hold yet"""
        self._cells = dict.fromkeys(self.rules, 0)
        """by purpose: how many cells all open windows have"""
        self._budgets = {rule.purpose: _Budget(rule.noise) for rule in self.rules.values() if rule.noise is not None}
        self._spent_keys: dict[tuple[str, int], list[bytes]] = {}
        self._number = 0
        self._sealed = Sealed(master)

    def add(self, purpose: str, subject: bytes, cell: Cell, sums: list[int], recorded: int) -> Added:
        """Count one event of a person who allows it; `sums` are the parts of its fields, in millionths."""
        window = self._latest.get(purpose)
        if window is None or not window.start <= recorded < window.end:
            window = self._window_at(purpose, recorded)
            if window is None:
                return Added.LATE
        change = subject, sums, recorded
        found = window.cells.get(cell)
        if found is None or (entry := found.people.get(subject)) is None:
            return self._add_entry(purpose, window, found, cell, change)
        # The usual case: no bound is met.
        entry.add(sums, recorded)
        if not found.changes:
            self._mark(purpose, window, cell, found)
        found.changes.append(change)
        return Added.COUNTED

    def _window_at(self, purpose: str, recorded: int) -> Window | None:
        """Return the window of an event, which is kept once it holds anything; None: it is closed."""
        rule = self.rules[purpose]
        start = rule.window_of(recorded)
        window = self._windows.get((purpose, start))
        if window is not None:
            self._latest[purpose] = window
        elif start >= self._closed.get(purpose, start):
            window = Window(start, start + rule.window)
        return window

    def _add_entry(self, purpose: str, window: Window, found: OpenCell | None, cell: Cell, change: Change) -> Added:
        """Count the first event of a person in a cell, which is a new one if it was not found."""
        rule, budget, subject = self.rules[purpose], self._budgets.get(purpose), change[0]
        if window.full:
            return Added.WINDOW_IS_FULL
        mine = window.people.get(subject)
        if mine is None:
            # INVARIANT (budget): a person's first event in a window costs what the whole window does.
            if budget is not None and not budget.affords(window.start, subject):
                return Added.BUDGET_IS_SPENT
        # INVARIANT (bounded): what one person adds does not depend on how much they do.
        elif mine >= rule.most_per_person:
            return Added.PERSON_IS_FULL
        if found is None:
            # Under noise there is no such limit: it would let one person keep out the cells of others.
            if rule.noise is None and not self._has_room(rule, window):
                if window.cells or len(self._windows) < _MOST_WINDOWS:
                    # Which cells came first would tell who did, so none is told, and nothing more is kept.
                    self._windows[purpose, window.start] = self._changed[purpose, window.start] = window
                    self._cells[purpose] -= len(window.cells)
                    window.fill()
                return Added.WINDOW_IS_FULL
            self._windows[purpose, window.start] = window
            self._cells[purpose] += 1
        if mine is None and budget is not None:
            budget.spend(window.start, subject, budget.cost)
        found = window.add(cell, change)
        if not found.changes:
            self._mark(purpose, window, cell, found)
        found.changes.append(change)
        return Added.COUNTED

    def _has_room(self, rule: CrowdRule, window: Window) -> bool:
        """Tell whether there may be one more cell: in the window, and in all open ones together."""
        return len(window.cells) < rule.most_cells and self._cells[rule.purpose] < _MOST_OPEN

    def _mark(self, purpose: str, window: Window, cell: Cell, found: OpenCell) -> None:
        """Note that a cell has a change, its first since changes were taken."""
        window.changed[cell] = found
        self._changed[purpose, window.start] = window

    def take_changes(self) -> Iterator[StateRecord]:
        """Yield what the state topic must hold of what was counted since the last time."""
        changed, self._changed = self._changed, {}
        for (purpose, start), window in changed.items():
            for changes in _encoded(window.take_changes()):
                self._number += 1
                key = b"%b %d %d %b" % (purpose.encode(), start, self._number, self._shapes[purpose])
                window.keys.append(key)
                yield key, self._sealed.close(changes, key)

    def restore(self, records: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Take all records of the state topic, in order.

        Raises:
            ValueError: one is not ours, or was made with another key.
        """
        for key, value in records:
            match key.split(b" "):
                case [name, b"closed"]:
                    self._closed[name.decode()] = int(value or b"")
                case [name, b"spent", day, number]:
                    self._number = max(self._number, int(number))
                    self._restore_spent(name.decode(), int(day), key, value)
                case [name, window, number, shape]:
                    self._number = max(self._number, int(number))
                    self._restore_window(name.decode(), int(window), shape, key, value)
                case _:
                    raise ValueError("not a key of ours")
        # Compaction may not have come yet: what was closed is still there, with its tombstones behind it.
        for purpose, start in list(self._windows):
            if start < self._closed.get(purpose, start):
                gone = self._windows.pop((purpose, start))
                self._cells[purpose] -= len(gone.cells)
                if (budget := self._budgets.get(purpose)) is not None:
                    for subject in gone.people:
                        budget.spend(start, subject, -budget.cost)

    def _restore_window(self, purpose: str, start: int, shape: bytes, key: bytes, value: bytes | None) -> None:
        if value is None or purpose not in self.rules:
            return
        if shape != self._shapes[purpose]:
            # INVARIANT (fail closed): it was counted under another policy, and says something else.
            self._strange.setdefault(purpose, []).append(key)
            return
        window = self._windows.setdefault((purpose, start), Window(start, start + self.rules[purpose].window))
        window.keys.append(key)
        budget = self._budgets.get(purpose)
        changes = self._read(key, value, _changes)
        if window.full or changes is None:
            self._cells[purpose] -= len(window.cells)
            window.fill()
            return
        before = len(window.cells)
        for cell, added in changes:
            for change in added:
                if budget is not None and change[0] not in window.people:
                    budget.spend(start, change[0], budget.cost)
                window.add(cell, change)
        self._cells[purpose] += len(window.cells) - before

    def _restore_spent(self, purpose: str, day: int, key: bytes, value: bytes | None) -> None:
        if value is None or purpose not in self.rules:
            return
        self._spent_keys.setdefault((purpose, day), []).append(key)
        if (budget := self._budgets.get(purpose)) is not None:
            for subject, cost in self._read(key, value, _spent):
                budget.spend(day * _DAY, subject, cost)

    def _read(self, key: bytes, value: bytes, decoder: msgspec.msgpack.Decoder[_T]) -> _T:
        return decoder.decode(self._sealed.open(value, key))

    def open(self, purpose: str) -> list[int]:
        """Return the beginnings of the windows that are open, oldest first."""
        return sorted(start for name, start in self._windows if name == purpose)

    def close(
        self, purpose: str, through: int, allows: Callable[[bytes, int], bool]
    ) -> list[tuple[int, Mapping[Cell, Part] | None]]:
        """Close all windows up to one; return what each comes to, without those who do not allow it any more.

        `allows(subject, earliest)` says whether a person allows the purpose now, for events as old as `earliest`.
        None: more cells than a window may have came; that is told of nobody.
        """
        rule = self.rules[purpose]
        self._closed[purpose] = self._end(rule, through)
        self._forget_spent(rule, through)
        self._strange.pop(purpose, None)
        self._latest.pop(purpose, None)
        closing = [start for start in self.open(purpose) if start <= through]
        windows = {start: self._windows.pop((purpose, start)) for start in closing}
        for start, window in windows.items():
            self._cells[purpose] -= len(window.cells)
            self._changed.pop((purpose, start), None)
        return [(start, None if window.full else window.parts(rule, allows)) for start, window in windows.items()]

    def _end(self, rule: CrowdRule, through: int) -> int:
        return max(through + rule.window, self._closed.get(rule.purpose, through))

    def done(self, purpose: str, through: int) -> Iterator[StateRecord]:
        """Yield what the state topic must hold once windows up to one are closed. Call it before `close`."""
        closing = [start for start in self.open(purpose) if start <= through]
        for start in closing:
            yield from ((key, None) for key in self._windows[purpose, start].keys)
        yield from ((key, None) for key in self._strange.get(purpose, ()))
        if purpose in self._budgets:
            yield from self._spent_in(self.rules[purpose], closing, through)
        for (name, day), keys in self._spent_keys.items():
            if name == purpose and _is_over(self.rules[purpose], day, through):
                yield from ((key, None) for key in keys)
        yield b"%b closed" % purpose.encode(), b"%d" % self._end(self.rules[purpose], through)

    def _spent_in(self, rule: CrowdRule, closing: list[int], through: int) -> Iterator[StateRecord]:
        """Yield what people have spent in windows that close, for the days on which more can be spent."""
        days: dict[int, dict[bytes, int]] = {}
        for start in closing:
            if not _is_over(rule, start // _DAY, through):
                spent = days.setdefault(start // _DAY, {})
                for subject in self._windows[rule.purpose, start].people:
                    spent[subject] = spent.get(subject, 0) + self._budgets[rule.purpose].cost
        for day, spent in days.items():
            people = list(spent.items())
            for first in range(0, len(people), _CHUNK):
                self._number += 1
                key = b"%b spent %d %d" % (rule.purpose.encode(), day, self._number)
                self._spent_keys.setdefault((rule.purpose, day), []).append(key)
                yield key, self._sealed.close(_encode(people[first : first + _CHUNK]), key)

    def _forget_spent(self, rule: CrowdRule, through: int) -> None:
        for place in [place for place in self._spent_keys if place[0] == rule.purpose]:
            if _is_over(rule, place[1], through):
                del self._spent_keys[place]
        if (budget := self._budgets.get(rule.purpose)) is not None:
            for day in list(budget.spent):
                if _is_over(rule, day, through):
                    del budget.spent[day]


def _encoded(changes: Changes | None) -> Iterator[bytes]:
    """Yield changes in pieces that a record can hold: what one batch adds is as long as its subjects and cells."""
    encoded = _encode(changes)
    if changes is None or len(encoded) <= MOST_BYTES:
        yield encoded
        return
    half = len(changes) // 2
    if half:
        pieces = [changes[:half], changes[half:]]
    else:  # A change alone is never as long: subjects and cells have an end.
        [(cell, added)] = changes
        pieces = [[(cell, added[: len(added) // 2])], [(cell, added[len(added) // 2 :])]]
    for piece in pieces:
        yield from _encoded(piece)


def _is_over(rule: CrowdRule, day: int, through: int) -> bool:
    """Tell whether the last window that begins on a day is closed, once all up to one are."""
    return rule.window_of((day + 1) * _DAY - 1) <= through
