"""The load of the benchmarks: events of about 730 bytes, their consents, and policies."""

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime

__all__ = ["CROWDS", "consents", "crowd_policy", "events", "policy"]

SUBJECTS = 10_000
CATEGORIES = ["lighting", "gifts", "kitchen", "garden", "paper"]


def policy(prefix: str) -> str:
    """Return a policy of one purpose: decode, drop, pseudonym, coarsen time, price and address."""
    return f"""
policy: bench
version: 1
topics: {{consents: {prefix}.consents, receipts: {prefix}.receipts, quarantine: {prefix}.quarantine}}
sources:
  web: {{topic: {prefix}.raw, own: true, subject: subject_id, type: type, time: occurred_at, id: event_id}}
purposes:
  personalization.recommendations:
    benefit: Suggestions that fit what you looked at
    topic: {prefix}.out
    rung: pseudonymous
    rotate: 30d
    lifetime: 7d
events:
  product_viewed:
    event_id: {{is: system.operations, for: all}}
    occurred_at: {{is: user.behavior, for: all, as: {{pseudonymous: hour}}}}
    properties.product_id: {{is: user.behavior.browsing_history, for: all}}
    properties.category: {{is: user.behavior.browsing_history, for: all}}
    properties.price: {{is: user.behavior.purchase_history, for: all, as: {{pseudonymous: {{round: 10}}}}}}
    context.ip: {{is: user.device.ip_address, for: all, as: {{pseudonymous: truncate_ip}}}}
    traits.email: {{is: user.contact.email, drop: not needed}}
    traits.birth_date: {{is: user.demographic.date_of_birth, drop: sensitive}}
"""


CROWDS = {
    "counts in a crowd": "k: 20, window: 1d, late: 10m, by: [properties.category], most_per_person: 5",
    "counts and sums in a crowd": (
        "k: 20, window: 1h, late: 10m, by: [type, properties.category], sum: {properties.price: [0, 1000]}, "
        "most_per_person: 5"
    ),
}
"""What a crowd purpose counts. Each person is in five cells."""


def crowd_policy(prefix: str, run: str, crowd: str) -> str:
    """Return the same with a crowd purpose more, one of `CROWDS`. Its state is of this run alone."""
    own = ", ".join(f"{of}: {prefix}.{of}-{run}" for of in ("counting", "closings", "partials", "rounds"))
    purpose = f"""
  shop.stock:
    benefit: The shop stocks what is wanted
    topic: {prefix}.stock
    rung: crowd
    lifetime: 7d
    crowd: {{{CROWDS[crowd]}}}
events:
"""
    return policy(prefix).replace("quarantine}", f"quarantine, {own}}}").replace("\nevents:\n", purpose)


def consents() -> Iterator[tuple[bytes, bytes]]:
    """Yield key and value of a consent record for everyone."""
    for number in range(SUBJECTS):
        subject = f"customer-{number:06d}"
        grant = {"rung": "pseudonymous", "since": "2020-01-01T00:00:00Z"}
        purposes = dict.fromkeys(("personalization.recommendations", "shop.stock"), grant)
        record = {"subject": subject, "version": 1, "purposes": purposes}
        yield subject.encode(), json.dumps(record, separators=(",", ":")).encode()


def events(count: int, seed: int = 7) -> Iterator[tuple[bytes, bytes]]:
    """Yield key and value of `count` events that are recorded now."""
    chance = random.Random(seed)
    for number in range(count):
        person = chance.randrange(SUBJECTS)
        subject = f"customer-{person:06d}"
        event = {
            "event_id": f"{chance.getrandbits(64):016x}-{number}",
            "type": "product_viewed",
            "occurred_at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "subject_id": subject,
            "traits": {
                "email": f"{subject}@mail.example.org",
                "name": f"Given{person} Family{person}",
                "phone": f"+44 20 7946 {person:04d}",
                "birth_date": "1980-02-29",
            },
            "context": {
                "ip": f"203.0.{person % 256}.{number % 256}",
                "user_agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141",
                "page": {"url": f"https://shop.example/p/{number % 5000}?utm_source=mail&session={number:032x}"},
                "locale": "en-GB",
                "screen": {"width": 1920, "height": 1080, "density": 2},
            },
            "properties": {
                "product_id": f"sku-{number % 5000}",
                "category": CATEGORIES[number % len(CATEGORIES)],
                "price": chance.randrange(100, 20_000) / 100,
                "list": "search results",
                "position": number % 40,
                "query": "white hanging heart t-light holder",
            },
        }
        yield subject.encode(), json.dumps(event, separators=(",", ":")).encode()
