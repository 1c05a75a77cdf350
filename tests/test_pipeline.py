"""process(): one record in, one outcome out."""

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from streams.consent import Consents, Refusal
from streams.event import RawEvent, Reason
from streams.keys import MasterKey, Pseudonyms
from streams.outcome import Coordinates, Kind, Outcome, Output
from streams.pipeline import Place, bind, process, quarantine
from streams.plan import MAX_OUTPUT_BYTES, Plan, compile_plan
from streams.policy import parse_policy
from streams.transforms import FORMS
from tests.model import written

POLICY = b"""
policy: shop
version: 3
sources:
  web: {topic: raw, own: true, subject: who, type: what, time: at, clock_skew: 10ms}
  app: {topic: app, own: true, subject: who, type: what, key: other}
  partner: {topic: partner, own: false, subject: who, type: what}
purposes:
  stock: {benefit: The shop has what you look for, topic: out.stock, rung: anonymous, lifetime: 365d}
  hints: {benefit: Suggestions that fit you, topic: out.hints, rung: pseudonymous, rotate: 30d, lifetime: 30d}
  post: {benefit: Your order arrives, topic: out.post, rung: identified, rotate: 30d, lifetime: 7d}
events:
  seen:
    at: {is: system.operations, for: all, as: {anonymous: day, pseudonymous: hour}}
    page: {is: system.operations, for: all, as: {anonymous: keep}}
  ordered:
    order.id: {is: system.operations, for: [post]}
"""
MASTER = MasterKey(bytes(range(32)))
DAY, HOUR = 86_400_000, 3_600_000
NOON = 20_000 * DAY + 12 * HOUR
NOW = NOON + HOUR


@pytest.fixture(scope="module")
def plan() -> Plan:
    return compile_plan(parse_policy(POLICY), MASTER)


def consents_of(person: str = "ana", **purposes: Any) -> Consents:
    """Return consents where one person allows some purposes: a rung since 1970, or (rung, since, until) in ms."""
    grants = {}
    for name, said in purposes.items():
        rung, since, until = said if isinstance(said, tuple) else (said, 0, None)
        grants[name] = {"rung": rung, "since": written(since)} | ({"until": written(until)} if until else {})
    consents = Consents()
    consents.apply(person.encode(), json.dumps({"subject": person, "version": 7, "purposes": grants}).encode())
    return consents


def event(changes: dict[str, Any] | None = None, key: bytes | None = b"ana", **record: Any) -> RawEvent:
    members = {"who": "ana", "what": "seen", "at": NOON, "page": "/lamp"} | (changes or {})
    given: dict[str, Any] = {"offset": 1042, "timestamp": NOON, "headers": [("trace", b"ana@example.org")]} | record
    return RawEvent(key=key, value=json.dumps(members).encode(), **given)


def place_of(plan: Plan, name: str, *, keyed: bool = True) -> Place:
    (source,) = (source for source in plan.sources if source.name == name)
    return Place(source, 3, keyed)


ALL = {"stock": "identified", "hints": "identified", "post": "identified"}


def run(plan: Plan, record: RawEvent, consents: Consents | None = None, source: str = "web", now: int = NOW) -> Outcome:
    consents = consents_of(**ALL) if consents is None else consents
    return process(record, place_of(plan, source), consents, plan, now)


def by_topic(outputs: Iterable[Output]) -> dict[str, Output]:
    return {output.topic.removeprefix("out."): output for output in outputs}


# --- published --------------------------------------------------------------------------------------------------------


def test_each_purpose_gets_its_own_output_in_its_own_form(plan: Plan) -> None:
    outcome = run(plan, event())
    assert (outcome.kind, outcome.reason, outcome.refusals) == (Kind.PUBLISHED, None, ())
    stock, hints, post = (json.loads(output.value) for output in outcome.outputs)
    stamp = {"policy": "shop", "version": 3, "event": "seen"}
    pseudonym = Pseudonyms(MASTER, "hints", 30 * DAY)(b"ana", NOON).decode()
    assert stock == {
        "at": written(NOON - 12 * HOUR),
        "page": "/lamp",
        "_celosia": stamp
        | {"purpose": "stock", "rung": "anonymous", "expires_at": written(NOON - 12 * HOUR + 365 * DAY)},
    }
    assert hints == {
        "at": written(NOON),
        "page": "/lamp",
        "_celosia": stamp
        | {"purpose": "hints", "rung": "pseudonymous", "expires_at": written(NOON + 30 * DAY)}
        | {"consent": 7, "subject": pseudonym},
    }
    assert post["_celosia"] == stamp | {
        "purpose": "post",
        "rung": "identified",
        "expires_at": written(NOON + 7 * DAY),
    } | {
        "consent": 7,
        "subject": "ana",
    }


def test_the_key_says_who_only_as_far_as_the_rung_allows(plan: Plan) -> None:
    outputs = by_topic(run(plan, event()).outputs)
    assert outputs["stock"].key is None
    assert outputs["hints"].key == Pseudonyms(MASTER, "hints", 30 * DAY)(b"ana", NOON)
    assert outputs["post"].key == b"ana"
    assert b"ana" not in outputs["stock"].value + outputs["hints"].value


def test_the_lower_of_the_two_rungs_holds(plan: Plan) -> None:
    outputs = by_topic(run(plan, event(), consents_of(stock="crowd", hints="anonymous", post="pseudonymous")).outputs)
    assert set(outputs) == {"hints", "post"}
    rungs = {name: json.loads(output.value)["_celosia"]["rung"] for name, output in outputs.items()}
    assert rungs == {"hints": "anonymous", "post": "pseudonymous"}
    assert outputs["hints"].key is None


def test_headers_are_ours_and_lead_back_for_who_holds_the_key(plan: Plan) -> None:
    outputs = by_topic(run(plan, event()).outputs)
    assert dict(outputs["hints"].headers[:-1]) == {
        "celosia-policy": b"shop@3",
        "celosia-purpose": b"hints",
        "celosia-rung": b"pseudonymous",
        "celosia-consent": b"7",
        "celosia-expires-at": written(NOON + 30 * DAY).encode(),
    }
    assert "celosia-consent" not in dict(outputs["stock"].headers)
    for name, output in outputs.items():
        assert [header for header, _ in output.headers].count("celosia-source") == 1
        token = dict(output.headers)["celosia-source"]
        assert plan.purposes[name].seal.open(token, ["raw", "app"]) == ("raw", 3, 1042)
        assert b"ana" not in b"".join(value for _, value in output.headers)


def test_the_timestamp_is_as_coarse_as_the_time_that_is_told(plan: Plan) -> None:
    late = event({"at": NOON + 1234}, timestamp=NOON + 1235)
    outputs = by_topic(run(plan, late).outputs)
    assert {name: output.timestamp for name, output in outputs.items()} == {
        "stock": NOON - 12 * HOUR,
        "hints": NOON,
        "post": NOON,
    }
    ancient = by_topic(run(plan, event({"at": -5}), consents_of(stock=("anonymous", -DAY, None))).outputs)
    assert ancient["stock"].timestamp == 0


@pytest.mark.parametrize(("recorded", "timestamp"), [(-2, 0), (-1, 0), (0, 0), (1, 1), (2, 2)])
def test_a_timestamp_is_never_before_1970(recorded: int, timestamp: int) -> None:
    exact = compile_plan(
        parse_policy(POLICY.replace(b"{anonymous: day, pseudonymous: hour}", b"{anonymous: keep}")), MASTER
    )
    consents = consents_of(stock=("anonymous", -DAY, None))
    (output,) = run(exact, event({"at": recorded}), consents).outputs
    assert output.timestamp == timestamp


def test_quotes_and_letters_of_a_subject_arrive_whole(plan: Plan) -> None:
    for who in ('a"na', "Zoë", "a\\na", "\u2028", "{}"):
        record = event({"who": who}, key=who.encode())
        (output,) = run(plan, record, consents_of(who, post="identified")).outputs
        assert json.loads(output.value)["_celosia"]["subject"] == who
        assert output.key == who.encode()


def test_an_integer_subject_is_the_person_of_its_digits(plan: Plan) -> None:
    (output,) = run(plan, event({"who": 17850}, key=b"17850"), consents_of("17850", post="identified")).outputs
    assert output.key == b"17850"


def test_bind_gives_what_process_gives(plan: Plan) -> None:
    place, consents = place_of(plan, "web"), consents_of(**ALL)
    records = [event(), event(key=None), event({"what": "?"}), RawEvent(1, 0, None, None)]
    one = bind(place, consents, plan, NOW)
    assert [one(record) for record in records] == [process(record, place, consents, plan, NOW) for record in records]


# --- suppressed -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "consents", "reason"),
    [
        ({"who": None}, consents_of(**ALL), Refusal.NO_SUBJECT),
        ({"what": "sung"}, consents_of(**ALL), Refusal.EVENT_NOT_NAMED),
        ({}, Consents(), Refusal.NO_CONSENT),
        ({}, consents_of("ben", **ALL), Refusal.NO_CONSENT),
    ],
)
def test_nothing_is_said_of_purposes_where_no_purpose_was_asked(
    plan: Plan, changes: dict[str, Any], consents: Consents, reason: Refusal
) -> None:
    outcome = run(plan, event(changes), consents)
    assert outcome == Outcome(Kind.SUPPRESSED, (), reason, ())


def test_where_no_field_has_a_value_nothing_is_published(plan: Plan) -> None:
    orders: list[Any] = [None, {}, {"id": None}, {"id": [1]}, {"id": {"x": 1}}, {"note": "x"}]
    for order in orders:
        outcome = run(plan, event({"what": "ordered", "order": order}))
        assert outcome == Outcome(Kind.SUPPRESSED, (), Refusal.NOTHING_LEFT, (("post", Refusal.NOTHING_LEFT),))


def test_a_blocked_partition_serves_nobody(plan: Plan) -> None:
    consents = consents_of(**ALL)
    consents.apply(b"\xff", b"anything")
    assert run(plan, event(), consents) == Outcome(Kind.SUPPRESSED, (), Refusal.PARTITION_BLOCKED)


def test_an_unreadable_consent_serves_nothing(plan: Plan) -> None:
    consents = consents_of(**ALL)
    consents.apply(b"ana", None)
    outcome = run(plan, event(), consents)
    assert (outcome.kind, outcome.reason) == (Kind.SUPPRESSED, Refusal.CONSENT_UNREADABLE)


def test_each_purpose_says_its_own_refusal_and_the_event_says_the_furthest(plan: Plan) -> None:
    consents = consents_of(stock="crowd", hints=("identified", NOON - 9, None))
    outcome = run(plan, event(), consents)
    assert (outcome.kind, outcome.reason) == (Kind.SUPPRESSED, Refusal.RUNG_TOO_LOW)
    assert outcome.refusals == (
        ("stock", Refusal.RUNG_TOO_LOW),
        ("hints", Refusal.RECORDED_BEFORE_CONSENT),
        ("post", Refusal.NOT_ALLOWED),
    )


def test_the_order_of_purposes_does_not_change_the_reason(plan: Plan) -> None:
    consents = consents_of(stock="nothing", hints=("identified", 0, NOON), post=("identified", NOON, None))
    outcome = run(plan, event(), consents)
    assert outcome.reason is Refusal.EXPIRED
    assert dict(outcome.refusals) == {
        "stock": Refusal.NOT_ALLOWED,
        "hints": Refusal.EXPIRED,
        "post": Refusal.RECORDED_BEFORE_CONSENT,
    }


def test_what_is_published_and_what_is_refused_stand_side_by_side(plan: Plan) -> None:
    outcome = run(plan, event(), consents_of(post="identified"))
    assert (outcome.kind, outcome.reason, len(outcome.outputs)) == (Kind.PUBLISHED, None, 1)
    assert outcome.refusals == (("stock", Refusal.NOT_ALLOWED), ("hints", Refusal.NOT_ALLOWED))


@pytest.mark.parametrize(
    ("said", "timestamp", "since", "passes"),
    [
        (NOON, NOON, NOON - 10, True),
        (NOON, NOON, NOON - 9, False),  # the clocks of this source may differ by 10 ms
        (NOON, NOON - 1, NOON - 10, False),
        (NOON - 1, NOON, NOON - 10, False),
        (NOON, -1, 1, False),
        (NOW + DAY, NOW + DAY, NOW - 10, True),
        (NOW + DAY, NOW + DAY, NOW - 9, False),  # the future is not yet recorded
    ],
)
def test_a_grant_is_held_against_the_earliest_time(
    plan: Plan, said: int, timestamp: int, since: int, passes: bool
) -> None:
    outcome = run(plan, event({"at": said}, timestamp=timestamp), consents_of(post=("identified", since, None)))
    assert (outcome.kind is Kind.PUBLISHED) is passes
    assert passes or outcome.reason is Refusal.RECORDED_BEFORE_CONSENT


@pytest.mark.parametrize(("said", "timestamp", "now"), [(NOON, NOON, NOW), (NOON, NOW, NOON), (NOW, NOON, NOON)])
def test_the_end_of_a_consent_is_held_against_the_latest_time(plan: Plan, said: int, timestamp: int, now: int) -> None:
    for until, kind in ((NOW, Kind.SUPPRESSED), (NOW + 1, Kind.PUBLISHED)):
        consents = consents_of(post=("identified", 0, until))
        assert run(plan, event({"at": said}, timestamp=timestamp), consents, now=now).kind is kind


# --- quarantined ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, b"", b"ben", b"Ana", b"ana\0", b"\xff"])
def test_the_key_must_be_the_subject(plan: Plan, key: bytes | None) -> None:
    outcome = run(plan, event(key=key))
    assert (outcome.kind, outcome.reason) == (Kind.QUARANTINED, Reason.KEY_IS_NOT_SUBJECT)
    (output,) = outcome.outputs
    assert (output.topic, output.key, output.headers) == ("shop.quarantine", None, [])
    assert json.loads(output.value) == {
        "source": {"topic": "raw", "partition": 3, "offset": 1042},
        "reason": "key_is_not_subject",
        "policy": "shop@3",
        "key": "absent" if key is None else "present" if key else "empty",
        "size": len(event().value or b""),
        "shape": {"at": "number", "page": "string", "what": "string", "who": "string"},
    }


def test_a_quarantine_record_says_how_many_members_nobody_names(plan: Plan) -> None:
    value = (event().value or b"")[:-1] + b',"a":1,"b":{"c":2}}'
    (output,) = run(plan, event(key=b"ben")._replace(value=value)).outputs
    assert json.loads(output.value)["unnamed"] == 2


def test_the_key_of_a_line_in_a_file_is_not_asked_for(plan: Plan) -> None:
    place = place_of(plan, "web", keyed=False)
    assert process(event(key=None), place, consents_of(**ALL), plan, NOW).kind is Kind.PUBLISHED


def test_an_event_on_the_wrong_partition_is_set_aside_and_not_taken_for_one_without_consent(plan: Plan) -> None:
    outcome = run(plan, event(), Consents(owns=lambda key: key != b"ana"))
    assert (outcome.kind, outcome.reason) == (Kind.QUARANTINED, Reason.WRONG_PARTITION)


def test_an_output_may_be_as_large_as_a_record_and_no_larger(plan: Plan) -> None:
    consents = consents_of(stock="anonymous")
    (output,) = run(plan, event(), consents).outputs
    room = MAX_OUTPUT_BYTES - len(output.value) + len("/lamp")
    (largest,) = run(plan, event({"page": "x" * room}), consents).outputs
    assert len(largest.value) == MAX_OUTPUT_BYTES
    outcome = run(plan, event({"page": "x" * (room + 1)}), consents)
    assert (outcome.kind, outcome.reason) == (Kind.QUARANTINED, Reason.TOO_LARGE)
    assert len(outcome.outputs[0].value) < 1000


def test_one_output_that_is_too_large_keeps_back_all(plan: Plan) -> None:
    room = MAX_OUTPUT_BYTES - len(run(plan, event(), consents_of(stock="anonymous")).outputs[0].value) + len("/lamp")
    outcome = run(plan, event({"page": "x" * room}))
    assert [output.topic for output in outcome.outputs] == ["shop.quarantine"]


@pytest.mark.parametrize("broken", [lambda _value, _at: 1 // 0, lambda _value: "x", lambda _value, _at: 10**4400])
def test_a_form_that_breaks_keeps_back_all(monkeypatch: pytest.MonkeyPatch, broken: Any) -> None:
    monkeypatch.setitem(FORMS, "hour", replace(FORMS["hour"], make=lambda *_: broken))
    outcome = run(compile_plan(parse_policy(POLICY), MASTER), event())
    assert (outcome.kind, outcome.reason) == (Kind.QUARANTINED, Reason.TRANSFORM_FAILED)
    assert [output.topic for output in outcome.outputs] == ["shop.quarantine"]


def test_a_quarantine_record_names_the_topic_it_was_read_from(plan: Plan) -> None:
    place = place_of(plan, "app", keyed=False)._replace(topic="app")
    (output,) = quarantine(event(), place, plan, Reason.MALFORMED).outputs
    assert json.loads(output.value)["source"] == {"topic": "app", "partition": 3, "offset": 1042}
    (output,) = quarantine(event(), place._replace(topic=None), plan, Reason.MALFORMED).outputs
    assert json.loads(output.value)["source"]["topic"] == "shop.rekeyed.app"


# --- sources ----------------------------------------------------------------------------------------------------------


def test_a_source_that_is_not_our_own_says_nothing_about_who(plan: Plan) -> None:
    outcome = run(plan, event(), source="partner")
    assert outcome.kind is Kind.PUBLISHED
    assert {json.loads(output.value)["_celosia"]["rung"] for output in outcome.outputs} == {"anonymous"}
    assert {output.key for output in outcome.outputs} == {None}
    assert not any(b"ana" in output.value for output in outcome.outputs)


def test_a_re_keyed_record_leads_back_to_the_raw_one(plan: Plan) -> None:
    record = event(headers=[("celosia-origin", b"11:998877")])
    (output,) = run(plan, record, consents_of(post="identified"), source="app").outputs
    token = dict(output.headers)["celosia-source"]
    assert plan.purposes["post"].seal.open(token, ["app"]) == ("app", 11, 998877)


def test_a_raw_record_cannot_say_where_it_comes_from(plan: Plan) -> None:
    record = event(headers=[("celosia-origin", b"11:998877")])
    (output,) = run(plan, record, consents_of(post="identified")).outputs
    token = dict(output.headers)["celosia-source"]
    assert plan.purposes["post"].seal.open(token, ["raw"]) == ("raw", 3, 1042)


@pytest.mark.parametrize(
    "origin",
    [None, b"", b":", b"11", b"11:", b"-1:2", b"1:-2", b"a:b", b" 1:2", b"1:2:3", b"9" * 10 + b":1", b"1:" + b"9" * 19],
)
def test_an_origin_that_we_did_not_write_is_passed_over(plan: Plan, origin: bytes | None) -> None:
    record = event(headers=[("celosia-origin", origin)])
    (output,) = run(plan, record, consents_of(post="identified"), source="app").outputs
    assert plan.purposes["post"].seal.open(dict(output.headers)["celosia-source"], ["app"]) == ("app", 3, 1042)


def test_every_record_counts_once() -> None:
    plan = compile_plan(parse_policy(POLICY), MASTER)
    records = [event(), event(key=b"ben"), event({"what": "sung"}), event({"who": None}), RawEvent(5, 0, b"", b"")]
    kinds = [run(plan, record).kind for record in records]
    assert kinds == [Kind.PUBLISHED, Kind.QUARANTINED, Kind.SUPPRESSED, Kind.SUPPRESSED, Kind.QUARANTINED]


def test_coordinates_are_written_as_people_read_them() -> None:
    assert str(Coordinates("raw", 3, 1042)) == "raw[3]@1042"
