"""`celosia explain` says what the pipeline does, and tells no value."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.consent import Consents, Refusal
from streams.event import Reason
from streams.explain import WORDS, Explanation, Fate, explain, render
from streams.files import file_place, line_event
from streams.keys import MasterKey
from streams.plan import Plan, compile_plan
from streams.policy import load_policy, parse_policy

ROOT = Path(__file__).parent.parent
NOW = 1_772_400_000_000  # 2026-03-01T21:20:00Z
RECOMMENDATIONS, CONTACT = "personalization.recommendations", "marketing.contact"


def shop() -> Plan:
    return compile_plan(load_policy(ROOT / "schemas" / "policies" / "shop.yaml"), MasterKey(bytes(32)))


def view(**more: Any) -> bytes:
    event = {
        "event_id": "e1",
        "type": "product_viewed",
        "occurred_at": "2026-03-01T09:30:00Z",
        "subject_id": "ana",
        "properties": {"product_id": "p1", "category": "lamps", "price": 31.5},
        "context": {"page": {"url": "https://shop.example/p1?q=gift"}, "ip": "203.0.113.7"},
        "traits": {"email": "ana@example.org", "birth_date": "1990-01-01"},
    }
    return json.dumps(event | more).encode()


def consent(**rungs: str) -> Consents:
    names = {"recommendations": RECOMMENDATIONS, "contact": CONTACT}
    grants = {names[name]: {"rung": rung, "since": "2026-01-01T00:00:00Z"} for name, rung in rungs.items()}
    consents = Consents()
    consents.apply(b"ana", json.dumps({"subject": "ana", "version": 1, "purposes": grants}).encode())
    return consents


def explained(event: bytes, consents: Consents, plan: Plan | None = None) -> Explanation:
    plan = plan or shop()
    return explain(plan, file_place(plan, plan.sources[0]), line_event(event, 0, NOW), consents, NOW)


def fates(explanation: Explanation, purpose: str) -> dict[str, tuple[Fate, str, str]]:
    [found] = [fate for fate in explanation.purposes if fate.purpose == purpose]
    return {item.path: (item.fate, item.why, item.rule) for item in found.fields}


def test_every_reason_has_its_words() -> None:
    assert set(WORDS) == {*Refusal, *Reason}


def test_each_field_has_its_fate_with_the_rule_that_says_so() -> None:
    explanation = explained(
        view(properties={"product_id": {"a": 1}, "category": None}), consent(recommendations="identified")
    )
    where = "events.product_viewed"
    assert fates(explanation, RECOMMENDATIONS) == {
        "event_id": (Fate.PUBLISHED, "as pseudonym", f"{where}.event_id.as.pseudonymous"),
        "subject_id": (Fate.NOT_FOR_PURPOSE, "it serves none", f"{where}.subject_id"),
        "type": (Fate.DROPPED, "the stamp says it", f"{where}.type.drop"),
        "occurred_at": (Fate.PUBLISHED, "as hour", f"{where}.occurred_at.as.pseudonymous"),
        "properties.product_id": (
            Fate.UNFIT,
            "it is an object, and only single values pass",
            f"{where}.properties.product_id.for",
        ),
        "properties.category": (
            Fate.ABSENT,
            "the event has no value there",
            f"{where}.properties.category.as.anonymous",
        ),
        "properties.price": (Fate.ABSENT, "the event has no value there", f"{where}.properties.price.as.pseudonymous"),
        "context.page.url": (
            Fate.PUBLISHED,
            "as url {keep_query: [utm_source]}",
            f"{where}.context.page.url.as.pseudonymous",
        ),
        "context.ip": (Fate.DROPPED, "not needed", f"{where}.context.ip.drop"),
        "traits.email": (Fate.NOT_FOR_PURPOSE, "it serves marketing.contact", f"{where}.traits.email.for"),
        "traits.birth_date": (Fate.DROPPED, "sensitive", f"{where}.traits.birth_date.drop"),
    }
    assert fates(explanation, CONTACT)["traits.email"] == (Fate.REFUSED, "not_allowed", f"{where}.traits.email.for")


def test_a_lower_rung_has_fewer_forms() -> None:
    fields = fates(explained(view(), consent(recommendations="anonymous")), RECOMMENDATIONS)
    assert fields["properties.price"][:2] == (Fate.NO_FORM, "at anonymous; the lowest rung with one is pseudonymous")
    assert fields["properties.category"][0] is Fate.PUBLISHED
    assert fields["occurred_at"][:2] == (Fate.PUBLISHED, "as day")


def test_a_value_that_does_not_fit_is_told_by_its_form_only() -> None:
    event = view(properties={"price": "thirty"}, context={"page": {"url": "mailto:ana@example.org"}})
    fields = fates(explained(event, consent(recommendations="pseudonymous")), RECOMMENDATIONS)
    assert fields["properties.price"][:2] == (Fate.UNFIT, "its value is none that round 10 takes")
    assert fields["context.page.url"][0] is Fate.UNFIT


@pytest.mark.parametrize(
    ("event", "consents", "first_line"),
    [
        (view(), consent(), "suppressed: not_allowed: the person does not allow this purpose"),
        (view(), Consents(), "suppressed: no_consent: nothing is known about this person's consent"),
        (view(subject_id=None), consent(), "suppressed: no_subject: the event is about nobody"),
        (view(type="checkout"), consent(), "suppressed: event_not_named: the policy names no field"),
        (
            view(occurred_at="2025-12-31T00:00:00Z"),
            consent(contact="identified"),
            "suppressed: recorded_before_consent",
        ),
        (view(), consent(contact="crowd"), "suppressed: rung_too_low: at the rung in force"),
        (view(), consent(contact="identified"), "published to 1 of 2 purposes"),
        (view(occurred_at="today"), consent(), "quarantined: bad_time: the time is missing"),
        (b"{", consent(), "quarantined: malformed: it is not one JSON document"),
    ],
)
def test_the_first_line_tells_the_outcome(event: bytes, consents: Consents, first_line: str) -> None:
    assert render(explained(event, consents))[0].startswith(first_line)


def test_one_purpose_can_be_asked_for() -> None:
    text = "\n".join(render(explained(view(), consent(contact="identified")), CONTACT))
    assert f"{CONTACT}: published as identified to marketing.contact" in text
    assert f"{RECOMMENDATIONS}: " not in text


def test_fields_without_a_name_are_counted() -> None:
    event = view(session={"id": 1, "agents": ["a", "b"]}, customer_name="Ana")
    assert explained(event, consent()).unnamed == 4
    assert render(explained(event, consent()))[-1].startswith("4 more values at paths that the policy does not name")


def test_an_event_that_is_quarantined_publishes_no_field() -> None:
    event = view(properties={"product_id": "x" * 1_000_000})
    explanation = explained(event, consent(recommendations="pseudonymous", contact="identified"))
    assert explanation.outcome.reason is Reason.TOO_LARGE
    assert explanation.published == {}
    assert Fate.PUBLISHED not in {item.fate for fate in explanation.purposes for item in fate.fields}


def published_leaves(value: Any, path: str = "") -> list[str]:
    if isinstance(value, dict):
        return [leaf for name, below in value.items() for leaf in published_leaves(below, f"{path}.{name}")]
    return [path.removeprefix(".")]


SCALAR = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
ANY = SCALAR | st.lists(SCALAR, max_size=2) | st.dictionaries(st.text(max_size=3), SCALAR, max_size=2)
RUNG = st.sampled_from(["nothing", "crowd", "anonymous", "pseudonymous", "identified"])
TIME = st.sampled_from(
    ["2025-12-31T23:59:59Z", "2026-03-01T09:30:00Z", "2026-03-02T00:00:00Z", 1_772_400_000_001, None]
)
FORMS = ["keep", "drop", "hour", "month", "truncate_ip", "url", "pseudonym", {"round": 10}, {"bucket": [0, 10]}]
PATHS = ["when", "a", "b.c", "b.d", "e.f.g"]


@st.composite
def policies(draw: st.DrawFn) -> Plan:
    """A policy of two purposes and any forms."""
    fields: dict[str, Any] = {}
    for path in draw(st.lists(st.sampled_from(PATHS), unique=True, min_size=1)):
        rule: dict[str, Any] = {"is": "user.behavior"}
        match draw(st.sampled_from(["none", "drop", "kept", "formed"])):
            case "drop":
                rule["drop"] = "not needed"
            case "kept":
                rule["for"] = draw(st.sampled_from(["all", ["p"], ["q"]]))
            case "formed":
                rule["for"] = draw(st.sampled_from(["all", ["p"], ["q"]]))
                rungs = st.sampled_from(["crowd", "anonymous", "pseudonymous", "identified"])
                rule["as"] = draw(st.dictionaries(rungs, st.sampled_from(FORMS), min_size=1, max_size=3))
        fields[path] = rule
    source = {"topic": "raw", "own": True, "subject": "who", "type": "what", "time": "when", "clock_skew": "5s"}
    purposes = {
        name: {"benefit": "something good", "topic": name, "rung": rung, "lifetime": "30d", "rotate": "30d"}
        for name, rung in (("p", draw(RUNG.filter(lambda rung: rung not in ("nothing", "crowd")))), ("q", "identified"))
    }
    policy = {
        "policy": "any",
        "version": 1,
        "sources": {"s": source},
        "purposes": purposes,
        "events": {"bought": fields, "left": {}},
    }
    return compile_plan(parse_policy(json.dumps(policy).encode()), MasterKey(bytes(32)))


@st.composite
def events(draw: st.DrawFn) -> bytes:
    event = {
        "who": draw(st.sampled_from(["ana", "ben", None])),
        "what": draw(st.sampled_from(["bought", "left", "else"])),
    }
    document: dict[str, Any] = event | {"when": draw(TIME), "a": draw(ANY), "other": draw(ANY)}
    document |= {"b": draw(st.none() | st.fixed_dictionaries({}, optional={"c": ANY, "d": ANY, "x": ANY}))}
    document |= {"e": draw(st.just({}) | st.fixed_dictionaries({"f": st.just({}) | st.fixed_dictionaries({"g": ANY})}))}
    return json.dumps(document).encode()


@st.composite
def consents_of_ana(draw: st.DrawFn) -> Consents:
    since = st.sampled_from(["2026-01-01T00:00:00Z", "2026-03-01T09:29:58Z"])
    until = st.sampled_from(["2026-02-01T00:00:00Z", "2026-03-01T21:20:00Z", "2027-01-01T00:00:00Z"])
    grant = st.fixed_dictionaries({"rung": RUNG, "since": since}, optional={"until": until})
    consents = Consents()
    purposes = draw(st.dictionaries(st.sampled_from(["p", "q"]), grant))
    record = {"subject": "ana", "version": draw(st.sampled_from([1, "one"])), "purposes": purposes}
    consents.apply(b"ana", json.dumps(record).encode())
    if draw(st.sampled_from([False] * 9 + [True])):
        consents.apply(None, b"")
    return consents


@settings(deadline=None)
@given(policies(), events(), consents_of_ana())
def test_what_is_explained_is_what_is_published(plan: Plan, event: bytes, consents: Consents) -> None:
    explanation = explained(event, consents, plan)
    told = {plan.purposes[name].topic: sorted(paths) for name, paths in explanation.published.items()}
    bodies = {output.topic: json.loads(output.value) for output in explanation.outcome.outputs}
    if explanation.outcome.kind == "quarantined":
        bodies = {}
    stamps = {topic: body.pop("_celosia") for topic, body in bodies.items()}
    assert told == {topic: sorted(published_leaves(body)) for topic, body in bodies.items()}
    # The rungs and the refusals are those of the pipeline, too.
    rungs = {fate.topic: fate.rung for fate in explanation.purposes if fate.rung is not None}
    assert rungs == {topic: stamp["rung"] for topic, stamp in stamps.items()}
    refused = {fate.purpose: fate.why.partition(":")[0] for fate in explanation.purposes if fate.rung is None}
    assert refused.items() >= {name: why.value for name, why in explanation.outcome.refusals}.items()
    assert render(explanation)


CANARY = st.text("abcdefghijklmnop", min_size=8, max_size=8).map(lambda text: f"canary{text}")


@settings(deadline=None)
@given(CANARY, RUNG)
def test_no_canary_is_told(canary: str, rung: str) -> None:
    """In every value, in names that the policy does not name, in the subject, the type and the consent."""
    known = {
        "event_id": canary,
        "properties": {"product_id": canary, "category": {canary: canary}, "price": canary, canary: 1},
        "context": {"page": {"url": f"https://{canary}.example/{canary}?q={canary}"}, "ip": canary, canary: [canary]},
        "traits": {"email": canary, "birth_date": canary, canary: None},
        canary: canary,
    }
    grants = {name: {"rung": rung, "since": "2026-01-01T00:00:00Z"} for name in (RECOMMENDATIONS, CONTACT, canary)}
    consents = Consents()
    consents.apply(canary.encode(), json.dumps({"subject": canary, "version": 1, "purposes": grants}).encode())
    for more in ({}, {"type": canary}, {"occurred_at": canary}, {"context": canary}, {"subject_id": [canary]}):
        explanation = explained(view(**({"subject_id": canary} | known | more)), consents)
        assert "canary" not in "\n".join(render(explanation))
