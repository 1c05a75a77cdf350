"""The inputs 1-44 that the promises are tested with, in one table: what is sent, and what must become of it.

`CASES` are single events, each with the consent records that were written before it. `tests/test_inputs.py` sends all
of them through `process`, through a real lane on a broker in memory, and asks the oracle; `test_inputs_broker.py`
sends the same ones through Kafka. `BROKEN` and `OLD` are bytes on a broker's disk that are no records, or none of
today. What no single event can show has tests of its own, named by its number.

Each name begins with its number. A canary stands in every payload, key, header and consent that has room for it.
"""

import base64
import json
from collections.abc import Callable
from typing import Any, NamedTuple

from streams.consent import Consents
from streams.event import RawEvent
from streams.kafka.partitioner import partition_of
from streams.keys import MasterKey
from streams.pipeline import Place, process
from streams.plan import MAX_OUTPUT_BYTES, compile_plan
from streams.policy import parse_policy
from tests.kafka.batches import Entry, batch_of, gzipped, legacy_of, sealed, turned_over, with_codec, with_magic
from tests.strategies import NOW

CANARY = "canary7f3a"
PARTITIONS = 4
LIMIT = 12 << 20
"""max.message.bytes of the raw topic, wherever these inputs are sent to a broker"""
BROKER_ONLY = {19, 20, 44}
"""numbers that the core and a broker in memory cannot show: a client meets them before there is a record"""


def policy(prefix: str = "") -> dict[str, Any]:
    """Return the policy of all cases, with all its topics behind a prefix."""
    return {
        "policy": "shop",
        "version": 1,
        "topics": {use: f"{prefix}shop.{use}" for use in ("consents", "receipts", "quarantine")},
        "sources": {
            "web": {
                "topic": f"{prefix}shop.raw",
                "own": True,
                "subject": "user_id",
                "type": "type",
                "time": "at",
                "id": "id",
            }
        },
        "purposes": {
            "ads": {
                "benefit": "Suggestions that fit what you looked at",
                "topic": f"{prefix}shop.ads",
                "rung": "pseudonymous",
                "rotate": "30d",
                # Outputs are as old as their events: no broker may take them away during a test.
                "lifetime": "36500d",
            }
        },
        "events": {
            "viewed": {
                "user_id": {"is": "user.unique_id"},
                "product": {"is": "user.behavior", "for": "all"},
                "price": {"is": "user.behavior", "for": "all", "as": {"pseudonymous": {"round": 10}}},
                "page.url": {"is": "user.behavior", "for": "all", "as": {"pseudonymous": "url"}},
                "email": {"is": "user.contact.email", "drop": "not needed"},
                "at": {"is": "user.behavior", "for": "all", "as": {"pseudonymous": "hour"}},
            }
        },
    }


SUBJECT = "ana-" + CANARY
KEY = SUBJECT.encode()
BASE = {"user_id": SUBJECT, "type": "viewed", "at": "2026-05-01T10:20:30Z", "id": f"id-{CANARY}", "product": "lamp"}
KEPT = {"product": "lamp", "at": "2026-05-01T10:00:00Z"}


# --- the table's rows -------------------------------------------------------------------------------------------------


class Said(NamedTuple):
    """One record on the consent topic. `away`: so many partitions from where its key belongs."""

    value: bytes | None
    key: bytes | None
    away: int = 0
    transaction: str = ""
    """`committed` or `aborted`: written by a producer that is not ours"""


class Case(NamedTuple):
    """One event, and what must become of it: the reason, or the fields that are published."""

    name: str
    value: bytes | None
    expected: str | dict[str, Any]
    key: bytes | None = KEY
    headers: tuple[tuple[str, bytes | None], ...] = ()
    timestamp: int = NOW
    away: int = 0
    """so many partitions from where the key belongs"""
    said: tuple[Said, ...] = ()
    """what was written to the consent topic before"""
    refused: bool = False
    """Kafka does not take it: the event, or what was said"""
    codec: str = "none"
    """how a producer compresses it"""
    blocks: bool = False
    """what was said denies everyone on the partition"""

    @property
    def number(self) -> int:
        """Its number in the list of promises."""
        return int(self.name.split()[0])

    @property
    def partition(self) -> int:
        """Where the event is written."""
        return place_of(self.key, self.away)


def place_of(key: bytes | None, away: int = 0) -> int:
    """Return the partition of a key, or one so many further on; records without a key go where Ana's do."""
    return (partition_of(KEY if key is None else key, PARTITIONS) + away) % PARTITIONS


NEIGHBOURS = {
    number: next(name for name in (f"neighbour-{n}" for n in range(99)) if place_of(name.encode()) == number)
    for number in range(PARTITIONS)
}
"""Somebody on each partition, whose next event shows that all goes on."""


def flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the fields of an output by path, without the stamp."""
    fields: dict[str, Any] = {}
    for name, below in value.items():
        if name != "_celosia":
            fields |= flat(below, f"{prefix}{name}.") if isinstance(below, dict) else {prefix + name: below}
    return fields


def event(**changes: Any) -> bytes:
    """Write the ordinary event with some members changed; `...` takes one away."""
    members = {name: value for name, value in {**BASE, **changes}.items() if value is not ...}
    return json.dumps(members, ensure_ascii=False).encode()


def ending(text: str | bytes) -> bytes:
    """Write the ordinary event with more members, given as they stand in JSON."""
    return event()[:-1] + b"," + (text.encode() if isinstance(text, str) else text) + b"}"


def starting(text: str) -> bytes:
    """The same, in front."""
    return b"{" + text.encode() + b"," + event()[1:]


def nested(depth: int) -> bytes:
    """Write the event with an array of this depth in it: the document is one deeper."""
    return ending(b'"deep":' + b"[" * depth + b"]" * depth)


def said(version: int, purposes: str = "", subject: str = "@") -> bytes:
    """Write a consent record; `@` stands for the case's own subject."""
    return f'{{"subject":"{subject}","version":{version},"purposes":{{{purposes or GRANT}}}}}'.encode()


def granted(subject: str, version: int = 1) -> Said:
    """Return the record of somebody who allows everything since long ago."""
    return Said(said(version, subject=subject), subject.encode())


def after(name: str, expected: str | None, *values: bytes | Said | None, **more: Any) -> Case:
    """Return the ordinary event of somebody of whom the consent topic says this. None: it is published."""
    who = f"{name.translate(_PLAIN)}-{CANARY}"
    records = [value if isinstance(value, Said) else Said(value, b"@") for value in values]
    filled = [record._replace(value=_fill(record.value, who), key=_fill(record.key, who)) for record in records]
    return Case(name, event(user_id=who), expected or KEPT, who.encode(), said=tuple(filled), **more)


_PLAIN = str.maketrans(dict.fromkeys(" ,:'^", "-"))


def _fill(text: bytes | None, who: str) -> bytes | None:
    return None if text is None else text.replace(b"@", who.encode())


GRANT = '"ads":{"rung":"pseudonymous","since":"2020-01-01T00:00:00Z"}'
UNHEARD = ',"unheard.of":{"rung":"identified","since":"2020-01-01T00:00:00Z"}'
NOTHING = '"ads":{"rung":"nothing","since":"2020-01-01T00:00:00Z"}'
EVERYWHERE = {
    "nested": {"copy": {"email": CANARY}},
    "note": f"call me: {CANARY}",
    "page": {"url": f"https://{CANARY}:{CANARY}@shop.example/p/7?email={CANARY}#{CANARY}", "title": CANARY},
    "json": json.dumps({"email": CANARY}),
    "base64": base64.b64encode(CANARY.encode()).decode(),
    "list": [CANARY, {"email": CANARY}],
    CANARY: 1,
    "map": {CANARY: {CANARY: CANARY}},
}
CODECS = ("gzip", "snappy", "lz4", "zstd")
CYRILLIC, FULL_WIDTH = "us\u0435r_id", "\uff56\uff49ewed"
WHOLE = "\u202e\u200b\x1b[31m\r\n\x00\x7f"
TWICE = (("a", None), ("a", None), (CANARY, CANARY.encode()), (CANARY, b""))
CAT, EVE, NUMBER = f"cat-{CANARY}", f"eve-{CANARY}", str(2**64)


# --- 1-10: values, keys, bytes ----------------------------------------------------------------------------------------

BYTES = [
    Case("1 empty value", b"", "no_value"),
    Case("2 null value", None, "no_value"),
    Case("3 null key", event(), "key_is_not_subject", key=None),
    Case("4 empty key", event(), "key_is_not_subject", key=b""),
    Case("5 key of somebody else", event(), "key_is_not_subject", key=b"ben-" + CANARY.encode()),
    Case("5 key with a space more", event(), "key_is_not_subject", key=KEY + b" "),
    Case("6 key of 1 MiB", event(), "key_is_not_subject", key=CANARY.encode() * 104_858),
    Case("6 subject of 1 MiB", event(user_id="x" * (1 << 20)), "bad_subject", key=b"x" * (1 << 20)),
    Case("6 subject of 1,024 bytes", event(user_id="é" * 512), "no_consent", key="é".encode() * 512),
    Case("6 subject of 1,025 bytes", event(user_id="é" * 512 + "x"), "bad_subject", key="é".encode() * 512 + b"x"),
    Case("7 key of invalid UTF-8", event(), "key_is_not_subject", key=b"\xff\xfe" + CANARY.encode()),
    Case("8 invalid UTF-8 in a field", event(product="\u00ff").replace("ÿ".encode(), b"\xff"), "malformed"),
    Case("8 invalid UTF-8 where nobody looks", ending(b'"z":"\xff"'), "malformed"),
    Case("8 invalid UTF-8 in a name", ending(b'"\xff":1'), "malformed"),
    Case("8 invalid UTF-8 in the first name", b'{"\x80ubject": 1, "type": "viewed"}', "malformed"),
    Case("8 a surrogate written as UTF-8", ending(b'"z":"\xed\xa0\x80"'), "malformed"),
    Case("8 UTF-16", event().decode().encode("utf-16"), "malformed"),
    Case("9 overlong UTF-8", ending(b'"z":"\xc0\xaf"'), "malformed"),
    Case("10 byte order mark", b"\xef\xbb\xbf" + event(), "malformed"),
]


# --- 11-18: documents -------------------------------------------------------------------------------------------------

DOCUMENTS = [
    *(Case(f"11 cut at byte {cut}", event()[:cut], "malformed" if cut else "no_value") for cut in range(len(event()))),
    Case("12 trailing garbage", event() + b"x", "malformed"),
    Case("12 two documents", event() + event(), "malformed"),
    Case("12 two lines", event() + b"\n" + event(), "malformed"),
    Case("12 white space around", b" \r\n\t" + event() + b"\n", KEPT),
    Case("12 form feed before", b"\f" + event(), "malformed"),
    Case("13 subject twice", starting('"user_id":"ben"'), "duplicate_name"),
    Case("13 the same subject twice", starting(f'"user_id":"{SUBJECT}"'), "duplicate_name"),
    Case("13 subject twice, escaped", starting('"user\\u005fid":"ben"'), "duplicate_name"),
    Case("13 subject twice, one letter escaped", ending('"\\u0075ser_id":"ben"'), "duplicate_name"),
    Case(
        "13 both escaped", ending('"\\u0075ser_id":"ben"').replace(b'"user_id"', b'"user_i\\u0064"'), "duplicate_name"
    ),
    Case("13 only one, and escaped", event().replace(b'"user_id"', b'"user\\u005Fid"'), KEPT),
    Case("13 type twice", ending('"type":"bought"'), "duplicate_name"),
    Case("13 type twice somewhere inside", ending('"z":[{"type":1,"type":2}]'), "duplicate_name"),
    Case("13 type once here, once there", ending('"z":{"type":1}'), KEPT),
    Case("13 type as a value", ending('"z":["type","type","user_id"]'), KEPT),
    Case("13 a field twice: the last", ending('"product":"chair"'), {**KEPT, "product": "chair"}),
    Case("13 time twice: the last", ending('"at":"2026-05-02T00:00:00Z"'), {**KEPT, "at": "2026-05-02T00:00:00Z"}),
    Case("13 the sensitive name twice", ending(f'"email":"{CANARY}","email":"{CANARY}"'), KEPT),
    Case(
        "13 a nested name twice",
        ending('"page":{"url":"https://a/","url":"https://b/"}'),
        {**KEPT, "page.url": "https://b/"},
    ),
    Case("14 NaN", ending('"price":NaN'), "malformed"),
    Case("14 NaN where nobody looks", ending('"z":NaN'), "malformed"),
    Case("14 Infinity", ending('"price":-Infinity'), "malformed"),
    Case("14 1e999 in a field", ending('"price":1e999'), "malformed"),
    Case("14 1e999 where nobody looks", ending('"z":1e999'), KEPT),
    Case("14 -0", ending('"price":-0'), {**KEPT, "price": 0}),
    Case("14 -0.0 as it is", ending('"product":-0.0'), {**KEPT, "product": -0.0}),
    Case("14 1e17", ending('"price":1e17'), {**KEPT, "price": 10**17}),
    Case("15 2^53+1 as it is", event(product=2**53 + 1), {**KEPT, "product": 2**53 + 1}),
    Case("15 2^53+1 rounded", event(price=2**53 + 1), {**KEPT, "price": 9007199254740990}),
    Case("15 2^63 rounded", event(price=2**63), {**KEPT, "price": 9223372036854775810}),
    Case("15 2^64 rounded", event(price=2**64), {**KEPT, "price": 18446744073709551620}),
    Case("15 2^64 as it is", event(product=2**64), {**KEPT, "product": 2**64}),
    Case("15 2^64 as the subject", event(user_id=2**64), KEPT, NUMBER.encode(), said=(granted(NUMBER),)),
    Case("15 2^64 as the time", event(at=2**64), "bad_time"),
    Case("15 5,000 digits in a field", ending(b'"price":' + b"9" * 5000), "malformed"),
    Case("15 5,000 digits where nobody looks", ending(b'"z":' + b"9" * 5000), KEPT),
    Case("15 4,300 digits rounded", ending(b'"price":' + b"9" * 4300), KEPT),
    Case("15 4,300 digits as it is", ending(b'"product":' + b"9" * 4300), {**KEPT, "product": int("9" * 4300)}),
    Case("15 5,000 digits and type twice", ending(b'"type":"x","z":' + b"9" * 5000), "duplicate_name"),
    Case("16 depth 128", nested(127), KEPT),
    Case("16 depth 129", nested(128), "too_deep"),
    # Shallow enough for the parser when called from here, too deep for it when called from further down.
    Case("16 depth 800", nested(800), "too_deep"),
    Case("16 depth 1,000", nested(1_000), "too_deep"),
    Case("16 depth 100,000", nested(100_000), "too_deep"),
    Case("16 100,000 opened and none closed", b"[" * 100_000, "too_deep"),
    Case("16 objects 1,000 deep", b'{"a":' * 1000 + b"1" + b"}" * 1000, "too_deep"),
    Case("16 brackets in a string", ending(b'"z":"' + b'[{\\"' * 1000 + b'"'), KEPT),
    Case("16 1,000 brackets side by side", ending(b'"z":[' + b"[]," * 1000 + b"[]]"), KEPT),
    Case("16 an endless string of quotes", b'{"z":"' + b'\\"[' * 300_000, "malformed"),
    Case("17 200,000 names", ending(b",".join(b'"%s%d":1' % (CANARY.encode(), n) for n in range(200_000))), KEPT),
    Case("18 a string of 10 MiB where nobody looks", ending(b'"z":"' + b"x" * (10 << 20) + b'"'), KEPT),
    Case("18 a string of 10 MiB in a field", event(product="x" * (10 << 20)), "too_large"),
    Case("18 just below the limit", ending(b'"z":"' + b"x" * (LIMIT - 500) + b'"'), KEPT),
    Case("18 just above the limit", ending(b'"z":"' + b"x" * LIMIT + b'"'), KEPT, refused=True),
]


# --- 21-30: texts, names, shapes, headers, times ----------------------------------------------------------------------

CONTENTS = [
    Case("21 lone surrogate", ending('"product":"\\ud800"'), "malformed"),
    Case("21 lone surrogate where nobody looks", ending('"z":"\\udfff"'), "malformed"),
    Case("21 surrogates the wrong way round", ending('"product":"\\udc00\\ud800"'), "malformed"),
    Case("21 a pair of surrogates", ending('"product":"\\ud83d\\ude00"'), {**KEPT, "product": "😀"}),
    Case("21 control characters, escaped", event(product=WHOLE), {**KEPT, "product": WHOLE}),
    Case("21 control characters, raw", ending(b'"product":"\x1b[31m"'), "malformed"),
    Case("21 NUL, raw", ending(b'"product":"\x00"'), "malformed"),
    Case("21 NUL in the subject", event(user_id="ana\x00"), "no_consent", key=b"ana\x00"),
    Case("21 NUL in the type", event(type="viewed\x00"), "event_not_named"),
    Case("22 a Cyrillic letter in the subject's name", event(**{CYRILLIC: SUBJECT, "user_id": ...}), "no_subject"),
    Case("22 another user_id beside", event(**{CYRILLIC: "ben"}), KEPT),
    Case("22 NFC and NFD", event(user_id="Zoe\u0308"), "key_is_not_subject", key="Zo\u00eb".encode()),
    Case("22 Type instead of type", event(Type="viewed", type=...), "bad_type"),
    Case("22 EMAIL, Product", event(EMAIL=CANARY, Product=CANARY), KEPT),
    Case("22 Viewed instead of viewed", event(type="Viewed"), "event_not_named"),
    Case("22 full-width type", event(type=FULL_WIDTH), "event_not_named"),
    Case("23 __proto__", event(__proto__={"product": CANARY}, __class__=CANARY, __dict__={}), KEPT),
    Case("23 $ref", event(product={"$ref": "#/email"}, email=CANARY), {"at": KEPT["at"]}),
    Case("23 a dotted name", event(**{"page.url": f"https://{CANARY}/"}), KEPT),
    Case("23 a trailing space", event(**{"product ": CANARY, " product": CANARY}), KEPT),
    Case("23 f0, msgspec's own names", event(f0=CANARY, f1={"f0": CANARY}), KEPT),
    Case("23 the stamp's own name", event(_celosia={"subject": CANARY, "rung": "identified"}), KEPT),
    Case("24 where nobody looks", event(**EVERYWHERE), {**KEPT, "page.url": "https://shop.example/p/7"}),
    Case("24 in place of a value", event(product={"email": CANARY}, price=[CANARY]), {"at": KEPT["at"]}),
    Case("25 a new field", event(loyalty_number=CANARY), KEPT),
    Case("25 a new event type", event(type=f"reviewed-{CANARY}", email=CANARY), "event_not_named"),
    Case("26 wrong type in a sensitive field", event(email={"a": [CANARY]}), KEPT),
    Case("26 wrong type in a named field", event(price=CANARY, product=None), {"at": KEPT["at"]}),
    Case("26 true for a number", event(price=True), KEPT),
    Case("26 a text for a group", event(page=CANARY), "wrong_shape"),
    Case("26 an array for a group", event(page=[{"url": CANARY}]), "wrong_shape"),
    Case("26 null for a group", event(page=None), KEPT),
    Case("26 a wrong group and broken after it", event(page=1)[:-1], "malformed"),
    *(
        Case(f"27 top level {text}", text.encode(), "not_an_object")
        for text in ("[]", f'"{CANARY}"', "1", "true", "null", "-0")
    ),
    Case("27 an array of events", b"[%s,%s]" % (event(), event()), "not_an_object"),
    Case("28 no subject", event(user_id=...), "no_subject"),
    Case("28 no subject, and no key", event(user_id=...), "no_subject", key=None),
    Case("28 null subject", event(user_id=None), "no_subject"),
    Case("28 empty subject", event(user_id=""), "bad_subject", key=b""),
    *(
        Case(f"28 subject {value!r}", event(user_id=value), "bad_subject")
        for value in (True, 1.5, [CANARY, "ben"], {CANARY: "ana"})
    ),
    Case("28 a number as the subject", event(user_id=7), "no_consent", key=b"7"),
    Case("29 personal headers", event(), KEPT, headers=(("email", CANARY.encode()), (CANARY, CANARY.encode()))),
    Case("29 duplicate and null headers", event(), KEPT, headers=TWICE),
    Case("29 a header without a name", event(), KEPT, headers=(("", CANARY.encode()),)),
    Case("29 headers of ours", event(), KEPT, headers=(("celosia-rung", b"identified"), ("celosia-origin", b"x"))),
    Case("29 10,000 headers", event(), KEPT, headers=tuple((f"{CANARY}{n}", b"") for n in range(10_000))),
    Case("30 Kafka's time missing", event(), "recorded_before_consent", timestamp=-1),
    Case("30 Kafka's time 0", event(), "recorded_before_consent", timestamp=0),
    Case("30 Kafka's time far in the future", event(), KEPT, timestamp=1 << 62),
    Case("30 time missing", event(at=...), "bad_time"),
    Case("30 time null", event(at=None), "bad_time"),
    Case("30 time negative", event(at=-1), "recorded_before_consent"),
    Case("30 time 0", event(at=0), "recorded_before_consent"),
    Case("30 time at the edge of the calendar", event(at="0001-01-01T00:00:00+14:00"), "recorded_before_consent"),
    Case("30 time far in the future", event(at=(1 << 62) - 1), {"product": "lamp"}),
    Case("30 time in the year 9999", event(at="9999-12-31T23:59:59.999Z"), {**KEPT, "at": "9999-12-31T23:00:00Z"}),
    *(
        Case(f"30 time {text!r}", event(at=text), "bad_time")
        for text in (
            "",
            f"yesterday-{CANARY}",
            "2026-05-01",
            "2026-05-01T10:20:30",
            "2026-05-01 10:20:30Z",
            "2026-05-01T10:20:30,5Z",
            "2026-05-01T102030.000Z",
            "2026-W18-5T10:20:30Z",
            "2026-05-01T10:20:30+02",
            "2026-05-01T10:20:30+02:00:30",
            "2026-13-01T10:20:30Z",
            "2026-05-01T24:00:00Z",
            "2026-05-01T10:20:60Z",
            "\uff12026-05-01T10:20:30Z",
            "2026-05-01T10:20:30Z\n",
            1.5,
            True,
        )
    ),
]


# --- 31-39: consents --------------------------------------------------------------------------------------------------

_MISPLACED = f"misplaced-{CANARY}"

CONSENTS = [
    after("31 a plain grant", None, said(1)),
    after("31 nothing was ever said", "no_consent"),
    after("31 unknown purpose beside", None, said(1, GRANT + UNHEARD)),
    after("31 unknown purpose only", "not_allowed", said(1, GRANT.replace("ads", "unheard.of"))),
    after("31 unknown rung", "consent_unreadable", said(1, GRANT.replace("pseudonymous", "everything"))),
    after("31 rung in capitals", "consent_unreadable", said(1, GRANT.replace("pseudonymous", "PSEUDONYMOUS"))),
    after("31 rung below the policy's", "rung_too_low", said(1, GRANT.replace("pseudonymous", "crowd"))),
    after("31 missing version", "consent_unreadable", said(1).replace(b'"version":1,', b"")),
    after("31 version as text", "consent_unreadable", said(1).replace(b'"version":1', b'"version":"1"')),
    after("31 version 2^63", "consent_unreadable", said(1 << 63)),
    after("31 version going back", "not_allowed", said(2, NOTHING), said(1)),
    after("31 the same version, withdrawn", "not_allowed", said(1), said(1, NOTHING)),
    after("31 the same version, granted", "not_allowed", said(1, NOTHING), said(1)),
    after("31 a field that nobody knows", "consent_unreadable", said(1).replace(b'"vers', b'"limit":1,"vers')),
    after("31 since without an offset", "consent_unreadable", said(1).replace(b"00Z", b"00")),
    after("31 rung given twice", "consent_unreadable", said(1, GRANT.replace('"rung"', '"rung":"nothing","rung"'))),
    after("32 undecodable withdrawal of a grant", "consent_unreadable", said(1), b'{"subject":"@"'),
    after("32 withdrawal of invalid UTF-8", "consent_unreadable", said(1), b"\xff@"),
    after("32 and the grant is delivered again", "consent_unreadable", said(1), b'{"subject":', said(1)),
    after("32 and a higher version arrives", None, said(1), b'{"subject":', said(2)),
    after("32 somebody else's name in the record", "consent_unreadable", said(1), said(2, subject=EVE)),
    after("32 a withdrawal nested 50,000 deep", "consent_unreadable", said(1), b'{"subject":' * 50_000),
    after("33 tombstone of a grant", "consent_unreadable", said(1), None),
    after("33 tombstone alone", "consent_unreadable", None),
    after("33 tombstone, and the grant again", "consent_unreadable", said(1), None, said(1)),
    after("33 empty value", "consent_unreadable", said(1), b""),
    after("34 expired", "expired", said(1, GRANT[:-1] + ',"until":"2021-01-01T00:00:00Z"}')),
    after("34 runs out before it begins", "expired", said(1, GRANT[:-1] + ',"until":"2019-01-01T00:00:00Z"}')),
    # Signatures are no part of this version: a record that has one is one that cannot be kept to, so it denies.
    after("34 a signature", "consent_unreadable", said(1).replace(b'"vers', b'"signature":"@","vers')),
    after("34 signed with a key nobody knows", "consent_unreadable", said(1).replace(b'"vers', b'"key":"@","vers')),
    after("35 an old grant replayed after the withdrawal", "not_allowed", said(1), said(2, NOTHING), said(1)),
    after("35 and replayed as it was, twice", "not_allowed", said(5), said(6, NOTHING), said(5), said(5)),
    after("36 consent in the wrong partition", "no_consent", Said(said(1), b"@", away=1)),
    Case(
        "36 and the event beside it",
        event(user_id=_MISPLACED),
        "consent_unreadable",
        _MISPLACED.encode(),
        away=1,
        said=(granted(_MISPLACED)._replace(away=1),),
    ),
    after("36 consent in the right one too", None, Said(said(1), b"@", away=1), said(1)),
    Case("36 an event in the wrong partition", event(user_id=CAT), "wrong_partition", CAT.encode(), away=1),
    Case("37 the wildcard is a name", event(user_id="*"), KEPT, b"*", said=(granted("*"),)),
    Case("37 and it speaks for nobody else", event(user_id=EVE), "no_consent", EVE.encode()),
    Case("37 nor does the empty subject", event(user_id=""), "bad_subject", b"", said=(Said(said(1), b""),)),
    after("38 grant and withdrawal in one batch", "not_allowed", said(1), said(2, NOTHING)),
    after("38 in the other order", "not_allowed", said(2, NOTHING), said(1)),
    after("38 withdrawn and granted again", None, said(1), said(2, NOTHING), said(3)),
    after("39 a grant that was aborted", "no_consent", Said(said(1), b"@", transaction="aborted")),
    after("39 a withdrawal that was aborted", None, said(1), Said(said(2, NOTHING), b"@", transaction="aborted")),
    after("39 a withdrawal in a transaction", "not_allowed", said(1), Said(said(2, NOTHING), b"@", 0, "committed")),
]


def blocking(name: str, partition: int, key: bytes | None, **more: Any) -> Case:
    """Return the event of somebody on this partition, after a grant and a record there whose key is none."""
    who = next(who for who in (f"{CANARY}-{n}" for n in range(99)) if place_of(who.encode()) == partition)
    unreadable = Said(said(1, subject=who), key, away=(partition - place_of(key)) % PARTITIONS)
    records = (granted(who), unreadable)
    return Case(name, event(user_id=who), "partition_blocked", who.encode(), said=records, blocks=True, **more)


BLOCKING = [
    blocking("37 a consent key of invalid UTF-8", 0, b"\xff"),
    blocking("37 a consent key of overlong UTF-8", 1, b"\xc0\xaf"),
    # A compacted topic takes no record without a key.
    blocking("37 no consent key", 2, None, refused=True),
]
"""Records whose key cannot be read may be anyone's withdrawal: they deny a whole partition, here one for each."""


# --- 40-43: growth and repetition; 41 and 42 have tests of their own --------------------------------------------------


def grown(more: int) -> tuple[bytes, dict[str, Any]]:
    """Return the event whose output is so many bytes over the limit, and its fields."""
    plan, known = compile_plan(parse_policy(json.dumps(policy()).encode()), MasterKey(bytes(32))), Consents()
    known.apply(KEY, SHARED[0].value)
    shortest = process(RawEvent(0, NOW, KEY, event(product="")), Place(plan.sources[0], 0), known, plan, NOW)
    product = "x" * (MAX_OUTPUT_BYTES - len(shortest.outputs[0].value) + more)
    return event(product=product), {**KEPT, "product": product}


SHARED = (granted(SUBJECT),)
"""what was said before all cases: Ana allows it"""

REST = [
    Case("40 grows to the limit", *grown(0)),
    Case("40 grows one byte over the limit", grown(1)[0], "too_large"),
    # One byte that is written as six: the limit counts what is published.
    Case("40 grows in writing", event(product="\x01" * (MAX_OUTPUT_BYTES // 5)), "too_large"),
    Case("40 far over the limit", event(product="x" * MAX_OUTPUT_BYTES), "too_large"),
    Case("43 the same event", event(product="twice"), {**KEPT, "product": "twice"}),
    Case("43 the same event again", event(product="twice"), {**KEPT, "product": "twice"}),
]

COMPRESSED = [
    *(Case(f"19 compressed with {codec}", event(), KEPT, codec=codec) for codec in CODECS),
    *(
        Case(f"19 11 MiB in little {codec}", ending(b'"z":"' + b"x" * (11 << 20) + b'"'), KEPT, codec=codec)
        for codec in CODECS
    ),
]
"""Only clients and brokers see how records are compressed."""

CASES = [*BYTES, *DOCUMENTS, *CONTENTS, *CONSENTS, *REST]
"""All cases that can stand side by side in one topic."""


# --- 19, 20, 29, 44: what stands on the broker's disk -----------------------------------------------------------------


class Broken(NamedTuple):
    """A batch of two events, put onto the broker's disk in place of a good one between two others.

    `make` gets the good batch, its events and the offset of the first. `expected`: `unreadable` is one quarantine
    record for the range; anything else is what becomes of each of the two events.
    """

    name: str
    make: Callable[[bytes, list[Entry], int], bytes]
    expected: str | dict[str, Any] = "unreadable"


def _zeros(batch: bytes, _entries: list[Entry], _first: int) -> bytes:
    return with_codec(batch, 1, lambda _records: gzipped(bytes(100 << 20)))


def _bomb(_batch: bytes, entries: list[Entry], first: int) -> bytes:
    """Return a batch with an event of 100 MiB, compressed to a thousandth of it."""
    value = (entries[0].value or b"")[:-1] + b',"z":"' + b"x" * (100 << 20) + b'"}'
    return with_codec(batch_of([entries[0]._replace(value=value), entries[1]], first), 1, gzipped)


def _bad_header(_batch: bytes, entries: list[Entry], first: int) -> bytes:
    entries = [entries[0]._replace(headers=[(CANARY, b"")]), entries[1]]
    return sealed(batch_of(entries, first).replace(CANARY.encode() + b"\0", CANARY[:-1].encode() + b"\xff\0"))


BROKEN = [
    Broken("19 unknown codec 5", lambda batch, _entries, _first: with_codec(batch, 5)),
    Broken("19 unknown codec 7", lambda batch, _entries, _first: with_codec(batch, 7)),
    Broken("19 gzip that is none", lambda batch, _entries, _first: with_codec(batch, 1)),
    Broken("19 zstd that is none", lambda batch, _entries, _first: with_codec(batch, 4)),
    Broken("19 100 MiB of zeros in 100 KiB", _zeros),
    Broken("19 an event of 100 MiB in 100 KiB", _bomb, KEPT),
    Broken("20 a bit turned over in a record", lambda batch, _entries, _first: turned_over(batch, -3)),
    Broken("20 a bit turned over in the checksum", lambda batch, _entries, _first: turned_over(batch, 18)),
    Broken("20 a bit turned over in the attributes", lambda batch, _entries, _first: turned_over(batch, 22)),
    Broken("20 2^31-1 records", lambda batch, _e, _f: sealed(batch[:57] + b"\x7f\xff\xff\xff" + batch[61:])),
    Broken("29 a header name of invalid UTF-8", _bad_header),
    # The checksum does not cover the version, and all the rest is as it should be.
    Broken("44 magic 3", lambda batch, _entries, _first: with_magic(batch, 3), KEPT),
]
OLD = [
    # Version 0 knows no times, and what has no time was recorded before every consent.
    Broken("44 magic 0", lambda _batch, entries, first: legacy_of(entries, 0, first), "recorded_before_consent"),
    Broken("44 magic 1", lambda _batch, entries, first: legacy_of(entries, 1, first), KEPT),
    Broken("44 magic 1, gzip", lambda _batch, entries, first: legacy_of(entries, 1, first, codec=1), KEPT),
]
"""Records as brokers before 0.11 wrote them: one of today takes none, and still hands out those on its disk."""
