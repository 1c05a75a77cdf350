"""A whole crowd gate without Kafka: several partitions of stage one, one of stage two, and what is told.

Every call is one transaction: what it changes is in the logs when it returns. `restart` throws everything away but
the logs, which are compacted, tombstones and all. Nothing here is clever; what it asserts holds of every use of it.
"""

from collections.abc import Mapping
from zlib import crc32

import msgspec

from streams.crowd import told_of
from streams.crowd.counts import Added, Counts
from streams.crowd.release import Released
from streams.crowd.rounds import Closed, Closing, Partial, Progress, Rounds, partials
from streams.crowd.rule import CrowdRule
from streams.crowd.window import Cell, Part
from streams.keys import MasterKey
from tests.crowd.logs import Log, compacted

__all__ = ["Deployment", "cell_of", "told"]

MASTER = MasterKey(bytes(range(32)))


def cell_of(*values: str | int | float | bool | None) -> Cell:
    """Return the cell that these values make."""
    return msgspec.json.encode(values)


class Deployment:
    """The gate of one purpose. Times are in milliseconds.

    `closed` and `released` hold, by window, what all partitions added up to and what is told of it; None in `closed`:
    the window was dropped.
    """

    def __init__(self, rule: CrowdRule, partitions: int, master: MasterKey = MASTER) -> None:
        self.rule, self._partitions, self._master = rule, partitions, master
        self.since: dict[str, int] = {}
        """who allows the purpose, and for events from when on"""
        self.closed: dict[int, Mapping[Cell, Part] | None] = {}
        self.released: dict[int, Released] = {}
        self._logs: list[Log] = [[] for _ in range(partitions)]
        self._log: Log = []
        self._clock = 0
        self._start()

    def _start(self) -> None:
        self._counts = [Counts([self.rule], self._master) for _ in range(self._partitions)]
        for counts, log in zip(self._counts, self._logs, strict=True):
            counts.restore(log)
        self._rounds = Rounds([self.rule], self._partitions, self._master)
        self._rounds.restore(iter(self._log))

    def restart(self) -> None:
        """Lose everything that is not in the logs, and let them be compacted."""
        self._logs = [compacted(log, len(log), tombstones=True) for log in self._logs]
        self._log = compacted(self._log, len(self._log), tombstones=True)
        self._start()

    def send(self, person: str, cell: Cell, sums: list[int], recorded: int) -> Added | None:
        """Count an event of a person who allows it; None if they do not."""
        if person not in self.since or recorded < self.since[person]:
            return None
        partition = crc32(person.encode()) % self._partitions
        added = self._counts[partition].add(self.rule.purpose, person.encode(), cell, sums, recorded)
        self._logs[partition] += self._counts[partition].take_changes()
        return added

    def pass_time(self, watermark: int) -> None:
        """Let it be a time, and all partitions have read everything up to it; tell what is to be told."""
        self._clock = max(self._clock, watermark)
        for partition in range(self._partitions):
            closings = list(self._rounds.progress(Progress(partition, watermark), self._clock))
            self._log += self._rounds.take_changes()
            for closing in closings:
                self._round(closing)

    def _round(self, closing: Closing) -> None:
        for partition in range(self._partitions):
            for answer in self._answers(partition, closing):
                for over in self._rounds.partial(answer, self._clock):
                    self._tell(over)
                self._log += self._rounds.take_changes()
        for later in list(self._rounds.next_closings()):
            self._round(later)

    def _answers(self, partition: int, closing: Closing) -> list[Partial]:
        counts, purpose = self._counts[partition], self.rule.purpose
        self._logs[partition] += counts.done(purpose, closing.through)
        windows = counts.close(purpose, closing.through, self._allows)
        return list(partials(self.rule, partition, closing.through, windows))

    def _allows(self, subject: bytes, earliest: int) -> bool:
        return self.since.get(subject.decode(), earliest + 1) <= earliest

    def _tell(self, over: Closed) -> None:
        assert over.window not in self.closed, f"window {over.window} is told a second time"
        self.closed[over.window] = over.cells
        released = told_of(self.rule, over.cells)
        if released is not None:
            self.released[over.window] = released


def told(deployment: Deployment) -> dict[int, bytes]:
    """Return everything that a reader of the outputs sees, by window, to compare byte by byte."""
    return {window: msgspec.json.encode(list(one)) for window, one in deployment.released.items()}
