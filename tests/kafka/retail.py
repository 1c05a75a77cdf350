"""What the tests on a real broker send: the shop's policy, purchases that were made, and consents to them."""

import gzip
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from streams.consent import Consents
from streams.event import RawEvent, iso
from streams.kafka.partitioner import owner_of
from streams.outcome import Outcome
from streams.pipeline import Place, process
from streams.plan import Plan
from tests.kafka.brokers import Record, ToSend

ROOT = Path(__file__).parents[2]
RECOMMENDATIONS, ASSORTMENT, ORDERS = "personalization.recommendations", "shop.assortment", "service.orders"
LONG_AGO = 1_000_000_000_000


def now_ms() -> int:
    """The time, for events; no test waits by it."""
    return time.time_ns() // 1_000_000


def retail_policy(prefix: str, **source: Any) -> dict[str, Any]:
    """The policy of the demonstration with all topic names behind a prefix, and other words for its source."""
    policy: dict[str, Any] = yaml.safe_load((ROOT / "schemas/policies/retail.yaml").read_text())
    for use, topic in policy["topics"].items():
        policy["topics"][use] = f"{prefix}.{topic}"
    for purpose in policy["purposes"].values():
        purpose["topic"] = f"{prefix}.{purpose['topic']}"
    till = policy["sources"]["till"]
    till["topic"] = f"{prefix}.{till['topic']}"
    till.update(source)
    return policy


@cache
def sample() -> tuple[dict[str, Any], ...]:
    """The purchases of two days that are in the package."""
    with gzip.open(ROOT / "streams/data/online_retail_sample.ndjson.gz", "rt") as lines:
        return tuple(json.loads(line) for line in lines)


def purchases(count: int, first: int) -> Iterator[dict[str, Any]]:
    """The first purchases of the sample as if they were made now: one a millisecond from `first` (ms) on."""
    lines = sample()
    for number in range(count):
        yield lines[number % len(lines)] | {"occurred_at": iso(first + number)}


def event(document: dict[str, Any], timestamp: int = 0, partition: int = -1) -> ToSend:
    """A document as a raw record: its key is the customer, murmur2 chooses the partition."""
    customer = document.get("customer")
    key = None if customer is None else str(customer).encode()
    return ToSend(key, json.dumps(document).encode(), timestamp=timestamp, partition=partition)


def consent(subject: str, version: int, rungs: Mapping[str, str] | None = None, *, until: int | None = None) -> ToSend:
    """A consent record: the rung that is allowed for each purpose, since long ago."""
    ends = {} if until is None else {"until": iso(until)}
    grants = {purpose: {"rung": rung, "since": iso(LONG_AGO), **ends} for purpose, rung in (rungs or {}).items()}
    value = {"subject": subject, "version": version, "purposes": grants}
    return ToSend(subject.encode(), json.dumps(value).encode())


def customers() -> list[str]:
    """All customers of the sample, in order of their names."""
    return sorted({line["customer"] for line in sample() if line["customer"]})


def expected(
    plan: Plan, raw: Sequence[Record], consents: Iterable[Record], partitions: int, now: int
) -> dict[tuple[int, int], Outcome]:
    """What `streams.pipeline.process` makes of each raw record, by partition and offset, with all consents known."""
    known = {number: Consents(owner_of(number, partitions)) for number in range(partitions)}
    for record in consents:
        known[record.partition].apply(record.key, record.value)
    source = next(source for source in plan.sources if source.topic == raw[0].topic)
    return {
        (record.partition, record.offset): process(
            raw_event(record), Place(source, record.partition), known[record.partition], plan, now
        )
        for record in raw
    }


def raw_event(record: Record) -> RawEvent:
    """A record that librdkafka read, as the core takes it."""
    timestamp = -1 if record.timestamp is None else record.timestamp
    return RawEvent(record.offset, timestamp, record.key, record.value, record.headers)
