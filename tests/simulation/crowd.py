"""What a run must have told of crowds, found from what is in the logs at its end.

People who are counted allow it before they do anything, and never take it back; others take it back before any window
can close. So what each window comes to does not depend on what was in flight, and is compared exactly: each cell of at
least k people is told once, with all of its people and events, less what the guard takes; of others nothing is told.

Where a fault takes events away (retention, broken records), or lets a clock close windows early, less may be told.
"""

import json
from collections import Counter
from typing import TYPE_CHECKING

from tests.crowd.tally import Cell, Tally, repeated, told
from tests.simulation.material import BASE

if TYPE_CHECKING:
    from tests.simulation.world import World

__all__ = ["findings", "left"]

WINDOW, K = 2_000, 5


def _exact(world: "World") -> bool:
    scenario = world.scenario
    spoiled = {"retention", "break a record", "make consents anew", "jump of a clock"} & set(scenario.kinds)
    return not spoiled and not any(change.kind == "block" for change in scenario.changes)


def _counted(world: "World") -> Tally:
    tally = Tally(WINDOW, K)
    for number in range(world.scenario.partitions):
        for entry in world.broker.partition("raw.web", number).log.entries:
            who = entry.key or b""
            if not entry.corrupt and who.decode(errors="replace") in world.clients.counted:
                tally.add(who, entry.timestamp, json.loads(entry.value or b"")["page"])
    return tally


def _told(world: "World") -> tuple[Counter[Cell], Counter[int]]:
    logs = (world.broker.partition("out.counts", number).log for number in range(world.scenario.partitions))
    return told((entry.value for log in logs for entry in log.committed()), "page")


def left(world: "World") -> list[str]:
    """Return the windows that are still to be released."""
    if not _exact(world):
        return []
    open_ = sorted({window for window, *_ in _counted(world).wanted()} - _told(world)[1].keys())
    return [f"window {(window - BASE) / 1000:.0f} s is not told" for window in open_]


def findings(world: "World", power: "Counter[str]") -> list[str]:
    """Return what is wrong."""
    found = []
    tally, (cells, complete) = _counted(world), _told(world)
    counted = tally.windows
    power["windows of crowds"] += len(complete)
    power["cells of crowds"] += len(cells)
    found += repeated(cells, complete)
    for topic in world.shop.crowd:
        for number in range(world.scenario.partitions):
            for entry in world.broker.partition(topic, number).log.entries:
                if b"canary" in b"%b %b" % (entry.key or b"", entry.value or b"") and entry.control is None:
                    found.append(f"{topic}[{number}]@{entry.offset} names a person")
    if _exact(world):
        power["cells of crowds compared"] += len(tally.wanted())
        found += tally.differences(cells)
    else:
        for window, page, people, events in cells:
            most = counted.get(window, {}).get(page, (0, 0))
            # Which page was a person's first is not known where events are missing.
            if people < K or (
                page in counted.get(window, {}) and people > sum(many for many, _ in counted[window].values())
            ):
                found.append(f"{(window, page, people, events)} is told, of {most}")
    return found
