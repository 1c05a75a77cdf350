"""Crowds through a real broker: real purchases, countries by day, workers that are killed in between."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from streams.event import milliseconds
from tests.kafka.brokers import Broker, Record, produce, wait_until
from tests.kafka.retail import consent, customers, event, retail_policy, sample
from tests.kafka.worker import Deployment, deployed

COUNTRIES = "shop.countries"
DAY = 86_400_000
K = 5


class Told(NamedTuple):
    """What is told of one cell."""

    people: int
    events: int


def policy_of(prefix: str) -> dict[str, Any]:
    """The shop's policy with a purpose that counts countries by day."""
    policy = retail_policy(prefix)
    policy["purposes"][COUNTRIES] = {
        "benefit": "The shop knows where its things are wanted",
        "topic": f"{prefix}.shop.countries",
        "rung": "crowd",
        "lifetime": "9000d",
        "crowd": {"k": K, "window": "24h", "by": ["country"], "most_per_person": 1, "hold": "9000d"},
    }
    for of in ("counting", "closings", "partials", "rounds"):
        policy["topics"][of] = f"{prefix}.shop.{of}"
    for fields in policy["events"].values():
        rule = fields["country"]
        rule["for"] = [*rule["for"], COUNTRIES] if isinstance(rule.get("for"), list) else [COUNTRIES]
    return policy


@pytest.fixture
def shop(transactional_broker: Broker, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    with deployed(transactional_broker.bootstrap, topic_prefix, policy_of(topic_prefix), tmp_path) as deployment:
        yield deployment


def counted(allowed: set[str]) -> dict[tuple[int, str], Told]:
    """Countries by day with at least k customers, of those who allow it: counted here, from the sample alone."""
    people: dict[tuple[int, str], set[str]] = defaultdict(set)
    events: Counter[tuple[int, str]] = Counter()
    places: dict[tuple[int, str], str] = {}
    for line in sample():
        if line["customer"] in allowed:
            day = milliseconds(line["occurred_at"]) // DAY * DAY
            if places.setdefault((day, line["customer"]), line["country"]) == line["country"]:
                people[day, line["country"]].add(line["customer"])
                events[day, line["country"]] += 1
    days: dict[int, dict[str, int]] = defaultdict(dict)
    for (day, country), who in people.items():
        days[day][country] = len(who)
    told: dict[tuple[int, str], Told] = {}
    for day, sizes in days.items():
        shown = sorted((size, country) for country, size in sizes.items() if size >= K)
        gone = [size for size in sizes.values() if size < K]
        while gone and shown and (len(gone) < 2 or sum(gone) < K):
            gone.append(shown.pop(0)[0])
        told |= {(day, country): Told(size, events[day, country]) for size, country in shown}
    return told


def published(shop: Deployment) -> tuple[list[tuple[tuple[int, str], Told]], list[int]]:
    """The cells that are told, and the days that are said to be complete."""
    records: list[Record] = shop.read(shop.plan.purposes[COUNTRIES].topic)
    values = [json.loads(record.value or b"") for record in records]
    cells = [
        ((milliseconds(value["window"]["from"]), value["cell"]["country"]), Told(value["people"], value["events"]))
        for value in values
        if "cell" in value
    ]
    return cells, [milliseconds(value["window"]["from"]) for value in values if "cell" not in value]


def committed(shop: Deployment, events: float) -> bool:
    return sum(shop.committed(shop.raw).values()) >= events


def test_countries_by_day_are_counted_exactly_while_workers_are_killed(shop: Deployment) -> None:
    allowed = {who for number, who in enumerate(customers()) if number % 4}
    produce(shop.bootstrap, shop.consents, [consent(who, 1, {COUNTRIES: "crowd"}) for who in sorted(allowed)])
    produce(shop.bootstrap, shop.raw, [event(line) for line in sample()])
    days = {day for day, _ in counted(allowed)}
    for share in (0.2, 0.5, 0.8):
        worker = shop.start(session_timeout_ms=6_000)
        wait_until(partial(committed, shop, share * len(sample())), f"{share} of all events are committed")
        worker.kill()
    shop.start(session_timeout_ms=6_000)
    wait_until(lambda: set(published(shop)[1]) >= days, "all days are complete", 40)
    cells, complete = published(shop)
    assert sorted(complete) == sorted(days), "a day is released once"
    assert dict(cells) == counted(allowed)
    assert len(cells) == len(dict(cells))


CLOSES_NOTHING = """
from streams.crowd.rounds import Rounds
Rounds.next_closings = lambda self: iter(())
"""


def test_who_takes_it_back_before_a_window_closes_is_not_counted(shop: Deployment) -> None:
    everyone = [f"person-{number}" for number in range(12)]
    produce(shop.bootstrap, shop.consents, [consent(who, 1, {COUNTRIES: "crowd"}) for who in everyone])
    bought = [sample()[0] | {"customer": who, "country": "Iceland"} for who in everyone]
    produce(shop.bootstrap, shop.raw, [event(line) for line in bought])
    first = shop.start(script=CLOSES_NOTHING)
    shop.wait_consumed()
    assert first.terminate() == 0
    produce(shop.bootstrap, shop.consents, [consent(who, 2) for who in everyone[:4]])
    shop.start()
    wait_until(lambda: published(shop)[1] != [], "the day is complete")
    assert [told for _, told in published(shop)[0]] == [Told(8, 8)]
