"""What a run must have told of crowds: people who are counted, and what was counted of them.

These people allow it before the run and never take it back, so that what each window comes to is known from the raw log
alone. An event says that it happened two hours ago (see `tests.chaos.traffic`), and `late` is three hours and a margin:
so while the run lasts a window closes only where a worker has nothing to read and a clock that is an hour ahead; all
others close at the end, by a worker whose clock is further ahead. No outage is as long as the margin: nothing is late.
"""

from collections.abc import Iterable

import msgspec

from streams.event import milliseconds
from tests.crowd.tally import Tally, repeated, told
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


class Crowd(Tally):
    """Adds up, partition by partition, what the raw log holds of the people who are counted."""

    def __init__(self, people: Iterable[bytes]) -> None:
        super().__init__(WINDOW, K)
        self._people = frozenset(people)

    def read(self, raw: Iterable[Stored]) -> None:
        """Take one partition, in the order of its offsets."""
        for record in raw:
            if record.key is not None and record.key in self._people:
                event = msgspec.json.decode(record.value or b"")
                self.add(record.key, milliseconds(event["occurred_at"]), event["country"])

    def findings(self, records: Iterable[Record]) -> list[str]:
        """Hold what was told against it."""
        cells, over = told((record.value for record in records), "country")
        windows = {window for window, *_ in self.wanted()}
        found = [f"window {window} is complete, and nothing of it told" for window in over.keys() - windows]
        return [*repeated(cells, over), *found, *self.differences(cells)]


def complete(records: Iterable[Record]) -> set[int]:
    """The windows that are over."""
    return set(told((record.value for record in records), "country")[1])
