"""The inputs that the promises are tested with, by their numbers in the list of promises (1-38, 40-43).

Each row of `CASES` is one raw record and what must become of it. Every one of them is also checked for what holds of
all: one outcome, no exception, the same outcome when it is processed again (by callers however deep), nothing of the
person in what is not published. Consents have their own table below; inputs that need a broker (19, 20, 36, 39, 44) are
tested with one.
"""

import base64
import json
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from streams.consent import Consents
from streams.event import RawEvent
from streams.keys import MasterKey
from streams.outcome import Outcome
from streams.pipeline import Place, process
from streams.plan import MAX_OUTPUT_BYTES, Plan, compile_plan
from streams.policy import parse_policy
from streams.transforms import FORMS
from tests.model import Event, History, moment, predict
from tests.strategies import NOW, SECRET, compiled, folded

CANARY = "canary7f3a"
POLICY: dict[str, Any] = {
    "policy": "shop",
    "version": 1,
    "sources": {
        "web": {"topic": "shop.raw", "own": True, "subject": "user_id", "type": "type", "time": "at", "id": "id"}
    },
    "purposes": {
        "ads": {
            "benefit": "Suggestions that fit what you looked at",
            "topic": "shop.ads",
            "rung": "pseudonymous",
            "rotate": "30d",
            "lifetime": "30d",
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
BASE = {"user_id": SUBJECT, "type": "viewed", "at": "2026-05-01T10:20:30Z", "id": "e1", "product": "lamp"}
KEPT = {"product": "lamp", "at": "2026-05-01T10:00:00Z"}


class Case(NamedTuple):
    """One record, and what must become of it: the reason, or the fields that are published."""

    number: str
    value: bytes | None
    expected: str | dict[str, Any]
    key: bytes | None = SUBJECT.encode()
    headers: tuple[tuple[str, bytes | None], ...] = ()
    timestamp: int = NOW


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
CYRILLIC, FULL_WIDTH = "us\u0435r_id", "\uff56\uff49ewed"
WHOLE = "\u202e\u200b\x1b[31m\r\n\x00\x7f"

CASES = [
    Case("1 empty value", b"", "no_value"),
    Case("2 null value", None, "no_value"),
    Case("3 null key", event(), "key_is_not_subject", key=None),
    Case("4 empty key", event(), "key_is_not_subject", key=b""),
    Case("5 key of somebody else", event(), "key_is_not_subject", key=b"ben"),
    Case("5 key with a space more", event(), "key_is_not_subject", key=SUBJECT.encode() + b" "),
    Case("6 key of 1 MiB", event(), "key_is_not_subject", key=CANARY.encode() * 104_858),
    Case("6 subject of 1 MiB", event(user_id="x" * (1 << 20)), "bad_subject", key=b"x" * (1 << 20)),
    Case("6 subject of 1,024 bytes", event(user_id="é" * 512), "no_consent", key="é".encode() * 512),
    Case("6 subject of 1,025 bytes", event(user_id="é" * 512 + "x"), "bad_subject", key="é".encode() * 512 + b"x"),
    Case("7 key of invalid UTF-8", event(), "key_is_not_subject", key=b"\xff\xfe"),
    Case("8 invalid UTF-8 in a field", event(product="\u00ff").replace("ÿ".encode(), b"\xff"), "malformed"),
    Case("8 invalid UTF-8 where nobody looks", ending(b'"z":"\xff"'), "malformed"),
    Case("8 invalid UTF-8 in a name", ending(b'"\xff":1'), "malformed"),
    Case("8 invalid UTF-8 in the first name", b'{"\x80ubject": 1, "type": "viewed"}', "malformed"),
    Case("8 a surrogate written as UTF-8", ending(b'"z":"\xed\xa0\x80"'), "malformed"),
    Case("8 UTF-16", event().decode().encode("utf-16"), "malformed"),
    Case("9 overlong UTF-8", ending(b'"z":"\xc0\xaf"'), "malformed"),
    Case("10 byte order mark", b"\xef\xbb\xbf" + event(), "malformed"),
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
    Case("15 2^64 as the subject", event(user_id=2**64), "no_consent", key=str(2**64).encode()),
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
    Case("25 a new event type", event(type="reviewed", email=CANARY), "event_not_named"),
    Case("26 wrong type in a sensitive field", event(email={"a": [CANARY]}), KEPT),
    Case("26 wrong type in a named field", event(price=CANARY, product=None), {"at": KEPT["at"]}),
    Case("26 true for a number", event(price=True), KEPT),
    Case("26 a text for a group", event(page=CANARY), "wrong_shape"),
    Case("26 an array for a group", event(page=[{"url": CANARY}]), "wrong_shape"),
    Case("26 null for a group", event(page=None), KEPT),
    Case("26 a wrong group and broken after it", event(page=1)[:-1], "malformed"),
    *(
        Case(f"27 top level {text}", text.encode(), "not_an_object")
        for text in ("[]", '"x"', "1", "true", "null", "-0")
    ),
    Case("27 an array of events", b"[%s,%s]" % (event(), event()), "not_an_object"),
    Case("28 no subject", event(user_id=...), "no_subject"),
    Case("28 no subject, with a key", event(user_id=...), "no_subject", key=b"ana"),
    Case("28 null subject", event(user_id=None), "no_subject"),
    Case("28 empty subject", event(user_id=""), "bad_subject", key=b""),
    *(
        Case(f"28 subject {value!r}", event(user_id=value), "bad_subject")
        for value in (True, 1.5, ["ana", "ben"], {"id": "ana"})
    ),
    Case("28 a number as the subject", event(user_id=7), "no_consent", key=b"7"),
    Case("29 personal headers", event(), KEPT, headers=(("email", CANARY.encode()), (CANARY, CANARY.encode()))),
    Case("29 duplicate and null headers", event(), KEPT, headers=(("a", None), ("a", None), ("", b""))),
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
        Case(f"30 time {text}", event(at=text), "bad_time")
        for text in (
            "",
            "yesterday",
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


@pytest.fixture(scope="module")
def plan() -> Plan:
    return compiled(POLICY)


@pytest.fixture(scope="module")
def consents() -> Consents:
    since = {"ads": {"rung": "identified", "since": "2020-01-01T00:00:00Z"}}
    return folded([(SUBJECT.encode(), json.dumps({"subject": SUBJECT, "version": 1, "purposes": since}).encode())])


def flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the fields of an output by path, without the stamp."""
    fields: dict[str, Any] = {}
    for name, below in value.items():
        if name != "_celosia":
            fields |= flat(below, f"{prefix}{name}.") if isinstance(below, dict) else {prefix + name: below}
    return fields


def run(case: Case, plan: Plan, consents: Consents) -> Outcome:
    record = RawEvent(1042, case.timestamp, case.key, case.value, case.headers)
    return process(record, Place(plan.sources[0], 3), consents, plan, NOW)


def deeper(case: Case, plan: Plan, consents: Consents, frames: int) -> Outcome:
    """Process from a caller that stands deeper in the stack."""
    return deeper(case, plan, consents, frames - 1) if frames else run(case, plan, consents)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.number)
def test_each_input_has_its_outcome(case: Case, plan: Plan, consents: Consents) -> None:
    outcome = run(case, plan, consents)
    assert deeper(case, plan, consents, 300) == outcome

    if isinstance(case.expected, dict):
        assert outcome.kind == "published"
        (output,) = outcome.outputs
        assert flat(json.loads(output.value)) == case.expected
        assert CANARY not in repr(output)
        return
    assert outcome.reason == case.expected
    if outcome.kind == "suppressed":
        assert outcome.outputs == ()
        return
    assert outcome.kind == "quarantined"
    (output,) = outcome.outputs
    assert (output.topic, output.key, output.headers, output.timestamp) == ("shop.quarantine", None, [], None)
    record = json.loads(output.value)
    assert record["source"] == {"topic": "shop.raw", "partition": 3, "offset": 1042}
    assert (record["reason"], record["policy"]) == (case.expected, "shop@1")
    assert record["size"] == len(case.value or b"")
    assert record["key"] == ("absent" if case.key is None else "present" if case.key else "empty")
    assert set(record.get("shape", {})) <= {"user_id", "type", "at", "id", "product", "price", "page.url", "email", ""}
    assert CANARY not in output.value.decode()
    assert SUBJECT not in repr(outcome)


def test_the_oracle_agrees_on_all_of_them() -> None:
    grant = {"ads": {"rung": "identified", "since": "2020-01-01T00:00:00Z"}}
    record = json.dumps({"subject": SUBJECT, "version": 1, "purposes": grant}).encode()
    history: History = [(SUBJECT.encode(), record)]
    for case in CASES:
        prediction = predict(POLICY, SECRET, Event(case.value, case.key, case.timestamp, "web"), history, NOW)
        if isinstance(case.expected, dict):
            assert [flat(output.value) for output in prediction.outputs] == [case.expected], case.number
        else:
            assert prediction.reason == case.expected, case.number


def test_every_number_of_the_list_is_here() -> None:
    of_the_core = set(range(1, 31)) - {19, 20}  # compression and checksums are the client's
    assert {int(case.number.split()[0]) for case in CASES} == of_the_core


# --- 31-38: consents --------------------------------------------------------------------------------------------------

UNHEARD = ',"unheard.of":{"rung":"identified","since":"2020-01-01T00:00:00Z"}'
GRANT = '"ads":{"rung":"pseudonymous","since":"2020-01-01T00:00:00Z"}'


def said(version: int, purposes: str = GRANT, subject: str = SUBJECT) -> bytes:
    return f'{{"subject":"{subject}","version":{version},"purposes":{{{purposes}}}}}'.encode()


class Said(NamedTuple):
    """What a person said, record by record, and what then becomes of their event."""

    number: str
    values: list[bytes | None]
    expected: str | None


CONSENTS = [
    Said("31 a plain grant", [said(1)], None),
    Said(
        "31 unknown purpose beside",
        [said(1, GRANT + UNHEARD)],
        None,
    ),
    Said("31 unknown purpose only", [said(1, GRANT.replace("ads", "unheard.of"))], "not_allowed"),
    Said("31 unknown rung", [said(1, GRANT.replace("pseudonymous", "everything"))], "consent_unreadable"),
    Said("31 rung in capitals", [said(1, GRANT.replace("pseudonymous", "PSEUDONYMOUS"))], "consent_unreadable"),
    Said("31 missing version", [said(1).replace(b'"version":1,', b"")], "consent_unreadable"),
    Said("31 version as text", [said(1).replace(b'"version":1', b'"version":"1"')], "consent_unreadable"),
    Said("31 version 2^63", [said(1 << 63)], "consent_unreadable"),
    Said("31 version going back", [said(2, ""), said(1)], "not_allowed"),
    Said("31 the same version, withdrawn", [said(1), said(1, "")], "not_allowed"),
    Said("31 the same version, granted", [said(1, ""), said(1)], "not_allowed"),
    Said("31 a field that nobody knows", [said(1).replace(b'"version"', b'"limit":1,"version"')], "consent_unreadable"),
    Said("31 since without an offset", [said(1).replace(b"00Z", b"00")], "consent_unreadable"),
    Said("31 rung given twice", [said(1, GRANT.replace('"rung"', '"rung":"nothing","rung"'))], "consent_unreadable"),
    Said("32 undecodable withdrawal of a grant", [said(1), b'{"subject":'], "consent_unreadable"),
    Said("32 and the grant is delivered again", [said(1), b'{"subject":', said(1)], "consent_unreadable"),
    Said("32 and a higher version arrives", [said(1), b'{"subject":', said(2)], None),
    Said("32 somebody else's name in the record", [said(1), said(2, subject="eve")], "consent_unreadable"),
    Said("33 tombstone of a grant", [said(1), None], "consent_unreadable"),
    Said("33 tombstone alone", [None], "consent_unreadable"),
    Said("33 empty value", [said(1), b""], "consent_unreadable"),
    Said("34 expired", [said(1, GRANT[:-1] + ',"until":"2026-05-28T00:00:00Z"}')], "expired"),
    Said("34 runs out before it begins", [said(1, GRANT[:-1] + ',"until":"2019-01-01T00:00:00Z"}')], "expired"),
    Said(
        "34 signed by nobody knows whom",
        [said(1).replace(b'"version"', b'"signature":"x","version"')],
        "consent_unreadable",
    ),
    Said("35 an old grant replayed after the withdrawal", [said(1), said(2, ""), said(1)], "not_allowed"),
    Said("38 grant and withdrawal in one batch", [said(1), said(2, "")], "not_allowed"),
    Said("38 in the other order", [said(2, ""), said(1)], "not_allowed"),
    Said("38 withdrawn and granted again", [said(1), said(2, ""), said(3)], None),
]


@pytest.mark.parametrize("case", CONSENTS, ids=lambda case: case.number)
def test_each_consent_has_its_effect(case: Said, plan: Plan) -> None:
    consents = Consents()
    for value in case.values:
        consents.apply(SUBJECT.encode(), value)
    outcome = run(Case("", event(), ""), plan, consents)
    assert (outcome.kind, outcome.reason) == ("suppressed" if case.expected else "published", case.expected)
    assert CANARY not in repr(outcome)
    history: History = [(SUBJECT.encode(), value) for value in case.values]
    again = predict(POLICY, SECRET, Event(event(), SUBJECT.encode(), NOW, "web"), history, NOW)
    assert again.reason == case.expected


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("2026-04-01T00:00:01.999Z", "recorded_before_consent"),
        ("2026-04-01T00:00:02Z", None),
        ("2026-04-30T23:59:59.999Z", None),
        ("2026-05-01T00:00:00Z", "expired"),
    ],
)
def test_34_a_consent_holds_from_the_skew_after_since_to_the_moment_before_until(at: str, expected: str | None) -> None:
    policy = {**POLICY, "sources": {"web": {**POLICY["sources"]["web"], "clock_skew": "2s"}}}
    grant = {"rung": "pseudonymous", "since": "2026-04-01T00:00:00Z", "until": "2026-05-01T00:00:00Z"}
    value = json.dumps({"subject": SUBJECT, "version": 1, "purposes": {"ads": grant}}).encode()
    now = moment(at)
    assert now is not None
    record = RawEvent(0, now, SUBJECT.encode(), event(at=at))
    plan = compiled(policy)
    outcome = process(record, Place(plan.sources[0], 0), folded([(SUBJECT.encode(), value)]), plan, now)
    assert outcome.reason == expected


def test_31_a_rung_below_anonymous_allows_no_event_whatever_forms_it_has() -> None:
    fields = {"product": {"is": "user.behavior", "for": "all", "as": {"crowd": "keep"}}}
    plan = compiled({**POLICY, "events": {"viewed": fields}})
    for rung, expected in [("nothing", "not_allowed"), ("crowd", "rung_too_low"), ("anonymous", None)]:
        consents = folded([(SUBJECT.encode(), said(1, GRANT.replace("pseudonymous", rung)))])
        assert run(Case("", event(), ""), plan, consents).reason == expected


@pytest.mark.parametrize("key", [None, b"\xff", b"ana\xc0\xaf"])
def test_37_a_consent_key_that_cannot_be_read_denies_everyone(key: bytes | None, plan: Plan) -> None:
    consents = folded([(SUBJECT.encode(), said(1)), (key, said(1))])
    assert run(Case("", event(), ""), plan, consents).reason == "partition_blocked"


def test_37_the_empty_subject_and_the_wildcard_are_nobody_else(plan: Plan) -> None:
    consents = folded([(b"", said(1, subject="")), (b"*", said(1, subject="*"))])
    assert run(Case("", event(), ""), plan, consents).reason == "no_consent"
    assert run(Case("", event(user_id=""), "", key=b""), plan, consents).reason == "bad_subject"
    assert run(Case("", event(user_id="*"), "", key=b"*"), plan, consents).kind == "published"


def test_37_a_consent_for_very_many_subjects(plan: Plan) -> None:
    consents = Consents()
    for number in range(100_000):
        consents.apply(b"u%d" % number, b'{"subject":"u%d","version":1,"purposes":{}}' % number)
    assert len(consents) == 100_000
    assert run(Case("", event(user_id="u99999"), "", key=b"u99999"), plan, consents).reason == "not_allowed"


# --- 40-43: what forms, keys and repetition can do --------------------------------------------------------------------


@pytest.mark.parametrize(("more", "kind"), [(0, "published"), (1, "quarantined")])
def test_40_an_event_that_grows_over_the_limit(more: int, kind: str, plan: Plan, consents: Consents) -> None:
    (output,) = run(Case("", event(product=""), ""), plan, consents).outputs
    product = "x" * (MAX_OUTPUT_BYTES - len(output.value) + more)
    outcome = run(Case("", event(product=product), ""), plan, consents)
    assert outcome.kind == kind
    assert (len(outcome.outputs[0].value) == MAX_OUTPUT_BYTES) == (kind == "published")


def test_40_an_event_that_grows_in_writing(plan: Plan, consents: Consents) -> None:
    """One byte that is written as six: the limit counts what is published."""
    product = "\x01" * (MAX_OUTPUT_BYTES // 5)
    outcome = run(Case("", event(product=product), ""), plan, consents)
    assert (outcome.kind, outcome.reason) == ("quarantined", "too_large")


def raises(value: Any, _at: int) -> Any:
    raise RuntimeError(f"cannot take {value}")


def mutates(value: Any, _at: int) -> Any:
    if isinstance(value, dict):
        value["product"] = CANARY
    return "done"


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (raises, "transform_failed"),
        (lambda value, _at: None, {"at": KEPT["at"]}),
        (lambda value, _at: value, {"at": KEPT["at"]}),
        (lambda value, _at: [value], {"at": KEPT["at"]}),
        (lambda value, _at: object(), {"at": KEPT["at"]}),
        (lambda value, _at: int("9" * 4300) * 10, "transform_failed"),
        (mutates, {"at": KEPT["at"], "product": "done"}),
    ],
    ids=["raises", "nothing", "its input", "an array", "an object", "a number too long to write", "mutates"],
)
def test_41_a_form_that_misbehaves(
    form: Any, expected: Any, consents: Consents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMS, "bad", replace(FORMS["drop"], name="bad", make=lambda _parameters, _context: form))
    fields = {
        **POLICY["events"]["viewed"],
        "product": {"is": "user.behavior", "for": "all", "as": {"anonymous": "bad"}},
    }
    text = json.dumps({**POLICY, "events": {"viewed": fields}})
    plan = compile_plan(parse_policy(text.encode()), MasterKey(SECRET))
    outcome = run(Case("", event(product={"email": CANARY}), ""), plan, consents)
    if isinstance(expected, str):
        assert outcome.reason == expected
    else:
        assert flat(json.loads(outcome.outputs[0].value)) == expected
    assert CANARY not in repr(outcome)


def test_42_a_key_that_turns_in_mid_batch(plan: Plan, consents: Consents) -> None:
    """Events on both sides of a rotation have pseudonyms of their own epochs, in whichever order they come."""
    before, after = event(at="2026-04-08T23:59:59.999Z"), event(at="2026-05-09T00:00:00Z")
    subjects = []
    for value in (before, after, before, after):
        (output,) = run(Case("", value, ""), plan, consents).outputs
        subjects.append(json.loads(output.value)["_celosia"]["subject"])
    assert subjects[0] == subjects[2] != subjects[1] == subjects[3]
    assert subjects[0].split(".")[0] != subjects[1].split(".")[0]


def test_43_the_same_event_twice(plan: Plan, consents: Consents) -> None:
    """The filter has no memory: real duplicates are real. Exactly once is about offsets, and the lane's."""
    assert run(Case("", event(), ""), plan, consents) == run(Case("", event(), ""), plan, consents)
