"""Policies, consents and events to test with: ordinary ones, odd ones and junk.

A `Scenario` is a policy with a history of consents, some events and a clock; `run` sends the events through the
program, `predict` asks the oracle. Events are kept as Python values until they are written, so that tests can plant
things in them.
"""

import json
from dataclasses import dataclass, replace
from datetime import timedelta, timezone
from functools import lru_cache
from typing import Any, Protocol, TypeVar

from hypothesis import strategies as st

from streams.consent import Consents
from streams.event import RawEvent
from streams.keys import MasterKey
from streams.outcome import Outcome
from streams.pipeline import Place, process
from streams.plan import Plan, compile_plan
from streams.policy import parse_policy
from tests.model import Event, History, Prediction, predict, written

SECRET = bytes(range(32))
T = TypeVar("T")
NOW = 1_780_000_000_000
YEAR = 365 * 86_400_000

PEOPLE = ["ana", "ben", "7", "Zoë", "*"]
PURPOSES = ["ads", "personalization.recommendations", "service.orders", "shop-stock"]
ODD_PEOPLE = [7, 7.0, True, "", None, "x" * 256, "x" * 1024, "x" * 1025, "é" * 512, "é" * 513, 10**1023, 10**1024]
"""Subjects as an event may give them: Kafka's key is 7's digits, and so on; the limit is 1,024 bytes."""
KINDS = ["viewed", "bought", "Просмотр"]
PATHS = ["a", "b", "at", "e-mail", "naïve", "g.x", "g.y", "g.h.z", "item.id", "item.price", "seen.at", "id"]
CATEGORIES = ["user.behavior", "user.behavior.purchase_history", "user.contact.email", "system.operations"]


class Draw(Protocol):
    """Draws one example of a strategy."""

    def __call__(self, strategy: st.SearchStrategy[T], /) -> T: ...


@st.composite
def rarely(draw: Draw, one_in: int = 20) -> bool:
    """Draw True once in so many times. Hypothesis likes the ends of a range, so the lucky number is in the middle."""
    return bool(draw(st.integers(0, one_in - 1)) == one_in // 2)


# --- values -----------------------------------------------------------------------------------------------------------

times = st.one_of(
    st.integers(NOW - 3 * YEAR, NOW + YEAR),
    st.builds(
        lambda when, minutes: when.replace(tzinfo=timezone(timedelta(minutes=minutes))).isoformat(),
        st.datetimes(),
        st.integers(-14 * 60, 14 * 60),
    ),
    st.sampled_from(
        [
            "2026-03-01T09:59:59.999Z",
            "2025-12-31T23:30:00-02:00",
            "0001-01-01T00:00:00+14:00",
            "9999-12-31T23:59:59.999999Z",
            "9999-12-31T23:59:59-01:00",
            "2026-02-30T00:00:00Z",
            "2026-03-01T24:00:00Z",
            "2026-03-01 09:00:00Z",
            "2026-03-01T09:00:00",
            "2026-03-01T090000.000Z",
            "2026-W01-1T00:00:00Z",
            "2026-03-01T09:00:00,5Z",
            "\uff12026-03-01T09:00:00Z",
            -1,
            0,
            1 << 61,
            -(1 << 61),
            1 << 62,
        ]
    ),
)
numbers = st.one_of(
    st.integers(-200, 200),
    st.integers(-100_000, 100_000).map(lambda cents: cents / 100),
    st.sampled_from([(1 << 53) + 1, 1 << 63, 1 << 64, -(1 << 63) - 1, 10**300, 10**400, int("9" * 4300), 1e17, -0.0]),
)
addresses = st.one_of(
    st.ip_addresses().map(str),
    st.sampled_from(
        ["203.0.113.77", "::ffff:203.0.113.77", "2002:cb00:714d::1", "fe80::1%eth0", "1.2.3", "01.2.3.4", "1.2.3.4/8"]
    ),
)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_plain = st.text("abcdefghij0123456789", min_size=1, max_size=6)
urls = st.builds(
    "{}://{}{}{}/{}{}{}".format,
    st.sampled_from(["https", "http", "HTTPS", "ftp", "javascript"]),
    st.sampled_from(["", "ana@", "ana:secret@"]),
    st.sampled_from(["shop.example", "Shop.Example", "[2001:db8::1]", ""]),
    st.sampled_from(["", ":8443", ":0", ":", ":99999", ":port"]),
    _plain,
    st.sampled_from(["", "?utm_source=mail", "?q=gift+for+ana&utm_source=a%20b", "?utm_source", "?&&=", "?q=1&q=2"]),
    st.sampled_from(["", "#me"]),
)
scalars = st.one_of(times, numbers, addresses, words, urls, st.booleans())
anything = st.recursive(
    st.one_of(scalars, st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=6,
)


# --- policies ---------------------------------------------------------------------------------------------------------

FORMS = st.one_of(
    st.sampled_from(["keep", "pseudonym", "drop", "hour", "day", "month", "truncate_ip", "url", "pseudonym"]),
    st.sampled_from([1, 5, 10, 0.5, 0.25]).map(lambda step: {"round": step}),
    st.lists(st.integers(-50, 100), min_size=1, max_size=4, unique=True).map(lambda edges: {"bucket": sorted(edges)}),
    st.fixed_dictionaries({"v4": st.integers(0, 24), "v6": st.integers(0, 64)}).map(lambda bits: {"truncate_ip": bits}),
    st.just({"url": {"keep_query": ["utm_source"]}}),
)
LADDERS: list[list[Any]] = [
    [{"round": 10}, "keep"],
    [{"bucket": [0, 10, 50]}, "keep"],
    ["month", "day", "hour", "keep"],
    ["drop", "pseudonym"],
    ["url", {"url": {"keep_query": ["utm_source"]}}, "keep"],
    [{"truncate_ip": {"v4": 8}}, {"truncate_ip": {"v4": 16}}, {"truncate_ip": {"v4": 24}}, "keep"],
    ["drop", "keep"],
]
"""From coarse to fine; what each step gives can be computed from what any later one gives."""

RUNGS = ["anonymous", "pseudonymous", "identified"]
LADDER = ["crowd", *RUNGS]


@st.composite
def forms_by_rung(draw: Draw, *, monotone: bool, time: bool) -> Any:
    """Draw the `as` of a field. Monotone: a higher rung never tells less."""
    if draw(st.booleans()) and not time:
        return None
    rungs = sorted(draw(st.lists(st.sampled_from(LADDER), min_size=1, max_size=3, unique=True)), key=LADDER.index)
    if not monotone:
        return {rung: draw(FORMS) for rung in rungs}
    ladder = LADDERS[2] if time else draw(st.sampled_from(LADDERS))
    steps = sorted(draw(st.lists(st.integers(0, len(ladder) - 1), min_size=len(rungs), max_size=len(rungs))))
    return {rung: ladder[step] for rung, step in zip(rungs, steps, strict=True)}


@st.composite
def sources_of(draw: Draw, topic: str) -> dict[str, Any]:
    """Draw a source that reads a topic."""
    source: dict[str, Any] = {
        "topic": topic,
        "own": not draw(rarely(8)),
        "subject": draw(st.sampled_from(["subject", "who.id"])),
        "type": draw(st.sampled_from(["type", "meta.type"])),
    }
    if draw(st.booleans()):
        source |= {"time": "at", "id": "id"}
    if draw(st.booleans()):
        source["clock_skew"] = draw(st.sampled_from(["2s", "1h"]))
    if draw(rarely(6)):
        source["key"] = "other"
    return source


@st.composite
def policies(draw: Draw, *, monotone: bool = False) -> dict[str, Any]:
    """Draw a policy as the dict that its file holds."""
    purposes = {
        name: {
            "benefit": "Suggestions that fit what you looked at",
            "topic": f"out.{name}",
            "rung": draw(st.sampled_from(RUNGS)),
            "lifetime": draw(st.sampled_from(["1s", "36h", "30d", "999999d"])),
            "rotate": draw(st.sampled_from(["1s", "12h", "30d"])),
        }
        for name in draw(st.lists(st.sampled_from(PURPOSES), min_size=1, max_size=3, unique=True))
    }
    sources = {"web": draw(sources_of("raw"))}
    if draw(rarely(3)):
        sources["app"] = draw(sources_of("app"))
    # What is not our own dealing with a person may feed nothing that is about one.
    own = all(source["own"] for source in sources.values())
    categories = CATEGORIES if own else ["system.operations"]
    events = {}
    for kind in draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=2, unique=True)):
        fields: dict[str, Any] = {source["subject"]: {"is": "user.unique_id"} for source in sources.values()}
        for path in draw(st.lists(st.sampled_from(PATHS), min_size=1, max_size=6, unique=True)):
            rule: dict[str, Any] = {"is": draw(st.sampled_from(categories))}
            if draw(rarely(10)):
                rule["drop"] = "not needed"
            elif not draw(rarely(10)):
                some = st.lists(st.sampled_from(list(purposes)), min_size=1, unique=True)
                rule["for"] = draw(st.one_of(st.just("all"), some))
                forms = draw(forms_by_rung(monotone=monotone, time=monotone and path == "at"))
                if forms is not None:
                    rule["as"] = forms
            fields[path] = rule
        events[kind] = fields
    return {"policy": "test", "version": 3, "sources": sources, "purposes": purposes, "events": events}


# --- consents ---------------------------------------------------------------------------------------------------------

SINCE = [
    "2020-01-01T00:00:00Z",
    "2026-01-01T00:00:00.0005+02:00",
    "2026-05-01T00:00:00Z",
    "2026-04-30T23:59:59.9990000001Z",
    "2030-01-01T00:00:00Z",
]
UNTIL = [
    None,
    "2030-01-01T00:00:00Z",
    "2026-05-28T20:26:40Z",
    "2026-05-28T20:26:40.0009999999Z",
    "2026-04-01T00:00:00-01:00",
    "2021-01-01T00:00:00Z",
]
GRANTED = 1_777_593_600_000
"""2026-05-01T00:00:00Z, one of SINCE; as NOW is one of UNTIL."""
recent = st.one_of(
    st.integers(NOW - YEAR, NOW),
    st.builds(lambda skew, off: GRANTED + skew - off, st.sampled_from([0, 2_000, 3_600_000]), st.sampled_from([0, 1])),
    st.sampled_from([NOW - 1, NOW, NOW + 1]),
)
"""Times in ms at which events are recorded; some at the very edges of consents."""


def grants(rungs: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Draw what a person says about one purpose."""
    return st.fixed_dictionaries(
        {"rung": st.sampled_from(rungs), "since": st.sampled_from([*SINCE[:1] * 4, *SINCE])},
        optional={"until": st.sampled_from(UNTIL)},
    )


def readable_consents(person: str) -> st.SearchStrategy[dict[str, Any]]:
    """Draw a consent record that can be read."""
    generous = ["identified", "pseudonymous", "anonymous", "identified", "crowd", "nothing"]
    return st.fixed_dictionaries(
        {
            "subject": st.just(person),
            "version": st.integers(0, 4),
            "purposes": st.dictionaries(st.sampled_from([*PURPOSES, "unknown"]), grants(generous), min_size=2),
        }
    )


@st.composite
def broken_consents(draw: Draw, person: str) -> bytes | None:
    """Draw the value of a consent record that cannot be read."""
    record = draw(readable_consents(person))
    text = json.dumps(record)
    purpose = {"ads": {"rung": "identified", "since": SINCE[0]}}
    broken: list[bytes | None] = [
        None,
        b"",
        b"broken",
        text.encode()[:-1],
        b"\xef\xbb\xbf" + text.encode(),
        text.encode() + b"{}",
        b"[" * 100_000,
        json.dumps(record | {"subject": "eve"}).encode(),
        json.dumps(record | {"version": -1}).encode(),
        json.dumps(record | {"version": 1 << 63}).encode(),
        json.dumps(record | {"version": 1.0}).encode(),
        json.dumps(record | {"version": True}).encode(),
        json.dumps(record | {"purposes": []}).encode(),
        json.dumps(record | {"unknown": 1}).encode(),
        json.dumps({name: record[name] for name in ("subject", "purposes")}).encode(),
        json.dumps(record | {"purposes": {"ads": {"rung": "all", "since": SINCE[0]}}}).encode(),
        json.dumps(record | {"purposes": {"ads": {"rung": "identified"}}}).encode(),
        json.dumps(record | {"purposes": {"ads": purpose["ads"] | {"since": "2020-01-01T00:00:00"}}}).encode(),
        json.dumps(record | {"purposes": {"ads": purpose["ads"] | {"until": "soon"}}}).encode(),
        json.dumps(record | {"purposes": {"ads": purpose["ads"] | {"more": 1}}}).encode(),
        json.dumps(record | {"purposes": purpose}).replace('"rung"', '"rung": "nothing", "rung"').encode(),
        json.dumps(record | {"purposes": purpose}).replace('"rung"', '"run\\u0067": "nothing", "rung"').encode(),
        text.replace('"version"', '"version": 0, "version"').encode(),
    ]
    return draw(st.sampled_from(broken))


@st.composite
def histories(draw: Draw, *, readable: bool = False) -> History:
    """Draw the records of a consent partition, oldest first."""
    history: History = []
    for person in draw(st.lists(st.sampled_from(PEOPLE), max_size=6)):
        if readable or not draw(rarely(7)):
            history.append((person.encode(), json.dumps(draw(readable_consents(person))).encode()))
        else:
            history.append((person.encode(), draw(broken_consents(person))))
    if not readable and draw(rarely(40)):
        history.append(draw(st.sampled_from([(None, b"{}"), (b"\xff", None)])))
    return history


def generous(person: str, purposes: list[str], version: int = 9) -> tuple[bytes, bytes]:
    """Return the record of a person who allows everything since long ago."""
    grant = {"rung": "identified", "since": "0001-01-01T00:00:00Z"}
    record = {"subject": person, "version": version, "purposes": dict.fromkeys(purposes, grant)}
    return person.encode(), json.dumps(record).encode()


# --- events -----------------------------------------------------------------------------------------------------------


def put(document: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a path."""
    *groups, leaf = path.split(".")
    for group in groups:
        document = document.setdefault(group, {})
    document[leaf] = value


def write(document: Any) -> bytes:
    """Write a document as JSON in UTF-8."""
    return json.dumps(document, ensure_ascii=False).encode()


@st.composite
def documents(draw: Draw, policy: dict[str, Any], source: dict[str, Any]) -> dict[str, Any]:
    """Draw an event with the fields that a policy names, and some that it does not."""
    document: dict[str, Any] = {}
    people = ODD_PEOPLE if draw(rarely(10)) else PEOPLE
    put(document, source["subject"], draw(st.sampled_from(people)))
    kind = "unknown" if draw(rarely()) else draw(st.sampled_from(list(policy["events"])))
    put(document, source["type"], kind)
    if "time" in source:
        put(document, source["time"], draw(times if draw(rarely(10)) else st.one_of(recent, recent.map(written))))
    for path in policy["events"].get(kind, {}):
        if path not in (source["subject"], source.get("time")) and not draw(rarely(8)):
            put(document, path, draw(anything if draw(rarely(10)) else scalars))
    for name, value in draw(st.dictionaries(words, anything, max_size=2)).items():
        document.setdefault(name, value)
    if draw(rarely()):
        odd = [source["subject"], source["type"], source.get("time", "at"), "g", "who", "item"]
        put(document, draw(st.sampled_from([path for path in odd if "." not in path])), draw(anything))
    return document


@st.composite
def values(draw: Draw, policy: dict[str, Any], source: dict[str, Any]) -> bytes | None:
    """Draw the value of a raw record: mostly an event, sometimes a broken one, or junk."""
    event = write(draw(documents(policy, source)))
    if draw(rarely()):
        return draw(st.one_of(st.none(), st.binary(max_size=40), anything.map(write)))
    if draw(rarely()):
        return event[: draw(st.integers(0, len(event)))]
    if draw(rarely()):
        spot = draw(st.integers(0, len(event) - 1))
        return event[:spot] + draw(st.binary(min_size=1, max_size=2)) + event[spot + 1 :]
    if draw(rarely(10)):
        extra = draw(
            st.sampled_from(
                [
                    b'"subject":"eve"',
                    b'"typ\\u0065":"viewed"',
                    b'"id":1',
                    b'"g":null',
                    b'"g":3',
                    b'"a":1e999',
                    b'"zzz":1e999',
                    b'"zzz":' + b"9" * 5000,
                    b'"b":' + b"9" * 5000,
                    b'"zzz":"\\ud800"',
                    b'"zzz":NaN',
                    b'"zzz":' + b"[" * 128 + b"]" * 128,
                    b'"zzz":' + b"[" * 127 + b"]" * 127,
                    b'"zzz":{"type":1,"type":2}',
                    b'"a":-0',
                    b'"a":"\\ud83d\\ude00"',
                ]
            )
        )
        return b"{" + extra + b"," + event[1:] if draw(st.booleans()) else event[:-1] + b"," + extra + b"}"
    return event


@st.composite
def raw_events(draw: Draw, policy: dict[str, Any], *, whole: bool = False) -> Event:
    """Draw a raw record with its key and Kafka's timestamp. Whole: it can be read, and its key is its subject."""
    name = draw(st.sampled_from(list(policy["sources"])))
    source = policy["sources"][name]
    if whole:
        readable = write(draw(documents(policy, source)))
        return Event(readable, subject_of(readable, source["subject"]), draw(recent), name)
    value = draw(values(policy, source))
    key = subject_of(value, source["subject"])
    if draw(rarely()):
        key = draw(st.one_of(st.none(), st.binary(max_size=8)))
    timestamp = draw(st.sampled_from([-1, 0, NOW + YEAR]) if draw(rarely()) else recent)
    return Event(value, key, timestamp, name, keyed=not draw(rarely(10)))


def subject_of(value: bytes | None, path: str) -> bytes | None:
    """Return the key that a well-behaved producer gives an event."""
    try:
        subject = json.loads(value or b"")
        for step in path.split("."):
            subject = subject[step]
        return str(subject).encode()
    except (ValueError, TypeError, LookupError, RecursionError):
        return b"ana"


# --- scenarios --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _compile(text: str) -> Plan:
    return compile_plan(parse_policy(text.encode()), MasterKey(SECRET))


def compiled(policy: dict[str, Any]) -> Plan:
    """Compile a policy that is written as a dict. JSON is YAML."""
    return _compile(json.dumps(policy, ensure_ascii=False))


def folded(history: History) -> Consents:
    """Fold a history of consents."""
    consents = Consents()
    for key, value in history:
        consents.apply(key, value)
    return consents


@dataclass(frozen=True)
class Scenario:
    """A policy, what people said about it, events, and the time at which they are processed."""

    policy: dict[str, Any]
    history: History
    events: list[Event]
    now: int = NOW

    def run(self) -> list[Outcome]:
        """Send the events through the program."""
        plan, consents = compiled(self.policy), folded(self.history)
        return [
            process(record, self.place_of(event), consents, plan, self.now)
            for event, record in zip(self.events, self.records(), strict=True)
        ]

    def records(self) -> list[RawEvent]:
        """Return the events as records, at offsets from 0 on."""
        return [RawEvent(offset, event.timestamp, event.key, event.value) for offset, event in enumerate(self.events)]

    def place_of(self, event: Event) -> Place:
        """Return where an event is read: partition 1 of its source."""
        places = {source.name: source for source in compiled(self.policy).sources}
        return Place(places[event.source], 1, event.keyed)

    def place(self, *, keyed: bool = True) -> Place:
        """Return the place of the scenario's first source."""
        return Place(compiled(self.policy).sources[0], 1, keyed)

    def predict(self) -> list[Prediction]:
        """Ask the oracle."""
        return [predict(self._as_served(event.source), SECRET, event, self.history, self.now) for event in self.events]

    def _as_served(self, source: str) -> dict[str, Any]:
        """Return the policy as it reads for one source: of one that is not our own, no purpose is above anonymous."""
        if self.policy["sources"][source]["own"]:
            return self.policy
        purposes = {name: purpose | {"rung": "anonymous"} for name, purpose in self.policy["purposes"].items()}
        return self.policy | {"purposes": purposes}

    def but(self, **changes: Any) -> "Scenario":
        """Return the same scenario with something changed."""
        return replace(self, **changes)


@st.composite
def scenarios(draw: Draw, *, monotone: bool = False, readable: bool = False) -> Scenario:
    """Draw a scenario."""
    policy = draw(policies(monotone=monotone))
    history = draw(histories(readable=readable))
    for person in draw(st.lists(st.sampled_from(PEOPLE), min_size=2, unique=True)):
        history.append(generous(person, PURPOSES, draw(st.sampled_from([9, 9, 4, 3]))))
    events = draw(st.lists(raw_events(policy), min_size=1, max_size=4))
    now = draw(st.one_of(st.just(NOW), st.integers(NOW - YEAR, NOW + YEAR)))
    return Scenario(policy, history, events, now)


@st.composite
def promising(draw: Draw) -> Scenario:
    """Draw a scenario in which most events are published: everyone allows something, most of them everything."""
    policy = draw(policies())
    history: History = []
    for person in PEOPLE:
        if draw(rarely(4)):
            history.append((person.encode(), json.dumps(draw(readable_consents(person))).encode()))
        else:
            history.append(generous(person, PURPOSES, draw(st.integers(0, 1000))))
    events = draw(st.lists(raw_events(policy, whole=True), min_size=1, max_size=3))
    return Scenario(policy, history, events)
