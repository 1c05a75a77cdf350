"""Records made k-anonymous one by one beside crowds that are counted, on the same real purchases.

    python -m tests.bench.anonymous                            the two days in the package, 24 hours
    python -m tests.bench.anonymous --shop --hours 1 24 168    seven months, from the folder in CELOSIA_DATA

The rival is `castle.py`. It is given what it asks for: it sees all partitions at once (but for one row), groups may lie
across days, and there are rows with small groups and with large ones. Its records carry a range of the quantity and
the price; cells carry people, events and the sums of both. Purchases are what customers bought, without postage.

The attacker knows of one purchase who, what, where and when, and wants the range of its quantity. A find is certain:
nothing is guessed.
"""

import csv
import gzip
import io
import json
import os
import statistics
import sys
import time
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import msgspec

from streams.crowd import told_of
from streams.crowd.counts import Counts
from streams.crowd.rule import UNIT, CrowdRule, Sum
from streams.crowd.window import Cell, Part
from streams.keys import MasterKey
from tests.bench.castle import EDGES, Key, Purchase, Stream, keys, range_of, ranges_of
from tests.command import Arguments

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "streams" / "data" / "online_retail_sample.ndjson.gz"
DATA = Path(os.environ.get("CELOSIA_DATA") or ROOT.parent / "shared" / "data")
SHOP = DATA / "retail" / "online_retail.dev.csv.gz"
HOUR = 3_600_000
MOST = EDGES[-1]
"""What one person adds to a sum at the most."""
BATCH = 500


def purchases(shop: bool) -> list[Purchase]:
    """Return the purchases of things, in order of time."""
    rows = sorted(_shop() if shop else _sample(), key=lambda row: row[3])
    found: list[Purchase] = []
    for person, country, code, when, quantity, price in rows:
        if person and quantity > 0 and code[:1].isdigit():
            at = int(datetime.fromisoformat(when).replace(tzinfo=UTC).timestamp() * 1000)
            found.append(Purchase(len(found), person, country, code, when[:13], at, quantity, price))
    return found


_Line = tuple[str | None, str, str, str, int, float]


def _sample() -> Iterator[_Line]:
    for line in gzip.decompress(SAMPLE.read_bytes()).splitlines():
        event = json.loads(line)
        item = event["item"]
        yield (event["customer"], event["country"], item["stock_code"], event["occurred_at"], item["quantity"],
               item["unit_price"])  # fmt: skip


def _shop() -> Iterator[_Line]:
    for row in csv.DictReader(io.StringIO(gzip.decompress(SHOP.read_bytes()).decode(), newline="")):
        yield (row["CustomerID"], row["Country"], row["StockCode"], row["InvoiceDate"], int(row["Quantity"]),
               float(row["UnitPrice"]))  # fmt: skip


class Form(NamedTuple):
    """A form of the rival."""

    large: bool = False
    diverse: bool = False
    partitions: int = 1


class Found(NamedTuple):
    """What can be told and found of one purchase; `ranges` are those that its quantity may lie in: empty, unknown."""

    named: bool = False
    told: bool = False
    ranges: frozenset[int] = frozenset()
    unsure: frozenset[int] = frozenset()
    priced: frozenset[int] = frozenset()
    exactly_k: bool = False
    delay: int | None = None


def rival(events: list[Purchase], k: int, delay: int, form: Form) -> tuple[list[Found], int, float]:
    """Return what the rival tells of each purchase, how much it held, and what it cost."""
    began = time.process_time()
    streams = [Stream(k, delay, form.large, form.diverse) for _ in range(form.partitions)]
    groups = [g for event in events for g in streams[crc32(event.person.encode()) % form.partitions].add(event)]
    groups += [group for stream in streams for group in stream.due(float("inf"))]
    cost = time.process_time() - began
    by_key: dict[Key, list[tuple[int, frozenset[int]]]] = defaultdict(list)
    for group in sorted(groups, key=lambda group: group.at):
        if group.key is not None:
            by_key[group.key].append((group.at, frozenset(ranges_of(group.members))))
    found = [Found()] * len(events)
    for group in groups:
        if group.key is None:
            continue
        prices: dict[float, set[int]] = defaultdict(set)
        for one in group.members:
            prices[one.price].add(range_of(one.quantity))
        ranges, named, exactly_k = frozenset(ranges_of(group.members)), len(group.key[1]) > 3, group.people == k
        for one in group.members:
            unsure = _fitting(by_key, one, delay)
            priced = frozenset(prices[one.price])
            found[one.number] = Found(named, True, ranges, unsure, priced, exactly_k, group.at - one.at)
    return found, sum(stream.held for stream in streams), cost


def _fitting(by_key: dict[Key, list[tuple[int, frozenset[int]]]], one: Purchase, delay: int) -> frozenset[int]:
    """Return the ranges of all groups that a purchase may have left in."""
    ranges: frozenset[int] = frozenset()
    for groups in (by_key[key] for key in keys(one) if key in by_key):
        first = bisect_left(groups, one.at, key=lambda group: group[0])
        last = bisect_right(groups, one.at + delay, key=lambda group: group[0])
        for _, some in groups[first:last]:
            ranges |= some
            if len(ranges) > len(EDGES):
                return ranges
    return ranges


def crowds(events: list[Purchase], k: int, delay: int, by: tuple[str, ...]) -> tuple[list[Found], int, float]:
    """Return the same of the crowd gate, with windows as long as the rival's delay."""
    sums = (Sum("quantity", 0, MOST * UNIT), Sum("price", 0, 1000 * UNIT))
    rule = CrowdRule("selling", k, window=delay, late=0, by=by, sums=sums, most_per_person=1000)
    cells = [msgspec.json.encode([getattr(event, field) for field in by]) for event in events]
    last = rule.window_of(events[0].at)
    began = time.process_time()
    counts, told = Counts([rule], MasterKey(bytes(32))), dict[int, dict[Cell, Part]]()
    for event, cell in zip(events, cells, strict=True):
        # Purchases are in order of time: a new window ends the one before it.
        if (window := rule.window_of(event.at)) != last:
            told |= _close(counts, rule, last)
            last = window
        counts.add("selling", event.person.encode(), cell, [event.quantity * UNIT, round(event.price * UNIT)], event.at)
        if event.number % BATCH == 0:
            list(counts.take_changes())
    told |= _close(counts, rule, last)
    cost = time.process_time() - began
    places = [(rule.window_of(event.at), cell, event.person) for event, cell in zip(events, cells, strict=True)]
    times = Counter(places)
    found = [Found()] * len(events)
    for event, place in zip(events, places, strict=True):
        window, cell, _ = place
        if (part := told.get(window, {}).get(cell)) is not None:
            ranges = possible(part, times[place])
            found[event.number] = Found(True, True, ranges, ranges, ranges, part.people == k, window + delay - event.at)
    return found, max(Counter(window for window, _, _ in times).values()), cost


def _close(counts: Counts, rule: CrowdRule, window: int) -> dict[int, dict[Cell, Part]]:
    list(counts.take_changes())
    list(counts.done(rule.purpose, window))
    closed = counts.close(rule.purpose, window, lambda subject, earliest: True)
    released = {start: told_of(rule, cells) for start, cells in closed}
    return {start: release.cells for start, release in released.items() if release is not None}


def possible(part: Part, times: int) -> frozenset[int]:
    """Return the ranges of one purchase that a cell leaves possible, of somebody who bought so many times.

    Every purchase is of 1 or more, and nobody adds more than `MOST`.
    """
    total, others = part.sums[0] // UNIT, part.people - 1
    least, most = (total - others * MOST, total - (part.events - 1)) if times == 1 else (1, total - others)
    return frozenset(range(range_of(max(1, least)), range_of(min(MOST, most)) + 1))


COLUMNS = {
    "product told": "the product is told",
    "less told": "something is told, but not the product",
    "certain": "the range of the quantity is found by who knows the group or cell",
    "unsure": "the same by who takes all groups that fit",
    "price known": "the same by who knows the group and what the thing costs",
    "k - 1 others": "the group or cell has k people: k - 1 who put together what they know find the last one's",
    "habits": "of people who buy a thing in several windows, always in one range: the range is found from all windows",
}
"""Shares of all purchases; of habits in the last."""


def row(events: list[Purchase], delay: int, results: tuple[list[Found], int, float]) -> str:
    """Return what was measured, as cells of a table."""
    found, held, cost = results
    counts = (
        sum(one.named for one in found),
        sum(one.told and not one.named for one in found),
        sum(len(one.ranges) == 1 for one in found),
        sum(len(one.unsure) == 1 for one in found),
        sum(len(one.priced) == 1 for one in found),
        sum(one.exactly_k for one in found),
    )
    delays = [one.delay / HOUR for one in found if one.delay is not None]
    shares = [f"{count / len(found):.1%}" for count in counts]
    waited = f"{statistics.median(delays):.1f}" if delays else "never"
    return " | ".join([*shares, _habits(events, found, delay), waited, f"{held:,}", f"{cost / len(found) * 1e6:.0f}"])


def _habits(events: list[Purchase], found: list[Found], delay: int) -> str:
    bought: dict[tuple[str, str], list[Purchase]] = defaultdict(list)
    for event in events:
        bought[event.person, event.product].append(event)
    # One purchase a window, so that a crowd's number is that of the purchase.
    habits = [
        those for those in bought.values()
        if len(those) > 1 and len(ranges_of(those)) == 1 and len({one.at // delay for one in those}) == len(those)
    ]  # fmt: skip
    known = 0
    for those in habits:
        told = [found[one.number].ranges for one in those if found[one.number].ranges]
        known += bool(told) and len(frozenset.intersection(*told)) == 1
    return f"{known / len(habits):.1%}" if habits else "none"


RIVALS = {
    "records, small groups": Form(),
    "records, large groups": Form(large=True),
    "records, diverse": Form(diverse=True),
    "records, 4 partitions": Form(partitions=4),
}
CROWDS: dict[str, tuple[str, ...]] = {
    "crowd by product": ("product",),
    "crowd by country, product": ("country", "product"),
}


def main() -> int:
    """Compare, and print the table."""
    parser = Arguments(prog="anonymous", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shop", action="store_true", help="seven months, from the folder in CELOSIA_DATA")
    parser.add_argument("--hours", type=int, nargs="+", default=[24], help="delays of records, and windows of crowds")
    parser.add_argument("--k", type=int, nargs="+", default=[5, 20])
    options = parser.parse_args()
    if options.shop and not SHOP.exists():
        parser.error(f"no {SHOP.name}: CELOSIA_DATA names the folder it is in")
    if min(*options.k, 5) < 5 or min(options.hours) < 1:
        parser.error("wanted --k of 5 or more, and --hours of 1 or more")
    events = purchases(options.shop)
    print(f"{len(events):,} purchases of {len({event.person for event in events}):,} people\n")
    columns = ["k", "hours", "way", *COLUMNS, "hours until out", "held at most", "us/purchase"]
    print(f"| {' | '.join(columns)} |\n| ---: | ---: | --- |{' ---: |' * (len(columns) - 3)}")
    for k, hours in product(options.k, options.hours):
        delay = hours * HOUR
        for way, form in RIVALS.items():
            print(f"| {k} | {hours} | {way} | {row(events, delay, rival(events, k, delay, form))} |", flush=True)
        for way, by in CROWDS.items():
            print(f"| {k} | {hours} | {way} | {row(events, delay, crowds(events, k, delay, by))} |", flush=True)
    print("\n" + "\n".join(f"{column}: {meaning}" for column, meaning in COLUMNS.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
