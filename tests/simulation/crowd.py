"""What a run must have told of crowds, found from what is in the logs at its end.

People who are counted allow it before they do anything, and never take it back; others take it back before any window
can close. So what each window comes to does not depend on what was in flight, and is compared exactly: each cell of at
least k people is told once, with all of its people and events, less what the guard takes; of others nothing is told.

Where a fault takes events away (retention, broken records), or lets a clock close windows early, less may be told.
"""

import json
from collections import Counter
from typing import TYPE_CHECKING

from streams.event import milliseconds
from tests.crowd.model import guarded_on_one_line
from tests.simulation.material import BASE

if TYPE_CHECKING:
    from tests.simulation.world import World

__all__ = ["findings", "left"]

WINDOW, K = 2_000, 5
Cells = dict[int, dict[str, tuple[int, int]]]
"""By beginning of a window and page: people and events."""


def _exact(world: "World") -> bool:
    scenario = world.scenario
    spoiled = {"retention", "break a record", "make consents anew", "jump of a clock"} & set(scenario.kinds)
    return not spoiled and not any(change.kind == "block" for change in scenario.changes)


def _counted(world: "World") -> Cells:
    """What each window comes to: a person's first page of a window, and all of their events there."""
    cells: Cells = {}
    first: dict[tuple[str, int], str] = {}
    people: set[tuple[str, int]] = set()
    for number in range(world.scenario.partitions):
        for entry in world.broker.partition("raw.web", number).log.entries:
            who = (entry.key or b"").decode(errors="replace")
            if entry.corrupt or who not in world.clients.counted:
                continue
            page = json.loads(entry.value or b"")["page"]
            window = entry.timestamp // WINDOW * WINDOW
            if first.setdefault((who, window), page) == page:
                many, events = cells.setdefault(window, {}).get(page, (0, 0))
                cells[window][page] = many + ((who, window) not in people), events + 1
                people.add((who, window))
    return cells


def _wanted(counted: Cells) -> set[tuple[int, str, int, int]]:
    """What must be told: window, page, people and events of each cell."""
    return {
        (window, name.decode(), *cells[name.decode()])
        for window, cells in counted.items()
        for name in guarded_on_one_line({page.encode(): many for page, (many, _) in cells.items()}, K)
    }


def _told(world: "World") -> tuple[Counter[tuple[int, str, int, int]], Counter[int]]:
    """The cells that are told, and the windows that are said to be complete, each with how often."""
    cells: Counter[tuple[int, str, int, int]] = Counter()
    complete: Counter[int] = Counter()
    for number in range(world.scenario.partitions):
        for entry in world.broker.partition("out.counts", number).log.committed():
            said = json.loads(entry.value or b"")
            window = milliseconds(said["window"]["from"])
            if "cell" in said:
                cells[window, said["cell"]["page"], said["people"], said["events"]] += 1
            else:
                complete[window] += 1
    return cells, complete


def left(world: "World") -> list[str]:
    """Return the windows that are still to be released."""
    if not _exact(world):
        return []
    open_ = sorted({window for window, *_ in _wanted(_counted(world))} - _told(world)[1].keys())
    return [f"window {(window - BASE) / 1000:.0f} s is not told" for window in open_]


def findings(world: "World", power: "Counter[str]") -> list[str]:
    """Return what is wrong."""
    found = []
    counted, (told, complete) = _counted(world), _told(world)
    power["windows of crowds"] += len(complete)
    power["cells of crowds"] += len(told)
    found += [f"window {window} is complete {times} times" for window, times in complete.items() if times > 1]
    found += [f"{cell} is told {times} times" for cell, times in told.items() if times > 1]
    for topic in world.shop.crowd:
        for number in range(world.scenario.partitions):
            for entry in world.broker.partition(topic, number).log.entries:
                if b"canary" in b"%b %b" % (entry.key or b"", entry.value or b"") and entry.control is None:
                    found.append(f"{topic}[{number}]@{entry.offset} names a person")
    if _exact(world):
        wanted = _wanted(counted)
        power["cells of crowds compared"] += len(wanted)
        found += [f"{cell} is told, and not wanted" for cell in told.keys() - wanted]
        found += [f"{cell} is wanted, and not told" for cell in wanted - told.keys()]
    else:
        for window, page, people, events in told:
            most = counted.get(window, {}).get(page, (0, 0))
            # Which page was a person's first is not known where events are missing.
            if people < K or (
                page in counted.get(window, {}) and people > sum(many for many, _ in counted[window].values())
            ):
                found.append(f"{(window, page, people, events)} is told, of {most}")
    return found
