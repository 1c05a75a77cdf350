"""What is told of a crowd: one record for each cell of a window, and one that says that the window is complete."""

import csv
import io
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from streams.crowd.release import Released
from streams.crowd.rule import UNIT
from streams.crowd.window import Part
from streams.event import iso
from streams.outcome import Output
from streams.plan import Plan, PurposePlan

__all__ = ["Aggregate", "Complete", "aggregates", "table"]

_encode = msgspec.json.Encoder().encode


class Span(msgspec.Struct, rename={"begin": "from", "end": "to"}):
    """The time of a window in RFC 3339: from its beginning to before its end."""

    begin: str
    end: str


class Summed(msgspec.Struct):
    """A sum over the events of a cell, and its mean over them. An event without the field adds 0."""

    sum: float
    mean: float


class AggregateStamp(msgspec.Struct):
    """`_celosia` in an aggregate: how it came about, and when it dies."""

    policy: str
    version: int
    purpose: str
    rung: str
    expires_at: str


class Aggregate(msgspec.Struct, rename={"stamp": "_celosia"}):
    """The value of a record on the topic of a crowd purpose: one cell of one window."""

    window: Span
    cell: dict[str, Any]
    """the values of the fields in `by`"""
    people: int
    """distinct people"""
    at_least: int
    """the same, rounded down to a multiple of k"""
    events: int
    sums: dict[str, Summed]
    stamp: AggregateStamp


class Complete(msgspec.Struct, rename={"stamp": "_celosia"}):
    """The value of the last record of a window: nothing more will be told of it."""

    window: Span
    cells: int
    """how many are told"""
    suppressed_at_least: int
    """how many are not, rounded down to a multiple of k"""
    stamp: AggregateStamp


_decode = msgspec.json.Decoder(Aggregate).decode


def aggregates(plan: Plan, purpose: PurposePlan, window: int, released: Released) -> list[Output]:
    """Return what is published of a window that begins at `window` (ms): nothing where no cell is told.

    A cell's key is its values as JSON.
    """
    rule = purpose.crowd
    if rule is None:
        raise ValueError(f"{purpose.name} counts no crowds")
    span = Span(iso(window), iso(window + rule.window))
    policy = plan.policy
    expires = iso(window + rule.window + purpose.lifetime)
    stamp = AggregateStamp(policy.policy, policy.version, purpose.name, "crowd", expires)
    headers = [
        ("celosia-policy", plan.name.encode()),
        ("celosia-purpose", purpose.name.encode()),
        ("celosia-rung", b"crowd"),
        ("celosia-expires-at", expires.encode()),
    ]
    at = max(window, 0)
    outputs = []
    for cell, part in released.cells.items():
        values = dict(zip(rule.by, msgspec.json.decode(cell), strict=True))
        sums = {one.path: _summed(total, part) for one, total in zip(rule.sums, part.sums, strict=True)}
        value = Aggregate(span, values, part.people, part.people // rule.k * rule.k, part.events, sums, stamp)
        outputs.append(Output(purpose.topic, cell, _encode(value), headers, at))
    if not outputs:
        # As of a window with nobody in it: that somebody was there is not told.
        return []
    complete = Complete(span, len(released.cells), released.suppressed_at_least, stamp)
    outputs.append(Output(purpose.topic, None, _encode(complete), headers, at))
    return outputs


def table(purpose: PurposePlan, outputs: Iterable[Output]) -> Iterator[bytes]:
    """Yield cells as rows of CSV (RFC 4180) in UTF-8, without line ends. The last record of a window is left out.

    The first row names the columns: from, to, the fields in `by`, people, at_least, events, and `sum` and `mean` of
    each sum. A value that is no text is written as in JSON.
    """
    rule = purpose.crowd
    if rule is None:
        raise ValueError(f"{purpose.name} counts no crowds")
    numbers = [f"{kind} {one.path}" for one in rule.sums for kind in ("sum", "mean")]
    yield _csv(["from", "to", *rule.by, "people", "at_least", "events", *numbers])
    for output in outputs:
        if output.key is not None:
            told = _decode(output.value)
            values = [value if type(value) is str else _encode(value).decode() for value in told.cell.values()]
            sums = [number for path in told.sums.values() for number in (path.sum, path.mean)]
            yield _csv([told.window.begin, told.window.end, *values, told.people, told.at_least, told.events, *sums])


def _csv(row: list[Any]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(row)
    return line.getvalue().encode()


def _summed(total: int, part: Part) -> Summed:
    return Summed(total / UNIT, total / UNIT / max(1, part.events))
