"""The laws, each a property test under its name. Where they are upheld in streams/ it says `# INVARIANT`.

`tests/strategies.py` draws the scenarios; about a third of their events are published, the rest fail in every way.
The laws of how records of consent add up are in `tests/test_consent_fold.py`.
"""

import base64
import json
import traceback
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from streams.consent import Consents, Rung
from streams.event import RawEvent, Rejected
from streams.keys import MasterKey
from streams.outcome import Outcome, Output
from streams.pipeline import bind, process
from streams.plan import compile_plan, form_in_force
from streams.policy import FieldRule, parse_policy
from streams.transforms import ABSENT, FORMS, Context
from tests.model import Event, Published, duration, read_consent, written
from tests.strategies import (
    NOW,
    PEOPLE,
    PURPOSES,
    SECRET,
    YEAR,
    Scenario,
    broken_consents,
    compiled,
    documents,
    folded,
    generous,
    promising,
    put,
    scalars,
    scenarios,
    write,
)

RUNGS = {rung.name.lower(): rung for rung in Rung}
twice_as_many = settings(max_examples=2 * settings().max_examples)


def published(output: Output) -> Published:
    """Take an output apart as the oracle writes it down. The sealed source is not the oracle's business."""
    headers = dict(output.headers)
    assert len(headers) == len(output.headers)
    assert len(headers.pop("celosia-source")) == 32
    assert output.timestamp is not None
    return Published(output.topic, output.key, json.loads(output.value), headers, output.timestamp)


def by_purpose(outcome: Outcome) -> dict[str, Published]:
    """Return what was published, by purpose."""
    if outcome.kind != "published":
        return {}
    return {output.value["_celosia"]["purpose"]: output for output in map(published, outcome.outputs)}


def leaves(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield path and value of each field of an output, the stamp left out."""
    for name, below in value.items():
        if prefix + name == "_celosia":
            continue
        if isinstance(below, dict):
            yield from leaves(below, f"{prefix}{name}.")
        else:
            yield prefix + name, below


@twice_as_many
@given(scenarios())
def test_agrees_with_model(scenario: Scenario) -> None:
    for outcome, expected in zip(scenario.run(), scenario.predict(), strict=True):
        event(f"{outcome.kind} {outcome.reason or ''}")
        assert (outcome.kind, outcome.reason) == (expected.kind, expected.reason)
        if outcome.kind != "quarantined":
            assert tuple(map(published, outcome.outputs)) == expected.outputs
            assert outcome.refusals == expected.refusals


@given(scenarios())
def test_every_input_has_one_outcome(scenario: Scenario) -> None:
    """Published with outputs, or suppressed without, or quarantined with one record; and twice the same."""
    for outcome, again in zip(scenario.run(), scenario.run(), strict=True):
        assert outcome == again
        topics = {output.topic for output in outcome.outputs}
        match outcome.kind:
            case "published":
                assert topics
                assert outcome.reason is None
                assert topics <= {purpose["topic"] for purpose in scenario.policy["purposes"].values()}
            case "suppressed":
                assert not topics
                assert outcome.reason is not None
            case "quarantined":
                assert topics == {"test.quarantine"}
                assert len(outcome.outputs) == 1
                assert outcome.outputs[0].key is None
                assert outcome.outputs[0].headers == []


@given(scenarios())
def test_default_deny(scenario: Scenario) -> None:
    """Without a word of consent nothing is published; and no purpose that a person does not name is served."""
    assert not any(map(by_purpose, scenario.but(history=[]).run()))
    for purpose in scenario.policy["purposes"]:
        history = [(key, without(value, purpose)) for key, value in scenario.history]
        assert not any(purpose in by_purpose(outcome) for outcome in scenario.but(history=history).run())


def without(record: bytes | None, purpose: str) -> bytes | None:
    """Return a consent record that does not name a purpose."""
    try:
        document = json.loads(record or b"")
        document["purposes"].pop(purpose, None)
        return json.dumps(document).encode()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return record


@given(scenarios(), st.sampled_from(["absent", "nothing", "unreadable", "blocked"]), st.data())
def test_refusal_beats_permission(scenario: Scenario, how: str, data: st.DataObject) -> None:
    """A refusal under the version in force wins, wherever in the history it stands; what cannot be read wins last."""
    purpose = data.draw(st.sampled_from(list(scenario.policy["purposes"])))
    history = list(scenario.history)
    for person in PEOPLE:
        consent = folded(history).of(person.encode())
        if consent is None:
            continue
        grant = {purpose: {"rung": "nothing", "since": "2020-01-01T00:00:00Z"}} if how == "nothing" else {}
        refusal: dict[str, Any] = {"subject": person, "version": max(0, consent.version), "purposes": grant}
        if how == "unreadable":
            history.append((person.encode(), data.draw(broken_consents(person))))
        elif how == "blocked":
            history.append((b"\xff", b"{}"))
        elif consent.readable:
            history.insert(data.draw(st.integers(0, len(history))), (person.encode(), json.dumps(refusal).encode()))
    for outcome in scenario.but(history=history).run():
        if how in ("unreadable", "blocked"):
            assert not by_purpose(outcome)
        else:
            assert purpose not in by_purpose(outcome)


@given(
    scenarios(),
    st.sampled_from(["unknown", "undecodable", "expired", "contradictory", "misplaced", "unreadable key"]),
    st.data(),
)
def test_fail_closed(scenario: Scenario, how: str, data: st.DataObject) -> None:
    """Where consent is unknown, undecodable, expired, contradictory or in the wrong partition nothing is published."""
    history = [] if how == "unknown" else list(scenario.history)
    for person in PEOPLE if how in ("undecodable", "expired", "contradictory") else []:
        known = folded(history).of(person.encode())
        version = 0 if known is None else max(0, known.version)
        match how:
            case "undecodable":
                history.append((person.encode(), data.draw(broken_consents(person))))
            case "expired":
                ended = {"rung": "identified", "since": "0001-01-01T00:00:00Z", "until": "0001-01-01T00:00:01Z"}
                history.append(record_of(person, version + 1, dict.fromkeys(PURPOSES, ended)))
            case "contradictory":
                history.append(record_of(person, version, {}))
    if how == "unreadable key":
        history.insert(data.draw(st.integers(0, len(history))), (data.draw(st.sampled_from([None, b"\xff"])), b"{}"))
    consents = Consents(owns=lambda _key: how != "misplaced")
    for key, value in history:
        consents.apply(key, value)
    for raw, record in zip(scenario.events, scenario.records(), strict=True):
        outcome = process(record, scenario.place_of(raw), consents, compiled(scenario.policy), scenario.now)
        event(f"{how}: {outcome.reason}")
        assert outcome.kind != "published"


def record_of(person: str, version: int, purposes: dict[str, Any]) -> tuple[bytes, bytes]:
    """Return a record of consent with its key."""
    return person.encode(), json.dumps({"subject": person, "version": version, "purposes": purposes}).encode()


@given(scenarios(), st.sampled_from(["left out", "nothing", "not before"]))
def test_a_withdrawal_reaches_back(scenario: Scenario, how: str) -> None:
    """What a person takes back is over for every event of theirs, however long ago it was recorded."""
    for purpose in scenario.policy["purposes"]:
        history = list(scenario.history)
        for person in PEOPLE:
            purposes: dict[str, Any] = {name: ALWAYS for name in PURPOSES if name != purpose}
            if how == "nothing":
                purposes[purpose] = ALWAYS | {"rung": "nothing"}
            elif how == "not before":
                purposes[purpose] = ALWAYS | {"since": written(scenario.now + 1)}
            history.append(record_of(person, 1000, purposes))
        for outcome in scenario.but(history=history).run():
            assert purpose not in by_purpose(outcome)


ALWAYS = {"rung": "identified", "since": "0001-01-01T00:00:00Z"}


@given(promising())
def test_a_grant_never_reaches_back(scenario: Scenario) -> None:
    """An event from before the grant serves nothing, by a margin as wide as the clocks may differ; later ones do."""
    for raw, outcome in zip(scenario.events, scenario.run(), strict=True):
        for purpose in by_purpose(outcome):
            skew = duration(scenario.policy["sources"][raw.source].get("clock_skew", "0s"))
            recorded, person = recorded_at(raw, scenario), subject_of(raw, scenario)
            grant = (folded(scenario.history).of(person.encode()) or pytest.fail("published")).grants[purpose]
            assert recorded >= grant.since + skew
            for since, passes in ((recorded - skew, True), (recorded - skew + 1, False)):
                if since < FIRST:
                    continue
                said = dict.fromkeys(PURPOSES, ALWAYS) | {purpose: ALWAYS | {"since": written(since)}}
                one = scenario.but(events=[raw], history=[record_of(person, 1, said)]).run()[0]
                event(f"passes: {passes}")
                assert (purpose in by_purpose(one)) is passes
                assert passes or dict(one.refusals)[purpose] == "recorded_before_consent"


FIRST = -62_135_596_800_000
"""The first millisecond of the year 1, before which no consent record can say anything."""


@given(promising())
def test_an_ended_consent_allows_nothing(scenario: Scenario) -> None:
    """The latest of all clocks is held against `until`, and its own millisecond is over."""
    for raw, outcome in zip(scenario.events, scenario.run(), strict=True):
        for purpose in by_purpose(outcome):
            person, latest = subject_of(raw, scenario), latest_of(raw, scenario)
            for until, passes in ((latest, False), (latest + 1, True)):
                if until > LAST:
                    continue
                said = dict.fromkeys(PURPOSES, ALWAYS) | {purpose: ALWAYS | {"until": written(until)}}
                one = scenario.but(events=[raw], history=[record_of(person, 1, said)]).run()[0]
                assert (purpose in by_purpose(one)) is passes
                assert passes or dict(one.refusals)[purpose] == "expired"


LAST = 253_402_300_799_999


@given(promising())
def test_no_output_is_above_the_rung_that_was_allowed(scenario: Scenario) -> None:
    """Nor above that of its purpose; and nothing above `anonymous` comes from a source that is not our own."""
    for raw, outcome in zip(scenario.events, scenario.run(), strict=True):
        for purpose, output in by_purpose(outcome).items():
            rung = RUNGS[output.value["_celosia"]["rung"]]
            consent = folded(scenario.history).of(subject_of(raw, scenario).encode())
            assert consent is not None
            assert Rung.ANONYMOUS <= rung <= consent.grants[purpose].rung
            assert rung <= RUNGS[scenario.policy["purposes"][purpose]["rung"]]
            assert scenario.policy["sources"][raw.source]["own"] or rung == Rung.ANONYMOUS


@given(scenarios())
def test_every_purpose_is_answered_once(scenario: Scenario) -> None:
    """Where consent was asked, each purpose that the event serves is in the outputs or among the refusals, once."""
    for raw, outcome in zip(scenario.events, scenario.run(), strict=True):
        if not outcome.refusals and outcome.kind != "published":
            continue
        kind = scenario.place_of(raw).source.reader.read(raw.value).type
        rules = scenario.policy["events"][kind].values()
        served = [
            purpose
            for purpose in scenario.policy["purposes"]
            if any(rule.get("for") == "all" or purpose in rule.get("for", []) for rule in rules)
        ]
        answered = [*by_purpose(outcome), *(purpose for purpose, _ in outcome.refusals)]
        assert sorted(answered) == sorted(served)


LESS = ["drop", "lower", "later", "sooner"]


@twice_as_many
@given(scenarios(monotone=True, readable=True), st.sampled_from(PURPOSES), st.sampled_from(LESS), st.data())
def test_less_consent_never_reveals_more(scenario: Scenario, purpose: str, how: str, data: st.DataObject) -> None:
    """What is published under less consent can be computed from what is published under more."""
    less_history = [(key, lessen(value, purpose, how, data)) for key, value in scenario.history]
    for event_, more, less in zip(
        scenario.events, scenario.run(), scenario.but(history=less_history).run(), strict=True
    ):
        if more.kind == "quarantined":
            assert (less.kind, less.reason) == (more.kind, more.reason)
            continue
        more_by, less_by = by_purpose(more), by_purpose(less)
        assert set(less_by) <= set(more_by)
        for name, output in less_by.items():
            event(f"{how}: {output.value['_celosia']['rung']}")
            assert_computable(scenario, event_, name, output, more_by[name])


def lessen(record: bytes | None, purpose: str, how: str, data: st.DataObject) -> bytes:
    """Return a consent record that allows less."""
    document = json.loads(record or b"")
    grant = document["purposes"].get(purpose)
    if grant is not None and how == "drop":
        del document["purposes"][purpose]
    elif grant is not None and how == "lower":
        grant["rung"] = data.draw(st.sampled_from([name for name in RUNGS if RUNGS[name] <= RUNGS[grant["rung"]]]))
    elif grant is not None and how == "later":
        grant["since"] = data.draw(st.sampled_from(["2026-02-01T00:00:00Z", "2031-01-01T00:00:00Z"]))
    elif grant is not None:
        grant["until"] = data.draw(st.sampled_from(["2020-01-01T00:00:00Z", "2026-05-01T00:00:00Z"]))
    # `since` is never earlier and `until` never later than it was: the lists above are compared here.
    was = json.loads(record or b"")["purposes"].get(purpose)
    assume(how != "later" or grant is None or was["since"] <= grant["since"])
    assume(how != "sooner" or grant is None or was.get("until") is None or was["until"] >= grant["until"])
    return json.dumps(document).encode()


def assert_computable(scenario: Scenario, raw: Event, purpose: str, less: Published, more: Published) -> None:
    """Compute each part of an output from the one that tells more."""
    less_rung, more_rung = (RUNGS[output.value["_celosia"]["rung"]] for output in (less, more))
    assert less_rung <= more_rung
    assert less.key is None or less.key == more.key or more_rung > less_rung
    assert less_rung >= Rung.PSEUDONYMOUS or (less.key is None and "subject" not in less.value["_celosia"])
    rules = compiled(scenario.policy).policy.events[less.value["_celosia"]["event"]]
    told = dict(leaves(more.value))
    rotate = compiled(scenario.policy).policy.purposes[purpose].rotate or 1
    context = Context(purpose, rotate, MasterKey(SECRET))
    recorded = recorded_at(raw, scenario)
    for path, value in leaves(less.value):
        name, parameters = in_force(rules[path], less_rung)
        if (name, parameters) == in_force(rules[path], more_rung):
            assert value == told[path]
        else:
            assert value == FORMS[name].make(parameters, context)(told[path], recorded)
    # The stamp tells a time as well: no more of it at the lower rung than at the higher.
    assert coarser_or_equal(more.timestamp, less.timestamp)


def in_force(rule: FieldRule, rung: Rung) -> tuple[str, Any]:
    form = form_in_force(rule, rung)
    assert form is not None
    return form


def recorded_at(raw: Event, scenario: Scenario) -> int:
    time = scenario.place_of(raw).source.reader.read(raw.value).time
    return min(scenario.now, raw.timestamp, raw.timestamp if time is None else time)


def latest_of(raw: Event, scenario: Scenario) -> int:
    time = scenario.place_of(raw).source.reader.read(raw.value).time
    return max(scenario.now, raw.timestamp, raw.timestamp if time is None else time)


def subject_of(raw: Event, scenario: Scenario) -> str:
    subject = scenario.place_of(raw).source.reader.read(raw.value).subject
    assert subject is not None
    return subject.decode()


def coarser_or_equal(fine: int, coarse: int) -> bool:
    """Tell whether `coarse` is `fine` cut to a span that `fine` is cut to as well, or to a longer one."""
    context = Context("", 1, MasterKey(SECRET))
    spans = [FORMS[name].make(None, context) for name in ("hour", "day", "month")]
    return coarse in (fine, 0) or any(cut(fine, 0) == cut(coarse, 0) == written(coarse) for cut in spans)


@given(scenarios(), st.randoms(use_true_random=False))
def test_rule_order_does_not_matter(scenario: Scenario, chance: Any) -> None:
    """Purposes, event types, fields, forms and grants may stand in any order."""

    def shuffled(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        items = [(name, shuffled(below)) for name, below in value.items()]
        chance.shuffle(items)
        return dict(items)

    def reordered(key: bytes | None, record: bytes | None) -> bytes | None:
        # A record that cannot be read stays one.
        if key is None or read_consent(record, key.decode(errors="replace")) is None:
            return record
        return json.dumps(shuffled(json.loads(record or b""))).encode()

    policy = {**scenario.policy, **{part: shuffled(scenario.policy[part]) for part in ("purposes", "events")}}
    history = [(key, reordered(key, value)) for key, value in scenario.history]
    other = scenario.but(policy=policy, history=history)
    for one, two in zip(scenario.run(), other.run(), strict=True):
        assert (one.kind, one.reason) == (two.kind, two.reason)
        assert by_purpose(one) == by_purpose(two)
        assert dict(one.refusals) == dict(two.refusals)
        if one.kind == "quarantined":
            assert json.loads(one.outputs[0].value) == json.loads(two.outputs[0].value)


@twice_as_many
@given(scenarios())
def test_every_leaf_is_named(scenario: Scenario) -> None:
    """Each field of an output is named by the policy, for that event, purpose and rung, and is no object or array."""
    for outcome in scenario.run():
        for purpose, output in by_purpose(outcome).items():
            stamp = output.value["_celosia"]
            assert set(stamp) <= {"policy", "version", "purpose", "rung", "event", "consent", "expires_at", "subject"}
            assert ("consent" in stamp) == ("subject" in stamp) == (stamp["rung"] != "anonymous")
            assert ("celosia-consent" in output.headers) == (stamp["rung"] != "anonymous")
            rules = scenario.policy["events"][stamp["event"]]
            for path, value in leaves(output.value):
                assert type(value) in (str, int, float, bool)
                rule = rules[path]
                assert rule["for"] == "all" or purpose in rule["for"]
                ladder = list(RUNGS)[: RUNGS[stamp["rung"]] + 1]
                assert any(rung in rule["as"] for rung in ladder) if "as" in rule else "pseudonymous" in ladder


@twice_as_many
@given(scenarios(), st.data())
def test_no_canary_leaves(scenario: Scenario, data: st.DataObject) -> None:
    """A token in every raw field, name, key and header is found in no output that it may not be in.

    It may be where the policy keeps the field as it is, or the path of an address; the subject's at `identified`.
    """
    subject = "canary0subject"
    canaries: dict[str, str] = {}

    def token(what: str) -> str:
        canaries[what] = f"canary{len(canaries) + 1}x{data.draw(st.integers(1 << 40, 1 << 44)):x}"
        return canaries[what]

    source = next(iter(scenario.policy["sources"].values()))
    kind = data.draw(st.sampled_from(list(scenario.policy["events"])))
    document: dict[str, Any] = {}
    for path in scenario.policy["events"][kind]:
        shapes = ["text", "url", "object", "array", "json"]
        match data.draw(st.sampled_from(shapes)):
            case "text":
                put(document, path, token(path))
            case "url":
                query = f"?q={token(path + ' query')}#{token(path + ' fragment')}"
                put(document, path, f"https://{token(path + ' user')}@shop.example/{token(path)}{query}")
            case "object":
                put(document, path, {token(path + " name"): token(path + " inside")})
            case "array":
                put(document, path, [token(path + " item")])
            case "json":
                put(document, path, json.dumps({"email": token(path)}))
    document[token("unnamed name")] = {token("inner name"): [token("unnamed"), {"deep": token("deep")}]}
    put(document, source["subject"], subject)
    put(document, source["type"], kind)
    if "time" in source:
        put(document, source["time"], NOW - 1000)
    headers = [
        (token("header name"), token("header").encode()),
        ("celosia-origin", token("origin").encode()),
        (token("name of a null header"), None),
    ]
    raw = write(document)
    key = data.draw(st.sampled_from([subject.encode(), token("key").encode()]))
    value = data.draw(st.sampled_from([raw, raw, raw[:-1], raw + b"\xff", b"[%s]" % raw, raw[:-1] + b',"g":"x"}']))
    record = RawEvent(1042, NOW, key, value, headers)

    plan = compiled(scenario.policy)
    said = folded([generous(subject, [*PURPOSES, token("purpose")])])
    said.apply(token("key of a consent").encode(), token("consent").encode())
    outcome = process(record, scenario.place(), said, plan, NOW)
    event(outcome.kind)
    assert_nowhere(repr(record), canaries | {"subject": subject})
    for output in outcome.outputs:
        allowed = allowed_tokens(scenario, kind, output, canaries) if outcome.kind == "published" else set()
        there = repr((output.topic, output.key, output.value, output.headers))
        forbidden = {what: each for what, each in canaries.items() if each not in allowed}
        if outcome.kind != "published" or dict(output.headers)["celosia-rung"] != b"identified":
            forbidden["subject"] = subject
        assert_nowhere(there, forbidden)
    if outcome.kind != "published":
        assert_nowhere(repr(outcome), canaries | {"subject": subject})
    try:
        scenario.place().source.reader.read(value)
    except Rejected as rejected:
        told = "".join(traceback.format_exception(rejected)) + repr(rejected) + str(rejected)
        assert_nowhere(told, canaries | {"subject": subject})


def allowed_tokens(scenario: Scenario, kind: str, output: Output, canaries: dict[str, str]) -> set[str]:
    """Return the tokens that the policy lets an output have."""
    stamp = json.loads(output.value)["_celosia"]
    rung, purpose = RUNGS[stamp["rung"]], stamp["purpose"]
    allowed = set()
    for path, rule in compiled(scenario.policy).policy.events[kind].items():
        form = form_in_force(rule, rung)
        if not (rule.for_ == "all" or (rule.for_ and purpose in rule.for_)) or form is None:
            continue
        if form[0] in ("keep", "url"):
            allowed.add(canaries.get(path, ""))
        if form[0] == "keep":
            allowed |= {canaries.get(f"{path} {part}", "") for part in ("query", "fragment", "user")}
    return allowed


def assert_nowhere(text: str, canaries: dict[str, str]) -> None:
    """Look for tokens as they are, and in the usual disguises."""
    for what, each in canaries.items():
        for disguise in (each, each.encode().hex(), base64.b64encode(each.encode()).decode().rstrip("=")[:-1]):
            assert disguise not in text, f"{what} has leaked"


@given(promising())
def test_minimizing_twice_changes_nothing(scenario: Scenario) -> None:
    """The fields of an output, sent through the same policy once more, come out as they went in.

    Where a pseudonym is among them they do not: to let through what looks like one would be a way around it.
    """
    for raw, outcome in zip(scenario.events, scenario.run(), strict=True):
        for purpose, output in by_purpose(outcome).items():
            stamp = output.value["_celosia"]
            rules = compiled(scenario.policy).policy.events[stamp["event"]]
            fields = dict(leaves(output.value))
            if any(in_force(rules[path], RUNGS[stamp["rung"]])[0] == "pseudonym" for path in fields):
                continue
            source = scenario.policy["sources"][raw.source]
            again = json.loads(json.dumps({name: below for name, below in output.value.items() if name != "_celosia"}))
            put(again, source["subject"], "ana")
            put(again, source["type"], stamp["event"])
            if "time" in source and source["time"] not in fields:
                put(again, source["time"], json.loads(raw.value or b"")[source["time"]])
            said = [record_of("ana", 1, {purpose: ALWAYS | {"rung": stamp["rung"]}})]
            (twice,) = scenario.but(events=[raw._replace(value=write(again), key=b"ana")], history=said).run()
            if twice.reason in ("bad_time", "recorded_before_consent"):
                event("the time of the event was made coarse beyond recognition")
                continue
            event("once more")
            (output_again,) = by_purpose(twice).values()
            assert dict(leaves(output_again.value)) == fields
            assert repr(dict(leaves(output_again.value))) == repr(fields), "1 is not 1.0, and not True"


@given(
    st.sampled_from([name for name, kind in FORMS.items() if kind.idempotent]), scalars, st.integers(0, NOW), st.data()
)
def test_every_form_but_the_pseudonym_returns_its_own_result_unchanged(
    name: str, value: Any, at: int, data: st.DataObject
) -> None:
    examples = [each.parameters for each in FORMS[name].examples]
    form = FORMS[name].make(data.draw(st.sampled_from(examples)), Context("ads", 1000, MasterKey(SECRET)))
    once = form(value, at)
    if once is not ABSENT:
        twice = form(once, at)
        assert (type(twice), twice) == (type(once), once)


# --- nothing that links -----------------------------------------------------------------------------------------------


@given(promising())
def test_outputs_of_two_purposes_cannot_be_linked(scenario: Scenario) -> None:
    """Below `identified`, two purposes share no key, no sealed source and no pseudonym, of whomever they are."""
    tokens: dict[str, set[Any]] = {}
    for outcome in scenario.run():
        for output in outcome.outputs if outcome.kind == "published" else ():
            told = published(output)
            stamp = told.value["_celosia"]
            mine = tokens.setdefault(stamp["purpose"], set())
            mine.add(dict(output.headers)["celosia-source"])
            if stamp["rung"] == "pseudonymous":
                mine |= {told.key, stamp["subject"]}
            rules = compiled(scenario.policy).policy.events[stamp["event"]]
            for path, value in leaves(told.value):
                if in_force(rules[path], RUNGS[stamp["rung"]])[0] == "pseudonym":
                    mine.add(value)
    event(f"{len(tokens)} purposes")
    for one, two in combinations(tokens.values(), 2):
        assert not one & two


@given(promising(), st.data())
def test_an_anonymous_output_is_the_same_whoever_it_is_about(scenario: Scenario, data: st.DataObject) -> None:
    """To the last byte: key, value, headers and time; though one has changed their mind more often than the other."""
    versions = data.draw(st.tuples(st.integers(0, 1000), st.integers(0, 1000)))
    raw = scenario.events[0]
    source = scenario.policy["sources"][raw.source]
    document = data.draw(documents(scenario.policy, source))
    outputs = []
    for person, version in zip(["ana", "ben"], versions, strict=True):
        put(document, source["subject"], person)
        said = record_of(person, version, dict.fromkeys(PURPOSES, ALWAYS | {"rung": "anonymous"}))
        one = raw._replace(value=write(document), key=person.encode())
        (outcome,) = scenario.but(events=[one], history=[said]).run()
        outputs.append([] if outcome.kind == "quarantined" else list(outcome.outputs))
    event(f"{len(outputs[0])} outputs")
    assert outputs[0] == outputs[1]


@given(promising(), st.integers(0, 999), st.integers(0, 1 << 40), st.booleans())
def test_every_output_leads_back_to_its_record(scenario: Scenario, partition: int, offset: int, marked: bool) -> None:
    """For who holds the key: to topic, partition and offset; of a re-keyed record to those of the raw one."""
    plan, consents = compiled(scenario.policy), folded(scenario.history)
    for raw, record in zip(scenario.events, scenario.records(), strict=True):
        place = scenario.place_of(raw)
        headers = [("celosia-origin", b"%d:%d" % (partition, offset))] if marked else []
        outcome = process(record._replace(headers=headers), place, consents, plan, scenario.now)
        there = (partition, offset) if marked and place.source.rekey else (1, record.offset)
        for output in outcome.outputs if outcome.kind == "published" else []:
            headers_by_name = dict(output.headers)
            seal = plan.purposes[headers_by_name["celosia-purpose"].decode()].seal
            topics = [source["topic"] for source in scenario.policy["sources"].values()]
            topic = scenario.policy["sources"][raw.source]["topic"]
            assert seal.open(headers_by_name["celosia-source"], topics) == (topic, *there)


# --- pure -------------------------------------------------------------------------------------------------------------


@given(scenarios(), st.randoms(use_true_random=False))
def test_process_is_pure(scenario: Scenario, chance: Any) -> None:
    """The same input gives the same outcome, whatever came before and how often; what is given is not changed."""
    plan = compile_plan(parse_policy(json.dumps(scenario.policy).encode()), MasterKey(SECRET))
    consents, records = folded(scenario.history), scenario.records()
    people = [person.encode() for person in PEOPLE]

    def all_that_is_given() -> str:
        known = [consents.of(person) for person in people], consents.blocked, consents.rejected, len(consents)
        return repr((known, plan.policy, [tuple(record) for record in records]))

    before, expected = all_that_is_given(), scenario.run()
    order = list(range(len(records))) * 3
    chance.shuffle(order)
    for index in order:
        raw = scenario.events[index]
        assert process(records[index], scenario.place_of(raw), consents, plan, scenario.now) == expected[index]
    assert all_that_is_given() == before


@given(scenarios())
def test_a_batch_gives_what_its_records_give_one_by_one(scenario: Scenario) -> None:
    plan, consents = compiled(scenario.policy), folded(scenario.history)
    for source, keyed in {(raw.source, raw.keyed) for raw in scenario.events}:
        place = scenario.place_of(scenario.events[0]._replace(source=source, keyed=keyed))
        bound = bind(place, consents, plan, scenario.now)
        together = [bound(record) for record in scenario.records()]
        assert together == [process(record, place, consents, plan, scenario.now) for record in scenario.records()]


# --- clocks -----------------------------------------------------------------------------------------------------------


@given(scenarios(), st.sampled_from(["1ms", "2s", "30d"]))
def test_a_wider_skew_serves_no_more(scenario: Scenario, wider: str) -> None:
    """And what it still serves it serves unchanged."""
    narrow = {name: source | {"clock_skew": "0s"} for name, source in scenario.policy["sources"].items()}
    wide = {name: source | {"clock_skew": wider} for name, source in scenario.policy["sources"].items()}
    runs = [scenario.but(policy=scenario.policy | {"sources": sources}).run() for sources in (narrow, wide)]
    for more, less in zip(*runs, strict=True):
        assert by_purpose(less).items() <= by_purpose(more).items()


@given(scenarios(), st.integers(NOW - YEAR, NOW + YEAR))
def test_clock_only_makes_stricter(scenario: Scenario, now: int) -> None:
    """Whatever the clock says, no purpose is served that is not served when it shows the time of the event."""
    for raw, outcome in zip(scenario.events, scenario.but(now=now).run(), strict=True):
        if outcome.kind != "published":
            continue
        right = scenario.but(events=[raw], now=recorded_at(raw, scenario.but(now=1 << 62))).run()[0]
        assert set(by_purpose(outcome)) <= set(by_purpose(right))


@given(scenarios(), st.integers(0, YEAR))
def test_a_later_clock_serves_no_more(scenario: Scenario, later: int) -> None:
    """Once the clock has passed what Kafka and the event say, time only takes away."""
    early = scenario.but(now=NOW + 10 * YEAR)
    for one, two in zip(early.run(), early.but(now=early.now + later).run(), strict=True):
        assert set(by_purpose(two)) <= set(by_purpose(one))


@pytest.mark.parametrize(
    ("forms", "told"),
    [
        (["anonymous: hour"], ["2026-05-17T10:00:00Z"] * 3),
        (["pseudonymous: hour"], ["2026-05-17T00:00:00Z", "2026-05-17T10:00:00Z", "2026-05-17T10:00:00Z"]),
        (["pseudonymous: month"], ["2026-05-01T00:00:00Z"] * 3),
        (["identified: month"], ["2026-05-01T00:00:00Z"] * 3),
        (["anonymous: day", "identified: keep"], ["2026-05-17T00:00:00Z"] * 2 + ["2026-05-17T10:20:30.456Z"]),
        (["pseudonymous: url"], ["2026-05-17T00:00:00Z"] * 3),
    ],
)
def test_a_stamp_tells_the_time_no_finer_than_the_fields_and_no_finer_than_a_higher_rung(
    forms: list[str], told: list[str]
) -> None:
    ladder = dict(form.split(": ") for form in forms)
    behavior = {"is": "user.behavior", "for": "all"}
    for rung, time in zip(["anonymous", "pseudonymous", "identified"], told, strict=True):
        purpose = {"benefit": "Something for you", "topic": "out", "rung": rung, "rotate": "30d", "lifetime": "1s"}
        policy = {
            "policy": "test",
            "version": 1,
            "sources": {"web": {"topic": "raw", "own": True, "subject": "who", "type": "what", "time": "at"}},
            "purposes": {"ads": purpose},
            "events": {"viewed": {"at": behavior | {"as": ladder}, "a": behavior | {"as": {"anonymous": "keep"}}}},
        }
        raw = write({"who": "ana", "what": "viewed", "a": 1, "at": "2026-05-17T10:20:30.456Z"})
        scenario = Scenario(policy, [generous("ana", ["ads"])], [Event(raw, b"ana", NOW, "web")])
        (output,) = by_purpose(scenario.run()[0]).values()
        assert written(output.timestamp) == time
        assert output.value["_celosia"]["expires_at"] == written(output.timestamp + 1000)
