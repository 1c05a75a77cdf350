"""Stage two: when windows of a purpose close, and that each is released once.

    lanes            Progress: how far a partition is     ->  stage two
    stage two        Closing: count up to this window     ->  every partition
    lanes            Partial: what the partition adds, computed after its gate, of those who allow it then
    stage two        all partitions have answered: release, or drop

A withdrawal that was acknowledged before the closing was written takes the person out of the window: the lane reads the
closing, asks how far the consents go, waits until it has read them, and only then counts.

Rules of this file:
- A window is closed when every partition has passed its end and `late`, and never again: what comes later is late.
- Windows that have waited for a partition longer than `hold`, by the clock, are dropped; it decides no more.
- What partitions add is below k as often as not: it is encrypted wherever it stands.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from streams.crowd.counts import StateRecord
from streams.crowd.release import merged
from streams.crowd.rule import MOST_BYTES, CrowdRule
from streams.crowd.sealed import Sealed
from streams.crowd.window import Cell, Part
from streams.keys import MasterKey

__all__ = ["Closed", "Closing", "Partial", "Progress", "Rounds", "partials"]


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
    number: int
    """counts the parts of an answer from 0"""
    window: int | None
    cells: dict[str, Part] | None
    """None: more cells than a window may have"""
    last: bool
    shape: str
    """of the rule under which it was counted"""


class Closed(NamedTuple):
    """A window that is over. `cells` is None for one that was dropped."""

    window: int
    cells: dict[Cell, Part] | None


def partials(
    rule: CrowdRule, partition: int, through: int, windows: Iterable[tuple[int, Mapping[Cell, Part] | None]]
) -> Iterator[Partial]:
    """Yield what a partition answers to a closing, in parts that a record can hold. Of nobody it says nothing."""
    purpose, shape, number = rule.purpose, rule.shape(), 0
    for window, cells in windows:
        some = None if cells is None else [(cell.decode(), part) for cell, part in cells.items()]
        for chunk in [None] if some is None else _chunks(some):
            yield Partial(purpose, partition, through, number, window, chunk, False, shape)
            number += 1
    yield Partial(purpose, partition, through, number, None, {}, True, shape)


def _chunks(cells: list[tuple[str, Part]]) -> Iterator[dict[str, Part]]:
    if len(cells) > 1 and len(_encode(cells)) > MOST_BYTES:
        half = len(cells) // 2
        yield from _chunks(cells[:half])
        yield from _chunks(cells[half:])
    elif cells:
        yield dict(cells)


_encode = msgspec.json.Encoder().encode
_decode_partial = msgspec.json.Decoder(Partial).decode
_decode_progress = msgspec.json.Decoder(Progress).decode


class Rounds:
    """The purposes that one partition of stage two takes care of.

    >>> rule = CrowdRule("stock", 5, window=100, late=10, by=("country",))
    >>> rounds = Rounds([rule], 2, MasterKey(bytes(32)))
    >>> list(rounds.progress(Progress(0, 250))), list(rounds.progress(Progress(1, 120)))
    ([], [Closing(purpose='stock', through=0)])
    >>> part = Part(people=7, events=9, sums=[])
    >>> [list(rounds.partial(one)) for one in partials(rule, 0, 0, [(0, {b'["UK"]': part})])]
    [[], []]
    >>> [list(rounds.partial(one)) for one in partials(rule, 1, 0, [(0, {b'["UK"]': part})])]
    [[], [Closed(window=0, cells={b'["UK"]': Part(people=14, events=18, sums=[])})]]
    """

    def __init__(self, rules: Iterable[CrowdRule], partitions: int, master: MasterKey) -> None:
        self._sealed = Sealed(master)
        self.rules = {rule.purpose: rule for rule in rules}
        self._partitions = partitions
        self._watermarks: dict[int, int] = {}
        self._asked: dict[str, int] = {}
        self._over_through: dict[str, int] = {}
        self._due: dict[str, dict[int, int]] = {}
        """by purpose: since when (clock, ms) a partition has been past windows up to one"""
        self._answers: dict[str, dict[int, list[Partial]]] = {}
        self._changed: dict[bytes, bytes | None] = {}

    def progress(self, progress: Progress, now: int = 0) -> Iterator[Closing]:
        """Take how far a partition is, at a time of the clock (ms); yield what is to be closed now."""
        known = self._watermarks.get(progress.partition)
        if known is not None and progress.watermark <= known:
            return
        self._watermarks[progress.partition] = progress.watermark
        self._changed[b"progress %d" % progress.partition] = _encode(progress)
        for purpose, rule in self.rules.items():
            due, last = self._due.setdefault(purpose, {}), rule.closable(progress.watermark)
            if last not in due:
                due[last] = now
                self._changed[b"due %b %d" % (purpose.encode(), last)] = b"%d" % now
        yield from self.next_closings()

    def next_closings(self) -> Iterator[Closing]:
        """Yield what has become closable while a round was under way. Ask after each `partial`."""
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

    def partial(self, partial: Partial, now: int = 0) -> Iterator[Closed]:
        """Take what a partition answers; yield the windows that are over when it was the last answer."""
        purpose = partial.purpose
        answers = self._answers.get(purpose)
        # INVARIANT (released once): an answer to another closing, or one that comes again, counts for nothing.
        if answers is None or partial.through != self._asked[purpose]:
            return
        mine = answers.setdefault(partial.partition, [])
        if partial.number != len(mine) or (mine and mine[-1].last):
            return
        key = b"partial %b %d %d" % (purpose.encode(), partial.partition, len(mine))
        self._changed[key] = self._sealed.close(_encode(partial), key)
        mine.append(partial)
        if len(answers) == self._partitions and all(some[-1].last for some in answers.values()):
            yield from self._over(purpose, answers, now)

    def _over(self, purpose: str, answers: dict[int, list[Partial]], now: int) -> Iterator[Closed]:
        windows: dict[int, list[dict[Cell, Part] | None]] = {}
        over, through, shape = self._over_through.get(purpose), self._asked[purpose], self.rules[purpose].shape()
        for partition, some in answers.items():
            for number, one in enumerate(some):
                self._changed[b"partial %b %d %d" % (purpose.encode(), partition, number)] = None
                # INVARIANT (released once): whatever a partition says of a window that is over, or not yet closed.
                if one.window is not None and one.window <= through and (over is None or one.window > over):
                    cells = None
                    # INVARIANT (fail closed): what was counted under another rule has other cells and sums.
                    if one.cells is not None and one.shape == shape:
                        cells = {cell.encode(): part for cell, part in one.cells.items()}
                    windows.setdefault(one.window, []).append(cells)
        del self._answers[purpose]
        self._over_through[purpose] = through
        self._changed[b"over %b" % purpose.encode()] = b"%d" % through
        for window in sorted(windows):
            yield Closed(window, self._merged(purpose, windows[window], self._waited(purpose, window, now)))
        due = self._due.get(purpose, {})
        for last in [last for last in due if last <= through]:
            del due[last]
            self._changed[b"due %b %d" % (purpose.encode(), last)] = None

    def _waited(self, purpose: str, window: int, now: int) -> int:
        """Return how long ago (ms) the first partition had passed a window."""
        return now - min((at for last, at in self._due.get(purpose, {}).items() if last >= window), default=now)

    def _merged(self, purpose: str, parts: list[dict[Cell, Part] | None], waited: int) -> dict[Cell, Part] | None:
        rule = self.rules[purpose]
        there = [cells for cells in parts if cells is not None]
        if waited > rule.hold or len(there) < len(parts):
            return None
        cells = merged(iter(there))
        # Under noise a limit would let one person keep out the cells of others.
        return cells if len(cells) <= rule.most_cells or rule.noise is not None else None

    def take_changes(self) -> Iterator[StateRecord]:
        """Yield what the state topic must hold of what has changed since the last time."""
        changed, self._changed = self._changed, {}
        yield from changed.items()

    def restore(self, records: Iterable[StateRecord]) -> None:
        """Take all records of the state topic, in order. What purposes have left that are gone counts for nothing.

        Raises:
            ValueError: one is not ours, or was made with another key.
        """
        kept: dict[bytes, bytes] = {}
        for key, value in records:
            if value is None:
                kept.pop(key, None)
            else:
                kept[key] = value
        answers: list[Partial] = []
        for key, value in kept.items():
            kind, _, rest = key.decode().partition(" ")
            if kind == "progress":
                self._watermarks[int(rest)] = _decode_progress(value).watermark
            elif kind == "partial":
                answers.append(_decode_partial(self._sealed.open(value, key)))
            elif kind == "due":
                purpose, _, last = rest.partition(" ")
                if purpose in self.rules:
                    self._due.setdefault(purpose, {})[int(last)] = int(value)
            elif kind not in ("asked", "over"):
                raise ValueError("not a key of ours")
            elif rest in self.rules:
                (self._asked if kind == "asked" else self._over_through)[rest] = int(value)
        for purpose, through in self._asked.items():
            if self._over_through.get(purpose) != through:
                self._answers[purpose] = {}
        for partial in sorted(answers, key=lambda one: one.number):
            mine = self._answers.get(partial.purpose)
            if mine is not None and partial.through == self._asked[partial.purpose]:
                mine.setdefault(partial.partition, []).append(partial)
