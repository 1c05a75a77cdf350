"""The log of one partition as one replica holds it: records, transactions in it, and what a reader may see.

Rules of this file:
- A reader sees what lies below the high watermark; a read_committed reader what lies below the last stable offset, and
  nothing of aborted transactions. Control records have offsets and are never handed out.
- A replica that takes over keeps what it has and goes on from there (`until`): what only the old leader had is gone.
- Compaction leaves gaps and never takes the last record; retention moves the start.
"""

from bisect import bisect_left
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from streams.kafka.port import OffsetsGone, Unreadable

__all__ = ["Entry", "Log", "Span"]

Headers = Sequence[tuple[str, bytes | None]]


class Span:
    """A transaction in one log: its first offset, and the offset of its marker once there is one."""

    __slots__ = ("aborted", "first", "marker", "pid")

    def __init__(self, pid: int, first: int) -> None:
        self.pid = pid
        self.first = first
        self.marker: int | None = None
        self.aborted = False


class Entry:
    """One record. `value` is bytes or None for clients; the coordinators keep what they like in theirs."""

    __slots__ = ("control", "corrupt", "headers", "key", "offset", "span", "timestamp", "value")

    def __init__(
        self, offset: int, timestamp: int, key: Any, value: Any, headers: Headers, span: Span | None = None
    ) -> None:
        self.offset = offset
        self.timestamp = timestamp
        self.key = key
        self.value = value
        self.headers = headers
        self.span = span
        self.control: tuple[int, bool] | None = None
        """producer id, and whether it commits; None for what is no marker"""
        self.corrupt = False


_offset = attrgetter("offset")


class Log:
    """The log of one replica."""

    __slots__ = (
        "batches",
        "compacted",
        "end",
        "entries",
        "epoch_start",
        "hw",
        "open",
        "producers",
        "start",
        "unstable",
    )

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.start = 0
        self.end = 0
        self.hw = 0
        self.epoch_start = 0
        """where the log of the present leader begins"""
        self.producers: dict[int, tuple[int, int, int]] = {}
        """by producer id: epoch, the last sequence number, and the offset of the last batch"""
        self.open: dict[int, Span] = {}
        self.unstable: list[Span] = []
        self.batches: list[tuple[int, int, int, int, int]] = []
        """end, producer id, epoch, last sequence number, first offset: what a new leader knows of producers"""
        self.compacted: list[Entry] = []

    def append(
        self,
        records: Sequence[tuple[int, Any, Any, Headers]],
        pid: int = -1,
        epoch: int = -1,
        sequence: int = 0,
        transactional: bool = False,
    ) -> int:
        """Append records (timestamp, key, value, headers); returns the offset of the first."""
        base = self.end
        span = None
        if transactional:
            span = self.open.get(pid)
            if span is None:
                span = self.open[pid] = Span(pid, base)
                self.unstable.append(span)
        entries = self.entries
        offset = base
        for timestamp, key, value, headers in records:
            entries.append(Entry(offset, timestamp, key, value, headers, span))
            offset += 1
        self.end = offset
        if pid >= 0:
            last = sequence + len(records) - 1
            self.producers[pid] = epoch, last, base
            self.batches.append((offset, pid, epoch, last, base))
        return base

    def mark(self, pid: int, epoch: int, commit: bool) -> int:
        """Append the marker that ends a producer's transaction; returns its offset."""
        offset = self.end
        entry = Entry(offset, -1, None, None, ())
        entry.control = pid, commit
        self.entries.append(entry)
        self.end = offset + 1
        span = self.open.pop(pid, None)
        if span is not None:
            span.marker = offset
            span.aborted = not commit
        _, last, base = self.producers.get(pid, (epoch, -1, 0))
        self.producers[pid] = epoch, last, base
        self.batches.append((offset + 1, pid, epoch, last, base))
        return offset

    def stable(self) -> int:
        """Return the last stable offset: all below it is decided, and cannot be lost."""
        hw = self.hw
        if self.unstable:
            self.unstable = [span for span in self.unstable if span.marker is None or span.marker >= hw]
            if self.unstable and self.unstable[0].first < hw:
                return self.unstable[0].first
        return hw

    def fetch(self, topic: str, position: int, most: int) -> tuple[list[Entry], int]:
        """Return committed records from a position on, and the position after them.

        Raises:
            OffsetsGone: the position is not in the log.
            Unreadable: the record there is broken.
        """
        if not self.start <= position <= self.end:
            raise OffsetsGone(topic, position)
        stable = self.stable()
        found: list[Entry] = []
        entries = self.entries
        for index in range(bisect_left(entries, position, key=_offset), len(entries)):
            entry = entries[index]
            if entry.offset >= stable or len(found) >= most:
                break
            if entry.corrupt:
                if found:
                    break
                raise Unreadable(topic, position, entry.offset + 1)
            position = entry.offset + 1
            if entry.control is None and (entry.span is None or not entry.span.aborted):
                found.append(entry)
        return found, position

    def committed(self) -> list[Entry]:
        """Return all that a read_committed reader may see."""
        stable = self.stable()
        return [
            entry
            for entry in self.entries
            if entry.offset < stable
            and entry.control is None
            and not entry.corrupt
            and (entry.span is None or not entry.span.aborted)
        ]

    def until(self, end: int) -> "Log":
        """Return the log of another replica, which has everything below `end`."""
        other = Log()
        other.start, other.hw, other.compacted = self.start, min(self.hw, end), list(self.compacted)
        for entry in self.entries:
            if entry.offset >= end:
                break
            span = None
            if entry.control is not None:
                pid, commit = entry.control
                if (ended := other.open.pop(pid, None)) is not None:
                    ended.marker, ended.aborted = entry.offset, not commit
            elif entry.span is not None:
                pid = entry.span.pid
                span = other.open.get(pid)
                if span is None:
                    span = other.open[pid] = Span(pid, entry.offset)
                    other.unstable.append(span)
            copy = Entry(entry.offset, entry.timestamp, entry.key, entry.value, entry.headers, span)
            copy.control, copy.corrupt = entry.control, entry.corrupt
            other.entries.append(copy)
        other.end = min(end, self.end)
        other.batches = [batch for batch in self.batches if batch[0] <= end]
        for _, pid, epoch, last, base in other.batches:
            other.producers[pid] = epoch, last, base
        return other

    def trim(self, offset: int) -> None:
        """Let retention take everything below an offset."""
        offset = min(offset, self.hw)
        if offset > self.start:
            self.entries = [entry for entry in self.entries if entry.offset >= offset]
            self.start = offset

    def compact(self) -> int:
        """Keep only the newest record of each key below the last stable offset; returns how many went."""
        stable = self.stable()
        newest = {entry.key: entry.offset for entry in self.entries if entry.offset < stable and entry.control is None}
        kept: list[Entry] = []
        gone: list[Entry] = []
        for entry in self.entries:
            stays = entry.offset >= stable - 1 or entry.control is not None or newest[entry.key] == entry.offset
            (kept if stays else gone).append(entry)
        self.entries = kept
        self.compacted += gone
        return len(gone)
