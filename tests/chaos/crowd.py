"""What a run must have told of crowds: people who are counted, and what was counted of them.

These people allow it before the run and never take it back, so that what each window comes to is known from the raw log
alone. An event says that it happened two hours ago (see `tests.chaos.traffic`), and `late` is three hours and a margin:
so while the run lasts a window closes only where a worker has nothing to read and a clock that is an hour ahead; all
others close at the end, by a worker whose clock is further ahead. No outage is as long as the margin: nothing is late.
"""

from collections import Counter
from collections.abc import Iterable

import msgspec

from streams.event import milliseconds
from tests.crowd.model import guarded_on_one_line
from tests.history import Stored
from tests.kafka.brokers import Record

__all__ = ["AHEAD", "COUNTED", "COUNTRIES", "PLACES", "Crowd", "complete", "counting"]

COUNTRIES = "shop.countries"
COUNTED = 40
"""so many people are counted"""
PLACES = ("Iceland",) * 8 + ("Malta",) * 3 + ("Brazil",)
K = 5
WINDOW = 10_000
MARGIN = 600
AHEAD = f"""
import time
true_time = time.time_ns
time.time_ns = lambda: true_time() + {3600 + MARGIN + 60} * 1_000_000_000
"""
"""For a worker that closes all windows that are left."""


def counting(policy: dict[str, object], group: str) -> None:
    """Let a policy count countries."""
    purposes, events = policy["purposes"], policy["events"]
    assert isinstance(purposes, dict)
    assert isinstance(events, dict)
    purposes[COUNTRIES] = {
        "benefit": "The shop knows where its things are wanted",
        "topic": f"{group}.{COUNTRIES}",
        "rung": "crowd",
        "lifetime": "30d",
        "crowd": {
            "k": K, "window": f"{WINDOW // 1000}s", "late": f"{3 * 3600 + MARGIN}s", "by": ["country"],
            "most_per_person": 1, "hold": "30d",
        },
    }  # fmt: skip
    for fields in events.values():
        fields["country"]["for"] = [*fields["country"]["for"], COUNTRIES]


class Crowd:
    """Adds up, partition by partition, what the raw log holds of the people who are counted."""

    def __init__(self, people: Iterable[bytes]) -> None:
        self._people = frozenset(people)
        self._first: dict[tuple[bytes, int], str] = {}
        self.windows: dict[int, dict[str, tuple[int, int]]] = {}
        """people and events by country, by window"""

    def add(self, raw: Iterable[Stored]) -> None:
        """Take one partition, in the order of its offsets: a person's first country of a window counts."""
        for record in raw:
            if record.key not in self._people:
                continue
            event = msgspec.json.decode(record.value or b"")
            window = milliseconds(event["occurred_at"]) // WINDOW * WINDOW
            country, place = event["country"], (record.key, window)
            new = place not in self._first
            if self._first.setdefault(place, country) == country:
                people, events = self.windows.setdefault(window, {}).get(country, (0, 0))
                self.windows[window][country] = people + new, events + 1

    def wanted(self) -> set[tuple[int, str, int, int]]:
        """What must be told: window, country, people and events of each cell."""
        return {
            (window, name.decode(), *cells[name.decode()])
            for window, cells in self.windows.items()
            for name in guarded_on_one_line({name.encode(): people for name, (people, _) in cells.items()}, K)
        }

    def findings(self, records: Iterable[Record]) -> list[str]:
        """Hold what was told against it."""
        told, complete = _told(records)
        wanted = self.wanted()
        found = [f"{cell} is told {times} times" for cell, times in told.items() if times > 1]
        found += [f"window {window} is complete {times} times" for window, times in complete.items() if times > 1]
        over = {window for window, *_ in wanted}
        found += [f"window {window} is complete, and nothing of it told" for window in complete.keys() - over]
        found += [f"{cell} is told, and not wanted" for cell in told.keys() - wanted]
        return found + [f"{cell} is wanted, and not told" for cell in wanted - told.keys()]


def complete(records: Iterable[Record]) -> set[int]:
    """The windows that are over."""
    return set(_told(records)[1])


def _told(records: Iterable[Record]) -> tuple[Counter[tuple[int, str, int, int]], Counter[int]]:
    cells: Counter[tuple[int, str, int, int]] = Counter()
    windows: Counter[int] = Counter()
    for record in records:
        said = msgspec.json.decode(record.value or b"")
        window = milliseconds(said["window"]["from"])
        if "cell" in said:
            cells[window, said["cell"]["country"], said["people"], said["events"]] += 1
        else:
            windows[window] += 1
    return cells, windows
