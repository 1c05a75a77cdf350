"""Plans: which form of which field holds at which rung."""

import json
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from streams.consent import Rung
from streams.errors import PolicyError
from streams.keys import MasterKey, Pseudonyms, Seal
from streams.plan import Plan, compile_plan, form_in_force
from streams.policy import FieldRule, parse_policy
from streams.transforms import time as forms_of_time

HOUR, DAY = 3_600_000, 86_400_000
AT = 20_513 * DAY + 9 * HOUR + 59 * 60_000 + 1  # 2026-03-01T09:59:00.001Z
PURPOSE = {"benefit": "Suggestions that fit you", "rung": "identified", "rotate": "30d", "lifetime": "30d"}
SOURCE = {"topic": "raw", "own": True, "subject": "who", "type": "what", "time": "at"}
BEHAVIOR = {"is": "user.behavior", "for": "all"}


def plan_of(fields: dict[str, Any], sources: dict[str, Any] | None = None, **purposes: Any) -> Plan:
    """Compile a policy with one event, `seen`; purposes are `ads` unless told otherwise, each by what is special."""
    policy = {
        "policy": "shop",
        "version": 3,
        "sources": sources or {"web": SOURCE},
        "purposes": {name: PURPOSE | {"topic": name} | more for name, more in (purposes or {"ads": {}}).items()},
        "events": {"seen": fields},
    }
    return compile_plan(parse_policy(json.dumps(policy).encode()), MasterKey(bytes(32)), "shop.yaml")


def recipes_of(plan: Plan, source: int = 0) -> dict[str, Any]:
    (service,) = plan.sources[source].services["seen"]
    return {rung.name.lower(): service.recipes[rung] for rung in Rung}


def rule(forms: dict[str, Any] | None = None) -> FieldRule:
    return FieldRule.model_validate(BEHAVIOR | ({} if forms is None else {"as": forms}))


# --- forms by rung ----------------------------------------------------------------------------------------------------

KEEP, DROP, DAY_, STEP = ("keep", None), ("drop", None), ("day", None), ("round", 10)


@pytest.mark.parametrize(
    ("forms", "crowd", "anonymous", "pseudonymous", "identified"),
    [
        (None, None, None, KEEP, KEEP),
        ({}, None, None, None, None),
        ({"crowd": "day"}, DAY_, DAY_, DAY_, DAY_),
        ({"anonymous": "day"}, None, DAY_, DAY_, DAY_),
        ({"pseudonymous": {"round": 10}}, None, None, STEP, STEP),
        ({"identified": "keep"}, None, None, None, KEEP),
        ({"identified": "keep", "anonymous": "day"}, None, DAY_, DAY_, KEEP),
        ({"anonymous": "keep", "pseudonymous": "drop", "identified": {"round": 10}}, None, KEEP, DROP, STEP),
    ],
)
def test_a_form_holds_for_its_rung_and_those_above(
    forms: dict[str, Any] | None, crowd: Any, anonymous: Any, pseudonymous: Any, identified: Any
) -> None:
    in_force = [form_in_force(rule(forms), rung) for rung in Rung]
    assert in_force == [None, crowd, anonymous, pseudonymous, identified]


def test_each_rung_has_a_recipe_of_the_fields_that_have_a_form_there() -> None:
    fields = {
        "low": BEHAVIOR | {"as": {"anonymous": "keep"}},
        "plain": BEHAVIOR,
        "high": BEHAVIOR | {"as": {"identified": "keep"}},
        "gone": {"is": "user.contact.email", "drop": "not needed"},
        "who": {"is": "user.unique_id"},
    }
    paths = {rung: recipe and recipe.paths for rung, recipe in recipes_of(plan_of(fields)).items()}
    assert paths == {
        "nothing": None,
        "crowd": None,
        "anonymous": ("low",),
        "pseudonymous": ("low", "plain"),
        "identified": ("low", "plain", "high"),
    }


def test_no_recipe_is_above_the_rung_of_its_purpose() -> None:
    recipes = recipes_of(plan_of({"page": BEHAVIOR}, ads={"rung": "pseudonymous"}))
    assert [rung for rung, recipe in recipes.items() if recipe] == ["pseudonymous"]
    recipes = recipes_of(plan_of({"page": BEHAVIOR}, ads={"rung": "anonymous"}))
    assert not any(recipes.values()), "the field has no form at the only rung that the purpose may use"


def test_a_source_that_is_not_our_own_is_anonymous_at_every_rung() -> None:
    fields = {"page": {"is": "system.operations", "for": "all", "as": {"anonymous": "day", "pseudonymous": "keep"}}}
    recipes = recipes_of(plan_of(fields, {"partner": SOURCE | {"own": False}}))
    assert {rung: recipe and recipe.rung for rung, recipe in recipes.items()} == {
        "nothing": None,
        "crowd": None,
        "anonymous": Rung.ANONYMOUS,
        "pseudonymous": Rung.ANONYMOUS,
        "identified": Rung.ANONYMOUS,
    }
    for recipe in filter(None, recipes.values()):
        assert recipe.stamp(0, 7).json == (
            b'{"policy":"shop","version":3,"purpose":"ads","rung":"anonymous","event":"seen",'
            b'"expires_at":"1970-01-31T00:00:00Z"'
        )


def test_a_purpose_that_no_field_names_is_no_service() -> None:
    plan = plan_of({"page": BEHAVIOR | {"for": ["ads"]}, "who": {"is": "user.unique_id"}}, ads={}, news={})
    assert [service.purpose.name for service in plan.sources[0].services["seen"]] == ["ads"]
    assert set(plan.purposes) == {"ads", "news"}


def test_services_come_in_the_order_of_the_purposes() -> None:
    plan = plan_of({"page": BEHAVIOR | {"for": ["news", "ads"]}}, ads={}, news={})
    assert [service.purpose.name for service in plan.sources[0].services["seen"]] == ["ads", "news"]


# --- sources ----------------------------------------------------------------------------------------------------------


def test_a_source_whose_key_is_another_is_read_from_the_topic_of_re_keyed_events() -> None:
    sources = {"web": SOURCE, "app": SOURCE | {"topic": "app", "key": "other", "clock_skew": "2s"}}
    web, app = plan_of({"page": BEHAVIOR}, sources).sources
    assert (web.topic, web.raw_topic, web.rekey, web.clock_skew) == ("raw", "raw", False, 0)
    assert (app.topic, app.raw_topic, app.rekey, app.clock_skew) == ("shop.rekeyed.app", "app", True, 2000)


def test_the_names_that_may_be_shown_are_those_of_the_policy() -> None:
    plan = plan_of({"item.price": BEHAVIOR, "gone": {"is": "user.contact.email", "drop": "not needed"}})
    assert plan.sources[0].known_paths == {"who", "what", "at", "item.price", "gone"}


def test_a_plan_holds_the_key_that_it_was_made_with() -> None:
    policy, master = plan_of({"page": BEHAVIOR | {"as": {"pseudonymous": "pseudonym"}}}).policy, MasterKey(b"k" * 32)
    plan = compile_plan(policy, master)
    assert plan.master is master
    assert plan.policy is policy
    assert plan.purposes["ads"].pseudonym(b"ana", AT) == Pseudonyms(master, "ads", 30 * DAY)(b"ana", AT)
    assert plan.purposes["ads"].seal("raw", 3, 4) == Seal(master, "ads")("raw", 3, 4)
    recipe = recipes_of(plan)["pseudonymous"]
    assert recipe is not None
    ((_, form),) = recipe.forms
    assert form("/lamp", AT) == Pseudonyms(master, "ads", 30 * DAY, kind="field")(b"/lamp", AT).decode()


def test_a_plan_is_named_by_policy_and_version() -> None:
    assert plan_of({"page": BEHAVIOR}).name == "shop@3"


# --- what a stamp tells of the time -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forms", "anonymous", "pseudonymous", "identified"),
    [
        ({"anonymous": "keep"}, "ms", "ms", "ms"),
        ({"anonymous": "hour"}, "hour", "hour", "hour"),
        ({"anonymous": "month", "pseudonymous": "day", "identified": "hour"}, "month", "day", "hour"),
        ({"identified": "hour"}, "day", "day", "hour"),
        ({"identified": "month"}, "month", "month", "month"),
        ({"identified": "keep"}, "day", "day", "ms"),
        ({"anonymous": "drop", "identified": "month"}, "month", "month", "month"),
        ({"anonymous": "pseudonym", "identified": "month"}, "month", "month", "month"),
        ({"anonymous": "drop"}, "day", "day", "day"),
        ({"anonymous": {"round": 10}}, "day", "day", "day"),
        (None, "day", "ms", "ms"),
        (..., "day", "day", "day"),
    ],
)
def test_a_stamp_is_no_finer_than_the_time_that_is_told(
    forms: Any, anonymous: str, pseudonymous: str, identified: str
) -> None:
    fields: dict[str, Any] = {"page": BEHAVIOR | {"as": {"anonymous": "keep"}}}
    if forms is not ...:
        fields["at"] = BEHAVIOR | ({} if forms is None else {"as": forms})
    moment = AT + 14 * DAY  # the middle of a month, so that all four differ
    cut = {"ms": moment, "hour": moment - moment % HOUR, "day": moment - moment % DAY, "month": AT - AT % DAY}
    floors = {rung: recipe.floor(moment) for rung, recipe in recipes_of(plan_of(fields)).items() if recipe}
    assert floors == {"anonymous": cut[anonymous], "pseudonymous": cut[pseudonymous], "identified": cut[identified]}


@pytest.fixture(params=["UTC", "Pacific/Auckland", "America/Los_Angeles"])
def elsewhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the machine's clock tell another time zone."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("elsewhere")
def test_months_are_those_of_utc_wherever_the_worker_stands() -> None:
    march = 20_513 * DAY
    april = march + 31 * DAY
    # As a worker that has just started: nothing is remembered from another zone.
    forms_of_time._month_of_day.cache_clear()
    assert [
        forms_of_time.floor_to_month(ms) for ms in (march - 1, march, march + HOUR, april - HOUR, april - 1, april)
    ] == [
        march - 28 * DAY,
        march,
        march,
        march,
        march,
        april,
    ]
    forms_of_time._month_of_day.cache_clear()


def test_without_a_time_in_the_event_a_stamp_tells_the_day() -> None:
    source = {name: value for name, value in SOURCE.items() if name != "time"}
    fields = {"at": BEHAVIOR | {"as": {"anonymous": "keep"}}}
    recipe = recipes_of(plan_of(fields, {"web": source}))["anonymous"]
    assert recipe is not None
    assert recipe.floor(AT) == AT - AT % DAY


def test_a_time_that_another_purpose_may_know_does_not_count() -> None:
    fields = {
        "at": BEHAVIOR | {"for": ["news"], "as": {"anonymous": "keep"}},
        "page": BEHAVIOR | {"for": ["ads"], "as": {"anonymous": "keep"}},
    }
    ads, news = plan_of(fields, ads={}, news={}).sources[0].services["seen"]
    floors: list[Any] = [service.recipes[Rung.IDENTIFIED] for service in (ads, news)]
    assert [recipe.floor(AT) for recipe in floors if recipe] == [AT - AT % DAY, AT]


@pytest.mark.parametrize(
    ("rung", "consent", "header"),
    [("anonymous", None, None), ("pseudonymous", 7, b"7"), ("identified", 7, b"7")],
)
def test_a_stamp_says_under_which_consent_above_anonymous_only(
    rung: str, consent: int | None, header: bytes | None
) -> None:
    recipe = recipes_of(plan_of({"page": BEHAVIOR | {"as": {"anonymous": "keep"}}}))[rung]
    assert recipe is not None
    stamped = recipe.stamp(DAY, 7)
    assert json.loads(stamped.json + b"}").get("consent") == consent
    headers = dict(stamped.headers)
    assert list(headers) == [
        name
        for name in ("celosia-policy", "celosia-purpose", "celosia-rung", "celosia-consent", "celosia-expires-at")
        if name in headers
    ]
    assert headers.pop("celosia-consent", None) == header
    assert headers == {
        "celosia-policy": b"shop@3",
        "celosia-purpose": b"ads",
        "celosia-rung": rung.encode(),
        "celosia-expires-at": b"1970-02-01T00:00:00Z",
    }


# --- the layout of an output ------------------------------------------------------------------------------------------


def test_an_output_has_a_place_for_what_is_named_and_for_nothing_else() -> None:
    fields = dict.fromkeys(("b", "item.id", "a", "item.shelf.row", "item.price"), BEHAVIOR)
    recipe = recipes_of(plan_of(fields))["identified"]
    assert recipe is not None
    assert recipe.paths == ("b", "a", "item.id", "item.price", "item.shelf.row")
    layout = recipe.layout
    assert (layout.start, layout.end) == (0, 2)
    assert [(group.start, group.end) for group in (layout.groups[0], layout.groups[0].groups[0])] == [(2, 4), (4, 5)]
    assert msgspec.json.encode(layout.type(1, None, None)) == b'{"b":1}'


# --- what does not compile --------------------------------------------------------------------------------------------


def test_all_forms_that_cannot_be_made_are_told_at_once_and_each_once() -> None:
    fields = {
        "price": BEHAVIOR | {"as": {"anonymous": {"round": 0}, "identified": {"round": 0.5}}},
        "page": BEHAVIOR | {"as": {"anonymous": {"url": {"keep": []}}}},
        "ip": BEHAVIOR | {"as": {"identified": {"truncate_ip": {"v4": 32}}}},
    }
    with pytest.raises(PolicyError) as error:
        plan_of(fields, {"web": SOURCE, "app": SOURCE | {"topic": "app"}}, ads={}, news={})
    assert error.value.file == "shop.yaml"
    assert error.value.findings == [
        "events.seen.price, as `round`: wanted the step, a number above 0, as in {round: 10}",
        "events.seen.page, as `url`: wanted the parameters to keep, as in {url: {keep_query: [utm_source]}}",
        "events.seen.ip, as `truncate_ip`: at most 24 bits of an IPv4 and 64 of an IPv6 address may stay: "
        "more is one household",
    ]


def test_a_policy_without_a_file_is_called_policy() -> None:
    policy = plan_of({"price": BEHAVIOR}).policy
    price = FieldRule.model_validate(BEHAVIOR | {"as": {"anonymous": {"round": 0}}})
    with pytest.raises(PolicyError) as error:
        compile_plan(policy.model_copy(update={"events": {"seen": {"price": price}}}), MasterKey(bytes(32)))
    assert error.value.file == "policy"


def test_a_form_is_checked_at_the_only_rung_at_which_it_runs() -> None:
    with pytest.raises(PolicyError, match="wanted the edges"):
        plan_of({"price": BEHAVIOR | {"as": {"anonymous": {"bucket": [1, 1]}}}}, ads={"rung": "anonymous"})
