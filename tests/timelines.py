"""Consents over positions: what was in force for whom, and what was acknowledged or promised by when.

A *position* is an offset of a consent partition: everything below it has been applied. Between two of a person's own
changes nothing changes for that person, however far the log goes on: a `Timeline` has one state for each such stretch.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from aiokafka.partitioner import murmur2

from tests.history import Stored
from tests.model import LADDER, is_utf8, read_consent

State = tuple[tuple[bytes | None, bytes | None], ...]
"""The consent records that matter for one person: the shortest history that gives the model the same answer."""
NOBODY: State = ()
BLOCKED: State = ((None, None),)


class Timeline(NamedTuple):
    """The states of one person: `states[0]`, and from `positions[k]` on `states[k + 1]`."""

    positions: list[int]
    states: list[State]

    def at(self, position: int) -> int:
        """Return the index of the state at a position."""
        return bisect_right(self.positions, position)


class Timelines:
    """The fold of one consent partition, for each person the places where it changes.

    It follows `tests.model.consent_in_force`, record by record, and keeps of each state only the records that the
    model needs to find the same.
    """

    def __init__(self, records: Iterable[Stored], owned: Callable[[bytes], bool], remade: Iterable[int] = ()) -> None:
        self._changes: dict[bytes, list[tuple[int, State]]] = defaultdict(list)
        self._everyone: list[tuple[int, State]] = []
        self._ready: dict[bytes | None, Timeline] = {}
        self._fold(records, owned, sorted(remade, reverse=True))

    def _fold(self, records: Iterable[Stored], owned: Callable[[bytes], bool], remade: list[int]) -> None:
        newest: dict[bytes, int] = {}
        latest: dict[bytes, State] = {}
        blocked = False
        for record in records:
            while remade and remade[-1] <= record.offset:
                self._everyone.append((remade.pop(), NOBODY))
                newest.clear()
                latest.clear()
                blocked = False
            key, position = record.key, record.offset + 1
            if blocked:
                continue
            if key is None or not is_utf8(key):
                blocked = True
                self._everyone.append((position, BLOCKED))
                continue
            said = said_of(key, record.value) if owned(key) else None
            if said is None:
                state: State = ((key, None),)
            elif said.version > newest.get(key, -1):
                newest[key] = said.version
                state = ((key, record.value),)
            elif said.version == newest[key]:
                before = latest[key]
                state = before if (key, None) in before else tuple(dict.fromkeys([*before, (key, record.value)]))
            else:
                continue
            if state != latest.get(key):
                latest[key] = state
                self._changes[key].append((position, state))
        self._everyone.extend((base, NOBODY) for base in reversed(remade))

    def of(self, key: bytes | None) -> Timeline:
        """Return the states of the person with this key."""
        timeline = self._ready.get(key)
        if timeline is None:
            own = [] if key is None else self._changes.get(key, [])
            changes = sorted([*own, *self._everyone], key=lambda change: change[0]) if self._everyone else own
            timeline = Timeline([position for position, _ in changes], [NOBODY, *(state for _, state in changes)])
            self._ready[key] = timeline
        return timeline


class Bound:
    """The greatest of what was said up to somewhere."""

    def __init__(self, said: Iterable[tuple[float, int]] = ()) -> None:
        ordered = sorted(said)
        self._at = [at for at, _ in ordered]
        self._most = list(accumulate((what for _, what in ordered), max))

    def before(self, at: float) -> int:
        """Return the greatest of what was said before `at`; 0 if nothing was."""
        index = bisect_left(self._at, at)
        return self._most[index - 1] if index else 0

    def up_to(self, at: float) -> int:
        """Return the greatest of what was said up to `at`, included; 0 if nothing was."""
        index = bisect_right(self._at, at)
        return self._most[index - 1] if index else 0


def partition_of(key: bytes, partitions: int) -> int:
    """Return where a key belongs: Kafka's murmur2."""
    return 0 if partitions == 1 else int((murmur2(key) & 0x7FFFFFFF) % partitions)


def owner_of(number: int, partitions: int) -> Callable[[bytes], bool]:
    return lambda key: partition_of(key, partitions) == number


class Said(NamedTuple):
    """What counts of a consent record here."""

    version: int
    takes_all_back: bool
    """nothing that it allows is ever published of a single event"""


@lru_cache(maxsize=65_536)
def said_of(key: bytes, value: bytes | None) -> Said | None:
    """Read a consent record, None if it cannot be read."""
    said = read_consent(value, key.decode()) if is_utf8(key) else None
    if said is None:
        return None
    version, grants = said
    return Said(version, all(grant.rung < LADDER.index("anonymous") for grant in grants.values()))
