"""Follows one partition of the consent topic and folds all of it into memory.

Rules of this file:
- The topic *is* the table: read from its first record at every start, no changelog, no local state, nothing to recover.
- `position` is the offset of the next record, so it also moves over control records and the gaps of compaction. The
  gate waits for the position, never for a record (a record with that offset may not exist).
- Records are applied between two awaits, and so is the position moved: nobody sees one without the other.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from streams.consent import BARRIER, Consents
from streams.kafka.port import ConsentPort, OffsetsGone, PortError, Unreadable, describe
from streams.kafka.steps import begin

__all__ = ["Follower"]

log = logging.getLogger("celosia.follower")


class Follower:
    """The consents of one partition and how far they have been read: `position` is the offset of the next record."""

    def __init__(self, partition: int, port: ConsentPort, owns: Callable[[bytes], bool]) -> None:
        self.partition = partition
        self.consents = Consents(owns)
        self.position = -1
        """-1 until the topic has been rewound: nothing is known"""
        self.era = 0
        """how often the topic was read from its beginning"""
        self.changed = (0, -1)
        """era and position after the newest record that may change something: barriers do not"""
        self.topic_id: bytes | None = None
        """of the topic that is followed; None before it was rewound, or where the broker has no ids"""
        self.unreceipted: list[int] = []
        """Kafka timestamps (ms) of the records applied since the last receipt, for the metric only"""
        self._port = port
        self._moved = asyncio.Event()
        self._rewind = asyncio.Event()
        self._rewind.set()

    async def run(self) -> None:
        """Follow for ever. Ends by cancellation only; whatever fails is tried again, and the gate waits meanwhile."""
        pause = 0.05
        try:
            while True:
                try:
                    await self._step()
                    pause = 0.05
                except Unreadable:
                    # Whose consent is in it cannot be told: nobody passes the gate until the topic is repaired.
                    log.error("consents[%d]: records cannot be read: everyone waits", self.partition)
                    await asyncio.sleep(5.0)
                except OffsetsGone:
                    log.error("consents[%d]: the position is gone: rebuilding, all denied", self.partition)
                    self.rebuild()
                except PortError as error:
                    log.warning("consents[%d]: %s; trying again in %.2f s", self.partition, describe(error), pause)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, 5.0)
        finally:
            await self._port.close()

    async def _step(self) -> None:
        if self._rewind.is_set():
            self._rewind.clear()
            try:
                first = await self._port.rewind()
            except BaseException:
                self._rewind.set()
                raise
            self.topic_id = first.topic_id
            self.era += 1
            self._set(first.offset, changed=True)
        reading = begin(self._port.read_consents())
        asked = begin(self._rewind.wait())
        both: list[asyncio.Future[Any]] = [reading, asked]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()
            if not reading.done() or self._rewind.is_set():
                # What was being read belongs to a topic that is no more, or nobody waits for it any more.
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
        if self._rewind.is_set():
            return
        batch = reading.result()
        records = [record for record in batch.records if record.key != BARRIER]
        for record in records:
            self.consents.apply(record.key, record.value)
            self.unreceipted.append(record.timestamp)
        self._set(batch.position, changed=bool(records) or not batch.records)

    def _set(self, position: int, changed: bool) -> None:
        if position != self.position:
            self.position = position
            if changed:
                self.changed = self.era, position
            moved, self._moved = self._moved, asyncio.Event()
            moved.set()

    def rebuild(self) -> None:
        """Deny everyone and read the topic anew from its beginning."""
        # INVARIANT (fail closed): from here on nobody is known, until the new position passes the gate.
        self.consents.clear()
        self.unreceipted.clear()
        self._rewind.set()
        self._set(-1, changed=True)

    async def reach(self, end: int) -> None:
        """Wait until every record below the offset `end` has been applied."""
        while self.position < end:
            await self._moved.wait()

    async def change_after(self, moment: tuple[int, int]) -> None:
        """Wait until something may have changed since this era and position."""
        while self.changed <= moment:
            await self._moved.wait()
