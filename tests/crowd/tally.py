"""What windows of one field come to, counted as events come, and what was told of them: for whole runs.

Each person is counted in one cell of a window, the first, with all of their events there (`most_per_person` is 1).
"""

import json
from collections import Counter
from collections.abc import Iterable

from streams.event import milliseconds
from tests.crowd.model import guarded_on_one_line

__all__ = ["Cell", "Tally", "repeated", "told"]

Cell = tuple[int, str, int, int]
"""The beginning of a window in ms, a value, people and events."""


class Tally:
    """Events by person, window and value."""

    def __init__(self, window: int, k: int) -> None:
        self._window, self._k = window, k
        self._first: dict[tuple[bytes, int], str] = {}
        self.windows: dict[int, dict[str, tuple[int, int]]] = {}
        """people and events by value, by window"""

    def add(self, who: bytes, at: int, value: str) -> None:
        """Count an event; those of one partition come in the order of their offsets."""
        window = at // self._window * self._window
        new = (who, window) not in self._first
        if self._first.setdefault((who, window), value) == value:
            people, events = self.windows.setdefault(window, {}).get(value, (0, 0))
            self.windows[window][value] = people + new, events + 1

    def wanted(self) -> set[Cell]:
        """What must be told."""
        return {
            (window, name.decode(), *cells[name.decode()])
            for window, cells in self.windows.items()
            for name in guarded_on_one_line({value.encode(): people for value, (people, _) in cells.items()}, self._k)
        }

    def differences(self, cells: Iterable[Cell]) -> list[str]:
        """Hold what was told against what must be."""
        found, wanted = set(cells), self.wanted()
        return [
            *(f"{cell} is told, and not wanted" for cell in found - wanted),
            *(f"{cell} is wanted, and not told" for cell in wanted - found),
        ]


def told(values: Iterable[bytes | None], field: str) -> tuple[Counter[Cell], Counter[int]]:
    """The cells that are told, and the windows that are said to be complete, each with how often."""
    cells: Counter[Cell] = Counter()
    complete: Counter[int] = Counter()
    for value in values:
        said = json.loads(value or b"")
        window = milliseconds(said["window"]["from"])
        if "cell" in said:
            cells[window, said["cell"][field], said["people"], said["events"]] += 1
        else:
            complete[window] += 1
    return cells, complete


def repeated(cells: Counter[Cell], complete: Counter[int]) -> list[str]:
    """What was told more than once."""
    return [
        *(f"window {window} is complete {times} times" for window, times in complete.items() if times > 1),
        *(f"{cell} is told {times} times" for cell, times in cells.items() if times > 1),
    ]
