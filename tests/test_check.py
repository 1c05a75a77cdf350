"""What `celosia check` says of a policy and of a sample, and that it tells no value."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.check import Survey, describe, survey, unnamed_leaves
from streams.keys import MasterKey
from streams.lines import Line, TooLong
from streams.plan import Plan, compile_plan
from streams.policy import load_policy

ROOT = Path(__file__).parent.parent


def plan_of(name: str = "shop") -> Plan:
    file = ROOT / "schemas" / "policies" / f"{name}.yaml"
    return compile_plan(load_policy(file), MasterKey(bytes(32)), str(file))


def view(number: int = 0, **more: Any) -> bytes:
    event = {
        "event_id": f"e{number}",
        "type": "product_viewed",
        "occurred_at": "2026-03-01T09:30:00Z",
        "subject_id": f"person{number}",
        "properties": {"product_id": "p1"},
    }
    return json.dumps(event | more).encode()


def surveyed(*lines: Line) -> Survey:
    plan = plan_of()
    return survey(lines, plan, plan.sources[0])


def text_of(seen: Survey) -> str:
    plan = plan_of()
    return "\n".join(seen.lines(plan.sources[0], plan.policy))


def shapes(*lines: Line) -> dict[str, int]:
    return {row.shape: row.events for row in surveyed(*lines).unnamed}


@pytest.mark.parametrize("name", ["shop", "retail"])
def test_the_summary_names_purposes_topics_rungs_and_events(name: str) -> None:
    plan = plan_of(name)
    text = "\n".join(describe(plan))
    assert text.startswith(f"policy {plan.name} is sound")
    for purpose, rule in plan.policy.purposes.items():
        assert f"{purpose}: up to {rule.rung}" in text
        assert rule.topic in text
        assert rule.benefit in text
    for event, fields in plan.policy.events.items():
        assert f"{event}: {len(fields)} fields named" in text


def test_red_fields_that_go_nowhere_are_told() -> None:
    assert "  product_viewed.traits.birth_date goes nowhere: nobody is targeted by age" in describe(plan_of())


def test_a_sample_that_the_policy_names_whole_has_nothing_to_tell() -> None:
    seen = surveyed(view(1), view(2, context={"page": {"url": "https://shop.example/"}, "ip": "203.0.113.7"}))
    assert seen.unnamed == []
    assert "every field is named by the policy" in text_of(seen)


def test_fields_that_are_not_named_are_counted_with_a_suggestion() -> None:
    seen = surveyed(
        view(1, traits={"phone": "1"}), view(2, traits={"phone": "2", "email": "a"}, tags=["a", "b"]), view(3)
    )
    [row] = [row for row in seen.unnamed if row.shape == "traits.phone"]
    assert row == ("product_viewed", "traits.phone", 2, ("user.contact.phone_number",))
    assert "product_viewed  traits.phone  in 2 of 3, perhaps user.contact.phone_number" in text_of(seen)


def test_a_field_named_for_one_type_is_not_named_for_another() -> None:
    added = [view(number, type="product_added", context={"ip": "203.0.113.7"}) for number in range(2)]
    assert shapes(*added) == {"context.ip": 2}


def test_what_lies_below_a_named_field_has_no_name() -> None:
    lines = [view(number, properties={"category": {"secret": 1}, "price": [1, {"cent": 2}]}) for number in range(2)]
    assert shapes(*lines) == {"properties.category.secret": 2, "properties.price[].cent": 2}


def test_a_name_with_a_dot_in_it_is_not_the_path() -> None:
    assert shapes(view(1, **{"context.ip": "x"}), view(2, **{"context.ip": "x"})) == {"*": 2}


def test_names_that_few_events_share_are_not_shown() -> None:
    lines = [view(number, friends={f"friend{number}": {"since": 2020}}) for number in range(10)]
    assert shapes(*lines) == {"friends.*.*": 10}
    # A single event shares its names with none.
    assert shapes(view(1, friends={"ana": 1})) == {"*.*": 1}


def test_a_parent_with_too_many_children_shows_none() -> None:
    lines = [view(number, friends={f"friend{child}": 1 for child in range(150)}) for number in range(10)]
    assert shapes(*lines) == {"friends.*": 10}


def test_arrays_and_depth_and_mixed_kinds_are_counted_once_an_event() -> None:
    deep: Any = 1
    for _ in range(40):
        deep = {"below": deep}
    lines = [view(number, items=[{"sku": 1}, {"sku": 2}], mixed=1 if number else {"a": 1}) for number in range(5)]
    found = shapes(*lines)
    assert found["items[].sku"] == 5
    assert found["mixed"] == 4
    assert found["mixed.*"] == 1
    [shape] = shapes(view(1, deep=deep), view(2, deep=deep))
    assert shape.count("below") == 15


def test_missing_subjects_types_and_times_are_warned_of() -> None:
    lines = (
        view(1, subject_id=None),
        view(2, type=None),
        view(3, type="checkout"),
        view(4, occurred_at="yesterday"),
        b"{",
        TooLong(1 << 30),
    )
    text = text_of(surveyed(*lines))
    assert "sample: 6 events, 1 of 2 event types" in text
    assert "1 of 6 events have no subject at `subject_id`" in text
    assert "2 of 6 events have a type that the policy does not name, or none" in text
    assert "1 of 6 events are quarantined: bad_type (no text at `type`)" in text
    assert (
        "1 of 6 events are quarantined: bad_time (no time with an offset, or in milliseconds, at `occurred_at`)" in text
    )
    assert "2 of 6 events are quarantined: malformed" in text


def test_a_survey_does_not_grow_with_the_sample() -> None:
    lines = [view(number, **{f"n{number}_{child}": {f"m{child}": 1} for child in range(50)}) for number in range(1000)]
    tracemalloc.start()
    try:
        seen = surveyed(*lines)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert len(seen.unnamed) <= 101


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3),
    max_leaves=10,
)


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=5), json_values, max_size=4), max_size=4))
def test_any_json_is_surveyed(events: list[dict[str, Any]]) -> None:
    seen = surveyed(*(view(number, **event) for number, event in enumerate(events)))
    assert seen.events == len(events)
    assert all(0 < row.events <= len(events) for row in seen.unnamed)
    assert text_of(seen)


def leaves(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(leaves, value.values()))
    return sum(map(leaves, value)) if isinstance(value, list) else 1


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=5), json_values, max_size=4))
def test_without_a_policy_every_leaf_is_unnamed(document: dict[str, Any]) -> None:
    assert sum(1 for _ in unnamed_leaves(document, frozenset())) == leaves(document)


def test_no_canary_is_told() -> None:
    canaries = iter(f"canary{number:05}" for number in range(10_000))

    def planted(number: int) -> bytes:
        deep = {next(canaries): {next(canaries): next(canaries)}, "list": [next(canaries), {next(canaries): 1}]}
        event = {
            "subject_id": next(canaries),
            "event_id": next(canaries),
            "traits": deep,
            next(canaries): next(canaries),
        }
        return view(number, **event, type=next(canaries) if number % 3 == 0 else "product_viewed", note=next(canaries))

    seen = surveyed(*map(planted, range(30)), b'{"canary": ', b"canary", view(occurred_at=next(canaries)))
    assert "canary" not in text_of(seen)
    assert "canary" not in repr(seen)
    assert {"note", "traits.list[]"} <= {row.shape for row in seen.unnamed}
