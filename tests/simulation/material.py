"""What the simulated shop is about: its policy, people, events and consents.

Rules of this file:
- Times are far from where they would matter: all that holds, held two days before the run, and holds two days after it,
  so that a clock that is wrong by an hour changes nothing that may be published.
- Everything personal is a token: `canary-...` where an identified output may show it, `hidden-...` where nothing may.
- Events are few different ones, at whole seconds: the checker remembers what the model said of each.
"""

import json
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

from streams.keys import MasterKey
from streams.plan import Plan, compile_plan
from streams.policy import parse_policy

__all__ = [
    "BASE",
    "CANARY",
    "COUNTED",
    "HIDDEN",
    "LATEST",
    "LEAVERS",
    "PEOPLE",
    "SECRET",
    "Shop",
    "consent",
    "event",
    "shop",
]

BASE = 1_772_539_200_000
"""2026-03-03T12:00:00Z: when a run begins"""
LATEST = BASE + 3_600_000
"""not before the timestamp of any event"""
SECRET = bytes(range(32))
CANARY = b"canary-"
HIDDEN = b"hidden-"
PEOPLE = tuple(f"canary-{name}" for name in ("ana", "ben", "cleo", "dan", "eve", "fay", "gil", "hal"))
COUNTED = tuple(f"canary-one-of-many-{number}" for number in range(24))
"""people who are counted in crowds: they allow nothing else, and never change their minds"""
LEAVERS = tuple(f"canary-leaver-{number}" for number in range(4))
"""people who are counted at first, and take it back before a window closes"""
_PURPOSES = {"ads": "pseudonymous", "stats": "anonymous", "care": "identified"}
_LOWER = {
    "pseudonymous": ("pseudonymous", "anonymous"),
    "anonymous": ("anonymous",),
    "identified": ("identified", "pseudonymous"),
}


@dataclass(frozen=True)
class Shop:
    """A policy, as a document and compiled."""

    document: dict[str, Any]
    plan: Plan
    raw: tuple[str, ...]
    """topics with raw events"""
    keyed: tuple[str, ...]
    """topics with events keyed by their subject, that celosia writes itself"""
    outputs: tuple[str, ...]
    """topics with outputs"""
    written: tuple[str, ...]
    """topics that celosia writes outputs, quarantine and receipts to"""
    consents: str
    receipts: str
    crowd: tuple[str, ...] = ()
    """topics that the two stages of the crowd gate say to each other, keep and tell"""


@cache
def shop(rekeyed: bool, crowd: bool = False) -> Shop:
    """Return the shop; `rekeyed`: with a second source, keyed by something else than the person; `crowd`: it counts."""
    source = {"own": True, "subject": "who", "type": "what"}
    document: dict[str, Any] = {
        "policy": "sim",
        "version": 1,
        "sources": {"web": source | {"topic": "raw.web"}},
        "purposes": {
            name: {"benefit": "Something a person wants", "topic": f"out.{name}", "rung": rung, "lifetime": "1d"}
            for name, rung in _PURPOSES.items()
        },
        "events": {
            "seen": {
                "n": {"is": "system.operations", "for": "all"},
                "page": {"is": "user.behavior", "for": ["ads", "care"]},
                "who": {"is": "user.unique_id"},
            }
        },
    }
    for purpose in ("ads", "care"):
        document["purposes"][purpose]["rotate"] = "30d"
    if crowd:
        document["purposes"]["counts"] = {
            "benefit": "Something a person wants",
            "topic": "out.counts",
            "rung": "crowd",
            "lifetime": "1d",
            # So late that no event is, whatever is cut off or stands still.
            "crowd": {"k": 5, "window": "2s", "late": "10s", "by": ["page"], "most_per_person": 1},
        }
        document["events"]["seen"]["page"]["for"].append("counts")
    if rekeyed:
        document["sources"]["app"] = source | {"topic": "raw.app", "key": "other"}
    plan = compile_plan(parse_policy(json.dumps(document).encode()), MasterKey(SECRET))
    policy = plan.policy
    raw = tuple(str(said["topic"]) for said in document["sources"].values())
    keyed = (f"{policy.topic('rekeyed')}.app",) if rekeyed else ()
    outputs = tuple(f"out.{name}" for name in _PURPOSES)
    written = (*outputs, policy.topic("quarantine"), policy.topic("receipts"))
    own = ("closings", "partials", "counting", "rounds")
    told = ("out.counts", *(f"sim.{of}" for of in own)) if crowd else ()
    return Shop(document, plan, raw, keyed, outputs, written, policy.topic("consents"), policy.topic("receipts"), told)


@cache
def event(person: str, number: int) -> bytes:
    """Return the value of an event: mostly a page that was seen, some that nobody can use."""
    number %= 12
    if number == 11:
        return b'{"who":"%b","what":"see' % person.encode()
    document: dict[str, Any] = {"who": person, "what": "bought" if number == 10 else "seen", "n": number}
    if number == 9:
        del document["who"]
    return json.dumps(document | {"page": f"page-{number % 3}", "mail": f"hidden-{person}@example.org"}).encode()


def grants(random: Random) -> dict[str, Any]:
    """Draw what a person allows: at least one purpose that holds now."""
    allowed: dict[str, Any] = {}
    for name, rung in _PURPOSES.items():
        chance = random.random()
        if chance < 0.7:
            rungs = _LOWER[rung]
            allowed[name] = {"rung": rungs[int(chance * 10) % len(rungs)], "since": "2026-03-01T00:00:00Z"}
            if chance < 0.2:
                allowed[name]["until"] = "2026-03-06T00:00:00Z"
        elif chance < 0.75:
            allowed[name] = {"rung": rung, "since": "2026-03-05T00:00:00Z"}
        elif chance < 0.8:
            allowed[name] = {"rung": rung, "since": "2026-02-01T00:00:00Z", "until": "2026-03-01T00:00:00Z"}
    if not any(grant["since"] == "2026-03-01T00:00:00Z" for grant in allowed.values()):
        allowed["care"] = {"rung": "identified", "since": "2026-03-01T00:00:00Z"}
    return allowed


def consent(person: str, version: int, purposes: dict[str, Any]) -> bytes:
    """Return the value of a consent record."""
    return json.dumps({"subject": person, "version": version, "purposes": purposes}).encode()


def raw_headers(number: int) -> list[tuple[str, bytes | None]]:
    """Return headers as a careless client writes them."""
    return [] if number % 3 else [("trace", b"hidden-header"), ("celosia-consent", None)]
