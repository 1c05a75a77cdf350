"""Stage two: when windows of a purpose close, and that each is released once.

    lanes            Progress: how far a partition is     ->  stage two
    stage two        Closing: count up to this window     ->  every partition
    lanes            Partial: what the partition adds, computed after its gate, of those who allow it then
    stage two        all partitions have answered: release, or drop

A withdrawal that was acknowledged before the closing was written takes the person out of the window: the lane reads the
closing, asks how far the consents go, waits until it has read them, and only then counts.

Rules of this file:
- A window is closed when every partition has passed its end and `late`, and never again: what comes later is late.
- Windows that wait for a partition longer than `hold` are dropped: lateness is no reason to tell less than k people.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from streams.crowd.counts import Cell, Part, StateRecord
from streams.crowd.release import merged
from streams.crowd.rule import CrowdRule

__all__ = ["Closed", "Closing", "Partial", "Progress", "Rounds", "partials"]

_CHUNK = 4_000


class Progress(msgspec.Struct, tag="progress", frozen=True):
    """How far a partition is: every event that it reads from now on is of `watermark` (ms) or late."""

    partition: int
    watermark: int


class Closing(msgspec.Struct, tag="closing", frozen=True):
    """The order to count what is in the windows of a purpose up to the one that begins at `through` (ms)."""

    purpose: str
    through: int


class Partial(msgspec.Struct, tag="partial", frozen=True):
    """What a partition adds to one window, or a part of that; `last`: there is no more for this closing."""

    purpose: str
    partition: int
    through: int
    window: int | None
    cells: dict[str, Part]
    last: bool


class Closed(NamedTuple):
    """A window that is over. `cells` is None for one that was dropped."""

    window: int
    cells: dict[Cell, Part] | None


def partials(
    purpose: str, partition: int, through: int, windows: Iterator[tuple[int, Mapping[Cell, Part]]]
) -> Iterator[Partial]:
    """Yield what a partition answers to a closing, in parts that a record can hold."""
    for window, cells in windows:
        some = list(cells.items())
        for start in range(0, len(some), _CHUNK):
            chunk = {cell.decode(): part for cell, part in some[start : start + _CHUNK]}
            yield Partial(purpose, partition, through, window, chunk, False)
    yield Partial(purpose, partition, through, None, {}, True)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Partial | Progress).decode


class Rounds:
    """The purposes that one partition of stage two takes care of.

    >>> rule = CrowdRule("stock", 5, window=100, late=10, by=("country",))
    >>> rounds = Rounds([rule], partitions=2)
    >>> list(rounds.progress(Progress(0, 250))), list(rounds.progress(Progress(1, 120)))
    ([], [Closing(purpose='stock', through=0)])
    >>> part = Part(people=7, events=9, sums=[])
    >>> [list(rounds.partial(one)) for one in partials("stock", 0, 0, iter([(0, {b'["UK"]': part})]))]
    [[], []]
    >>> [list(rounds.partial(one)) for one in partials("stock", 1, 0, iter([(0, {b'["UK"]': part})]))]
    [[], [Closed(window=0, cells={b'["UK"]': Part(people=14, events=18, sums=[])})]]
    """

    def __init__(self, rules: list[CrowdRule], partitions: int) -> None:
        self.rules = {rule.purpose: rule for rule in rules}
        self._partitions = partitions
        self._watermarks: dict[int, int] = {}
        self._asked: dict[str, int] = {}
        self._closed: dict[str, int] = {}
        self._answers: dict[str, dict[int, list[Partial]]] = {}
        self._changed: dict[bytes, bytes | None] = {}

    def progress(self, progress: Progress) -> Iterator[Closing]:
        """Take how far a partition is; yield what is to be closed now."""
        known = self._watermarks.get(progress.partition)
        if known is not None and progress.watermark <= known:
            return
        self._watermarks[progress.partition] = progress.watermark
        self._changed[b"progress %d" % progress.partition] = _encode(progress)
        yield from self._closings()

    def _closings(self) -> Iterator[Closing]:
        if len(self._watermarks) < self._partitions:
            return
        lowest = min(self._watermarks.values())
        for purpose, rule in self.rules.items():
            through = rule.closable(lowest)
            # One round at a time: the next one takes all that has become closable meanwhile.
            if purpose not in self._answers and through > self._asked.get(purpose, through - 1):
                self._asked[purpose] = through
                self._answers[purpose] = {}
                self._changed[b"asked %b" % purpose.encode()] = b"%d" % through
                yield Closing(purpose, through)

    def partial(self, partial: Partial) -> Iterator[Closed]:
        """Take what a partition answers; yield the windows that are over when it was the last answer."""
        answers = self._answers.get(partial.purpose)
        # INVARIANT (released once): an answer to another closing, or a second one, counts for nothing.
        if answers is None or partial.through != self._asked[partial.purpose]:
            return
        mine = answers.setdefault(partial.partition, [])
        if mine and mine[-1].last:
            return
        self._changed[b"partial %b %d %d" % (partial.purpose.encode(), partial.partition, len(mine))] = _encode(partial)
        mine.append(partial)
        if len(answers) == self._partitions and all(some[-1].last for some in answers.values()):
            yield from self._over(partial.purpose, answers)

    def _over(self, purpose: str, answers: dict[int, list[Partial]]) -> Iterator[Closed]:
        rule = self.rules[purpose]
        windows: dict[int, list[dict[Cell, Part]]] = {}
        for partition, some in answers.items():
            for number, one in enumerate(some):
                self._changed[b"partial %b %d %d" % (purpose.encode(), partition, number)] = None
                if one.window is not None:
                    cells = {cell.encode(): part for cell, part in one.cells.items()}
                    windows.setdefault(one.window, []).append(cells)
        del self._answers[purpose]
        self._changed[b"over %b" % purpose.encode()] = b"%d" % self._asked[purpose]
        furthest = max(self._watermarks.values())
        for window in sorted(windows):
            late = furthest - rule.closes(window) > rule.hold
            yield Closed(window, None if late else merged(iter(windows[window])))

    def next_closings(self) -> Iterator[Closing]:
        """Yield what has become closable while a round was under way. Ask after each `Closed`."""
        yield from self._closings()

    def take_changes(self) -> Iterator[StateRecord]:
        """Yield what the state topic must hold of what has changed since the last time."""
        changed, self._changed = self._changed, {}
        yield from changed.items()

    def restore(self, records: Iterator[StateRecord]) -> None:
        """Take all records of the state topic, in order."""
        kept: dict[bytes, bytes] = {}
        for key, value in records:
            if value is None:
                kept.pop(key, None)
            else:
                kept[key] = value
        over: dict[str, int] = {}
        for key, value in kept.items():
            kind, _, rest = key.decode().partition(" ")
            if kind == "progress":
                self._watermarks[int(rest)] = _decode(value).watermark
            elif kind == "asked":
                self._asked[rest] = int(value)
            elif kind == "over":
                over[rest] = int(value)
        for purpose, through in self._asked.items():
            if over.get(purpose) != through:
                self._answers[purpose] = {}
        numbered = sorted((key for key in kept if key.startswith(b"partial ")), key=lambda key: int(key.split(b" ")[3]))
        for key in numbered:
            partial = _decode(kept[key])
            self._answers[partial.purpose].setdefault(partial.partition, []).append(partial)
