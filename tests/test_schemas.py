"""The JSON Schemas in schemas/ are current, and true of what the program reads and writes.

Where a schema and the program's own reader disagree about a consent record is written down below in `DIFFERENCES`:
JSON Schema speaks of values, so it cannot see a name that is given twice or tell 1.0 from 1; and it asks for times as
RFC 3339 writes them, where the reader takes a few more spellings. They agree that a time has at most six digits after
the second.
"""

import asyncio
import json
from collections.abc import Mapping
from datetime import datetime
from fractions import Fraction
from math import ceil, floor
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker

from streams.consent import read_consent
from streams.event import RawEvent, Reason
from streams.files import choose_source, file_place
from streams.kafka.agents import minimize
from streams.kafka.follower import Follower
from streams.kafka.lane import Lane
from streams.kafka.work import LaneSettings, LaneState, Work
from streams.keys import MasterKey
from streams.lines import read_consents
from streams.outcome import Kind
from streams.pipeline import Place, process, quarantine
from streams.plan import compile_plan
from streams.policy import load_policy, parse_policy
from streams.schemas import main, schemas, text
from streams.testing import MemoryBroker
from streams.transforms import FORMS
from tests.strategies import SINCE, UNTIL, Scenario, broken_consents, policies, readable_consents, scenarios

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "schemas"
EXAMPLES = FOLDER / "examples"
POLICIES = sorted([*FOLDER.glob("policies/*.yaml"), *EXAMPLES.glob("*/policy.yaml")])
MISSHAPEN = [EXAMPLES / name / "policy.yaml" for name in ("bad-policy", "red-line-refused", "unknown-words")]
SCHEMAS = schemas()


def on_the_calendar(value: object) -> bool:
    """Assert `format: date-time`: jsonschema leaves it to a package that is not installed."""
    return not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None


calendar = FormatChecker(formats=())
calendar.checks("date-time", raises=ValueError)(on_the_calendar)


def validator(of: str) -> Any:
    return Draft202012Validator(SCHEMAS[f"{of}.schema.json"], format_checker=calendar)


CONSENT, OUTPUT, QUARANTINE = validator("consent"), validator("output"), validator("quarantine")
POLICY, RECEIPT = validator("policy"), validator("receipt")


def lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def refused(checker: Any, document: Any) -> list[str]:
    return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in checker.iter_errors(document)]


# The files


def test_the_files_are_current() -> None:
    committed = {file.name: file.read_text() for file in FOLDER.glob("*.json")}
    made = {name: text(schema) for name, schema in SCHEMAS.items()}
    old = sorted(name for name in made.keys() | committed.keys() if made.get(name) != committed.get(name))
    assert not old, f"{', '.join(old)} in schemas/ are not what the models say: run make schemas"


def test_they_are_written_where_one_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "new")]) == 0
    assert {file.name for file in (tmp_path / "new").iterdir()} == set(SCHEMAS)
    assert len(capsys.readouterr().out.splitlines()) == len(SCHEMAS)


@pytest.mark.parametrize("name", SCHEMAS)
def test_each_is_a_schema_and_says_what_it_is_of(name: str) -> None:
    schema = SCHEMAS[name]
    Draft202012Validator.check_schema(schema)
    assert schema["title"]
    assert len(schema["description"]) > 20
    assert "$id" not in schema
    assert '"title"' not in text({key: part for key, part in schema.items() if key != "title"})


# Policies


@pytest.mark.parametrize("file", POLICIES, ids=lambda file: str(file.relative_to(FOLDER)))
def test_policies_of_the_repository(file: Path) -> None:
    findings = refused(POLICY, yaml.safe_load(file.read_bytes()))
    assert bool(findings) == (file in MISSHAPEN), findings


@given(policies())
def test_a_policy_that_loads_fits(policy: dict[str, Any]) -> None:
    compile_plan(parse_policy(json.dumps(policy).encode()), MasterKey(bytes(32)))
    assert not refused(POLICY, policy)


FORM = POLICY.evolve(schema={"$ref": "#/$defs/Form", "$defs": SCHEMAS["policy.schema.json"]["$defs"]})


@pytest.mark.parametrize("kind", FORMS.values(), ids=FORMS.keys())
def test_forms_may_be_written_as_their_examples_are(kind: Any) -> None:
    for example in kind.examples:
        form = kind.name if example.parameters is None else {kind.name: example.parameters}
        assert not refused(FORM, form)


@pytest.mark.parametrize(
    "form",
    [
        "round", "bucket", "hash", {}, {"round": 10, "hour": None}, {"hour": 1}, {"keep": None}, {"round": 0},
        {"round": "10"}, {"bucket": []}, {"truncate_ip": {"v4": 32}}, {"truncate_ip": {"v5": 1}}, {"url": ["q"]}, 3,
    ],
)  # fmt: skip
def test_other_forms_do_not_fit(form: Any) -> None:
    assert refused(FORM, form)


@pytest.mark.parametrize(
    ("where", "change"),
    [
        ((), {"colour": "blue"}),
        ((), {"version": 0}),
        ((), {"sources": {}}),
        (("sources", "web"), {"shape": "snowplow"}),
        (("sources", "web"), {"own": "yes"}),
        (("sources", "web"), {"clock_skew": 2}),
        (("purposes",), {"Ads!": {}}),
        (("purposes", "marketing.contact"), {"rung": "all"}),
        (("purposes", "marketing.contact"), {"rotate": "often"}),
        (("events", "product_viewed", "context.ip"), {"for": "all"}),
        (("events", "product_viewed", "context.ip"), {"as": {"anonymous": "keep"}}),
        (("events", "product_viewed", "traits.email"), {"is": "user.demographic.gender"}),
        (("events", "product_viewed", "traits.email"), {"is": "user.contact.emial"}),
        (("events", "product_viewed", "traits.email"), {"as": {"nothing": "keep"}}),
    ],
)
def test_a_sound_policy_with_one_mistake_does_not_fit(where: tuple[str, ...], change: dict[str, Any]) -> None:
    policy = yaml.safe_load((FOLDER / "policies" / "shop.yaml").read_bytes())
    place = policy
    for step in where:
        place = place[step]
    place |= change
    assert refused(POLICY, policy)


# Consents


def test_consents_of_the_repository() -> None:
    records = [record for file in EXAMPLES.glob("*/consents.ndjson") for record in lines(file)]
    records += lines(ROOT / "docker" / "consents.ndjson")
    records += [
        line["consent"] for file in EXAMPLES.glob("*/stream.ndjson") for line in lines(file) if "consent" in line
    ]
    assert len(records) > 10
    for record in records:
        assert not refused(CONSENT, record)
        read_consent(json.dumps(record).encode())


def reads(value: bytes | None) -> bool:
    try:
        read_consent(value or b"")
    except ValueError:
        return False
    return True


def fits(value: bytes | None) -> bool:
    """Tell what a schema says of bytes: those that are no JSON in UTF-8 do not come so far."""
    try:
        document = json.loads((value or b"").decode())
    except (ValueError, RecursionError):
        return False
    return not refused(CONSENT, document)


_RUNG_TWICE = b'{"subject":"ana","version":1,"purposes":{"ads":{"rung":"nothing","rung":"identified","since":"%b"}}}'
_LAXLY_WRITTEN = ["2020-01-01 00:00:00Z", "2020-01-01t00:00:00Z", "2020-01-01T00:00:00z", "2020-01-01T00:00:00+0200"]


def consent_since(since: str) -> bytes:
    grant = {"rung": "identified", "since": since}
    return json.dumps({"subject": "ana", "version": 1, "purposes": {"ads": grant}}).encode()


DIFFERENCES = [
    # (value, the schema takes it, the program reads it)
    (_RUNG_TWICE % SINCE[0].encode(), True, False),  # a name given twice: the last one is all that a schema sees
    (b'{"subject":"ana","version":1.0,"purposes":{}}', True, False),  # to JSON Schema, 1.0 is an integer
    (b'{"subject":"ana","version":1e3,"purposes":{}}', True, False),
    (b'{"subject":"\\ud800","version":1,"purposes":{}}', True, False),  # half of a character
    *[(consent_since(since), False, True) for since in _LAXLY_WRITTEN],  # times that RFC 3339 writes otherwise
]


@pytest.mark.parametrize(("value", "schema_says", "program_says"), DIFFERENCES)
def test_where_schema_and_program_differ(value: bytes, schema_says: bool, program_says: bool) -> None:
    assert (fits(value), reads(value)) == (schema_says, program_says)


@pytest.mark.parametrize(
    "fraction", ["0000004", "0009999999", "0000000", "123456789", "\\u0030000004", "0000004\\u0030", "000000\\u0034"]
)
@pytest.mark.parametrize("name", ["since", "until", "sinc\\u0065"])
def test_a_time_finer_than_a_microsecond_goes_to_the_strict_side(name: str, fraction: str) -> None:
    # The decoder would round these: 0.4 us down to a `since` that is too early, 999.9999 us up to a late `until`.
    times = {"since": SINCE[0], "until": "2030-01-01T00:00:00Z"}
    del times["since" if name.startswith("sinc") else name]
    others = "".join(f'"{other}":"{time}",' for other, time in times.items())
    grant = f'{{"rung":"identified",{others}"{name}":"2029-12-31T00:00:00.{fraction}Z"}}'
    value = f'{{"subject":"ana","version":1,"purposes":{{"ads":{grant}}}}}'.encode()
    assert (fits(value), reads(value)) == (True, True)
    made = read_consent(value)[1].grants["ads"]
    digits = json.loads(f'"{fraction}"')
    exact = 1000 * Fraction(f"0.{digits}")
    base = 1_893_369_600_000  # 2029-12-31T00:00:00Z
    if name == "until":
        assert made.until == base + floor(exact)
    else:
        assert made.since == base + ceil(exact)


def test_what_is_no_time_may_look_like_a_fine_one() -> None:
    grant = {"rung": "identified", "since": "2026-01-01T00:00:00.000001Z", "until": "2026-01-01T00:00:00.999999Z"}
    purposes = {"since": grant, "v.12345678": grant}
    value = json.dumps({"subject": "GA1.2.1234567890", "version": 1, "purposes": purposes}).encode()
    assert (fits(value), reads(value)) == (True, True)
    since, until = 1_767_225_600_001, 1_767_225_600_999
    assert {(made.since, made.until) for made in read_consent(value)[1].grants.values()} == {(since, until)}


MOMENTS: st.SearchStrategy[Any] = st.sampled_from(
    [
        *SINCE, *UNTIL, "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-01:00", "2024-02-29T12:00:00.123456789Z",
        "2026-02-30T00:00:00Z", "2025-02-29T00:00:00Z", "0000-01-01T00:00:00Z", "2026-13-01T00:00:00Z",
        "2026-01-01T24:00:00Z", "2026-01-01T00:00:60Z", "2026-01-01T00:00:00", "2026-01-01T00:00Z", "2026-01-01",
        "2026-01-01T00:00:00+24:00", "2026-01-01T00:00:00+02", "2026-01-01T00:00:00.Z", "2026-01-01T00:00:00,5Z",
        "\uff12026-01-01T00:00:00Z", " 2026-01-01T00:00:00Z", "soon", "", 0, 1_767_225_600_000, True, [],
    ]
)  # fmt: skip
ODD: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, -1, 1 << 63, (1 << 63) - 1, 0.5, "", "ana", "7", [], {}, ["nothing"]]
)
GRANTS = st.fixed_dictionaries(
    {},
    optional={
        "rung": st.one_of(st.sampled_from(["nothing", "crowd", "identified", "Identified", "all"]), ODD),
        "since": st.one_of(MOMENTS, ODD),
        "until": st.one_of(MOMENTS, ODD),
        "reason": ODD,
    },
)
NEARLY_CONSENTS = st.fixed_dictionaries(
    {},
    optional={
        "subject": st.one_of(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), ODD),
        "version": st.one_of(st.integers(-1, 1 << 64), ODD),
        "purposes": st.one_of(st.dictionaries(st.text("abc.", max_size=3), st.one_of(GRANTS, ODD), max_size=2), ODD),
        "limit": ODD,
    },
)


@given(st.one_of(NEARLY_CONSENTS, readable_consents("ana")))
def test_schema_and_program_agree_about_consents(record: Any) -> None:
    value = json.dumps(record).encode()
    assert fits(value) == reads(value)


@given(GRANTS)
def test_schema_and_program_agree_about_grants(grant: Any) -> None:
    value = json.dumps({"subject": "ana", "version": 1, "purposes": {"ads": grant}}).encode()
    assert fits(value) == reads(value)


def hidden_from_a_schema(value: bytes) -> bool:
    """Tell whether a record gives a name twice, or writes an integer with a point."""
    found = []

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found.append(len(dict(pairs)) != len(pairs))
        return dict(pairs)

    json.loads(value, object_pairs_hook=look, parse_float=lambda _: found.append(True))
    return any(found)


@given(broken_consents("ana"))
def test_a_broken_consent_fits_only_where_a_schema_cannot_look(value: bytes | None) -> None:
    if fits(value) != reads(value):
        assert value is not None
        assert hidden_from_a_schema(value)


# What the program writes


@given(scenarios())
def test_real_outputs_and_quarantine_records_fit(scenario: Scenario) -> None:
    for outcome in scenario.run():
        checker = QUARANTINE if outcome.kind is Kind.QUARANTINED else OUTPUT
        for output in outcome.outputs:
            assert not refused(checker, json.loads(output.value))


def test_expected_results_of_the_stories_fit() -> None:
    for file in EXAMPLES.glob("*/expected/*.ndjson"):
        if file.name != "outcomes.ndjson":
            checker = QUARANTINE if file.name == "quarantine.ndjson" else OUTPUT
            assert not [finding for line in lines(file) for finding in refused(checker, line)]


def test_every_reason_and_every_kind_of_key_fits() -> None:
    plan = compile_plan(load_policy(FOLDER / "policies" / "shop.yaml"), MasterKey(bytes(32)))
    for reason in Reason:
        for key in (None, b"", b"ana"):
            record = RawEvent(3, 0, key, b'{"type": null, "traits": [], "subject_id": true, "@": 1}')
            [output] = quarantine(record, Place(plan.sources[0], 0), plan, reason).outputs
            assert not refused(QUARANTINE, json.loads(output.value))


def published() -> Any:
    """Return an output of the sample events that says whom it is about."""
    plan = compile_plan(load_policy(FOLDER / "policies" / "retail.yaml"), MasterKey(bytes(32)))
    place = file_place(plan, choose_source(plan, None))
    consents = read_consents(ROOT / "docker" / "consents.ndjson").consents
    now = 1_780_000_000_000
    for line in (ROOT / "docker" / "events.ndjson").read_bytes().splitlines():
        for output in process(RawEvent(0, now, None, line), place, consents, plan, now).outputs:
            document = json.loads(output.value)
            if document["_celosia"]["rung"] == "pseudonymous":
                return document
    raise AssertionError("no sample event is published under a pseudonym")


@pytest.mark.parametrize(
    "stamp",
    [
        {"subject": "17850"}, {"subject": None}, {"rung": "anonymous"}, {"rung": "crowd"}, {"expires_at": "never"},
        {"version": 0}, {"customer": "17850"}, {"consent": None}, {"consent": -1},
    ],
)  # fmt: skip
def test_an_output_with_another_stamp_does_not_fit(stamp: dict[str, Any]) -> None:
    output = published()
    assert not refused(OUTPUT, output)
    assert refused(OUTPUT, output | {"_celosia": output["_celosia"] | stamp})


def test_an_anonymous_output_that_says_anything_of_its_person_does_not_fit() -> None:
    output = published()
    stamp = {name: value for name, value in output["_celosia"].items() if name not in ("consent", "subject")}
    anonymous = stamp | {"rung": "anonymous"}
    assert refused(OUTPUT, output | {"_celosia": stamp})
    assert not refused(OUTPUT, output | {"_celosia": anonymous})
    assert refused(OUTPUT, output | {"_celosia": anonymous | {"consent": 1}})
    assert refused(OUTPUT, output | {"_celosia": anonymous | {"subject": "17850"}})


@pytest.mark.parametrize("field", [None, [], ["a"], {}, {"deep": {"er": [1]}}, {"deep": None}])
def test_an_output_with_a_leaf_that_no_form_gives_does_not_fit(field: Any) -> None:
    assert refused(OUTPUT, published() | {"field": field})


def test_an_output_without_stamp_or_fields_does_not_fit() -> None:
    output = published()
    assert refused(OUTPUT, {"_celosia": output["_celosia"]})
    assert refused(OUTPUT, {name: value for name, value in output.items() if name != "_celosia"})


class Unwatched:
    """Hears nothing of a lane."""

    def state(self, lane: str, state: LaneState) -> None: ...

    def gate(self, lane: str, seconds: float) -> None: ...

    def committed(self, lane: str, work: Work, seconds: float, offsets: Mapping[str, int]) -> None: ...

    def receipt(self, lane: str, through: int, written: list[int]) -> None: ...


async def test_a_real_receipt_fits() -> None:
    plan = compile_plan(load_policy(FOLDER / "policies" / "retail.yaml"), MasterKey(bytes(32)))
    consents, receipts = plan.policy.topic("consents"), plan.policy.topic("receipts")
    broker = MemoryBroker()
    for line in (ROOT / "docker" / "consents.ndjson").read_bytes().splitlines():
        broker.append(consents, 0, json.loads(line)["subject"].encode(), line, 0)
    follower = Follower(0, broker.consents(consents, 0), lambda _key: True)
    port = broker.lane("lane-0", [plan.sources[0].topic], consents, 0)
    lane = Lane(
        minimize, 0, port, follower,
        plan=plan, partitions=1, clock=lambda: 0, settings=LaneSettings(), watch=Unwatched(),
    )  # fmt: skip
    tasks = [asyncio.ensure_future(follower.run()), asyncio.ensure_future(lane.run())]
    async with asyncio.timeout(10):
        while not (written := broker.read(receipts, 0)):
            await broker.changed()
    lane.stop()
    tasks[0].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for record in written:
        assert record.value is not None
        receipt = json.loads(record.value)
        assert not refused(RECEIPT, receipt)
        assert refused(RECEIPT, receipt | {"subject": "17850"})
