"""The shop: real purchases scanned at several tills, and people who change what may be done with them.

Rules of this file:
- Pure: the time is passed in, and nothing is sent. The same calls give the same shop.
- Baskets come to the tills in the order of the sample and are scanned line by line; after the last, the first again.
- Each person changes their consent at most once, so what must hold after it can be said in one line.
"""

import gzip
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from streams.consent import ConsentRecord, GrantRecord, RungName
from streams.event import iso

__all__ = ["CREDIT", "Act", "Line", "People", "Rungs", "Tills"]

CREDIT = "Data: UCI Online Retail, Daqing Chen (2015), doi:10.24432/C5BW33, CC BY 4.0"

Rungs = Mapping[str, RungName]
"""Purposes, and the highest rung that somebody allows for each."""
_RECOMMENDATIONS, _ASSORTMENT, _ORDERS = "personalization.recommendations", "shop.assortment", "service.orders"
_EVERYTHING: Rungs = {_RECOMMENDATIONS: "pseudonymous", _ASSORTMENT: "anonymous", _ORDERS: "identified"}
_UNRECOGNIZED: Rungs = {_RECOMMENDATIONS: "anonymous", _ASSORTMENT: "anonymous"}
_SERVICE_ONLY: Rungs = {_ORDERS: "identified"}
_REFUSED: Rungs = {}
_CHOICES = (
    *(_EVERYTHING, _EVERYTHING, None, _UNRECOGNIZED, _EVERYTHING),
    *(_SERVICE_ONLY, _EVERYTHING, _REFUSED, _EVERYTHING, None),
)
"""What one customer after the other allows before the shop opens. None: nobody has asked them."""

_ENOUGH_LEFT = 8
"""Lines that must still be in the basket of somebody who changes their mind: events to follow what comes of it."""


class Line(NamedTuple):
    """One line of a basket, as the till sends it. A broken one is there to be quarantined."""

    person: str | None
    key: bytes | None
    value: bytes
    broken: bool = False


class Tills:
    """The tills of the shop, each scanning one basket after the other."""

    def __init__(self, count: int) -> None:
        self._queue = _baskets()
        self._tills = [next(self._queue) for _ in range(count)]
        self._scanned = 0

    def scan(self, now: int) -> Line:
        """Scan the next line, at the next till, as if it were bought now (ms)."""
        till = self._scanned % len(self._tills)
        self._scanned += 1
        if not self._tills[till]:
            self._tills[till] = next(self._queue)
        event = self._tills[till].pop(0) | {"occurred_at": iso(now)}
        person, value = event["customer"], orjson.dumps(event)
        if person is None:
            return Line(None, None, value)
        match self._scanned % 200:
            case 40:  # The till lost power in the middle of the line.
                return Line(person, person.encode(), value[: len(value) // 2], broken=True)
            case 140:  # The till has put its own name where the customer's belongs.
                return Line(person, b"till-%d" % till, value, broken=True)
        return Line(person, person.encode(), value)

    def left(self) -> dict[str, int]:
        """Return who stands at the tills, and how many lines of their baskets are still to be scanned."""
        return {basket[0]["customer"]: len(basket) for basket in self._tills if basket and basket[0]["customer"]}


@cache
def _sample() -> list[dict[str, Any]]:
    packed = Path(__file__).parents[1].joinpath("data", "online_retail_sample.ndjson.gz").read_bytes()
    return [orjson.loads(line) for line in gzip.decompress(packed).splitlines()]


def _baskets() -> Iterator[list[dict[str, Any]]]:
    """Yield the invoices of the sample, in order and for ever. No event id comes twice."""
    for lap in itertools.count():
        again = f"-{lap}" if lap else ""
        for _, basket in itertools.groupby(_sample(), key=lambda event: event["invoice"]):
            yield [event | {"event_id": event["event_id"] + again} for event in basket]


class Act(StrEnum):
    """What somebody does about their consent while the shop is open."""

    WITHDRAW = "withdraws"
    GRANT = "allows"
    LOWER = "lowers"
    WITHDRAW_ALL = "withdraws all"


@dataclass(slots=True)
class _Choice:
    rungs: Rungs | None
    since: int
    version: int = 0
    changed: bool = False


class People:
    """The customers, and what each allows at the moment."""

    def __init__(self, opening: int) -> None:
        names = dict.fromkeys(event["customer"] for event in _sample() if event["customer"])
        choices = itertools.cycle(_CHOICES)
        self._choices = {name: _Choice(next(choices), opening) for name in names}

    def asked(self) -> list[ConsentRecord]:
        """Return the first consent records of all who were asked before the shop opened."""
        return [self._next_record(name) for name, choice in self._choices.items() if choice.rungs is not None]

    def ready_for(self, act: Act, left: Mapping[str, int]) -> str | None:
        """Return who at the tills could do this: of those who have enough left in their baskets, the one with most."""
        wanted = None if act is Act.GRANT else _EVERYTHING
        able = [
            name
            for name, lines in left.items()
            if lines >= _ENOUGH_LEFT and not self._choices[name].changed and self._choices[name].rungs is wanted
        ]
        return max(able, key=lambda name: left[name], default=None)

    def change(self, person: str, act: Act, now: int) -> tuple[ConsentRecord, Rungs]:
        """Let a person do it: their next consent record, and what it allows for the purposes that it changes."""
        choice, allowed = self._choices[person], _EVERYTHING
        match act:
            case Act.WITHDRAW:
                allowed = {_RECOMMENDATIONS: "nothing"}
            case Act.WITHDRAW_ALL:
                allowed = dict.fromkeys(_EVERYTHING, "nothing")
            case Act.LOWER:
                allowed = {_RECOMMENDATIONS: "anonymous", _ORDERS: "pseudonymous"}
            case Act.GRANT:
                choice.since = now
        choice.rungs = {**(choice.rungs or {}), **allowed}
        choice.changed = True
        return self._next_record(person), allowed

    def _next_record(self, person: str) -> ConsentRecord:
        choice = self._choices[person]
        choice.version += 1
        since = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=choice.since)
        grants = {purpose: GrantRecord(rung, since) for purpose, rung in (choice.rungs or {}).items()}
        return ConsentRecord(person, choice.version, grants)
