"""Outcomes: shapes and quarantine records say what came without saying what it said."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.consent import Refusal
from streams.event import Reason
from streams.outcome import (
    Contribution,
    Coordinates,
    Kind,
    Outcome,
    QuarantineRecord,
    quarantined,
    shape_of,
    suppressed,
)

KNOWN = frozenset({"who", "item.price", "item.size", "page"})
AT = Coordinates("raw", 3, 1042)


@pytest.mark.parametrize(
    ("document", "shape", "unnamed"),
    [
        ({}, {}, 0),
        ({"who": "ana", "page": None}, {"page": "null", "who": "string"}, 0),
        ({"who": 1, "page": 1.5, "item": {"price": True, "size": []}},
         {"item.price": "boolean", "item.size": "array", "page": "number", "who": "number"}, 0),
        ({"who": {"ana": 1}, "item": "ana"}, {"who": "object"}, 0),
        ({"who": 1 << 70, "item": {"ana@example.org": 1}}, {"who": "number"}, 0),
        ({"ana@example.org": 1, "Who": 1, "who ": 1, "item.price": 1}, {}, 4),
        ([{"who": "ana"}], {"": "array"}, 0),
        ("ana", {"": "string"}, 0),
        (17850, {"": "number"}, 0),
        (True, {"": "boolean"}, 0),
        (None, {"": "null"}, 0),
    ],
)  # fmt: skip
def test_a_shape_is_types_at_names_that_the_policy_knows(document: Any, shape: dict[str, str], unnamed: int) -> None:
    assert shape_of(json.dumps(document).encode(), KNOWN) == (shape, unnamed)


@pytest.mark.parametrize(
    "value", [None, b"", b"ana", b'{"who": "ana"', b'{"\xff": 1}', b'{"who": "\xff"}', b"[" * 100_000]
)
def test_what_cannot_be_parsed_has_no_shape(value: bytes | None) -> None:
    assert shape_of(value, KNOWN) == ({}, 0)


names = st.one_of(st.sampled_from(["who", "item", "price", "size", "page"]), st.just("canary"))
documents = st.recursive(
    st.sampled_from(["canary", 1, None, True]),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(names, inner, max_size=4)),
    max_leaves=8,
)


@given(document=documents)
def test_a_shape_never_shows_a_value_or_a_name_that_the_policy_does_not_name(document: Any) -> None:
    shape, unnamed = shape_of(json.dumps(document).encode(), KNOWN)
    assert set(shape) <= KNOWN | {""}
    assert set(shape.values()) <= {"object", "array", "string", "number", "boolean", "null"}
    expected = set(document) - {"who", "item", "page"} if isinstance(document, dict) else set()
    assert unnamed == len(expected)


# --- quarantine records -----------------------------------------------------------------------------------------------


def test_a_quarantine_record_is_written_and_read_again() -> None:
    record = QuarantineRecord(AT, "malformed", "shop@3", "present", 17, {"who": "string"}, 2, 1050)
    assert msgspec.json.decode(msgspec.json.encode(record), type=QuarantineRecord) == record


def test_a_quarantine_record_leaves_out_what_it_has_not() -> None:
    record = QuarantineRecord(AT, "no_value", "shop@3", "empty", 0)
    assert json.loads(msgspec.json.encode(record)) == {
        "source": {"topic": "raw", "partition": 3, "offset": 1042},
        "reason": "no_value",
        "policy": "shop@3",
        "key": "empty",
        "size": 0,
    }
    assert msgspec.json.decode(msgspec.json.encode(record), type=QuarantineRecord) == record


def test_a_quarantined_input_has_one_output_without_key_and_headers() -> None:
    record = QuarantineRecord(AT, "malformed", "shop@3", "present", 17)
    outcome = quarantined("shop.quarantine", record, Reason.MALFORMED)
    (output,) = outcome.outputs
    assert (outcome.kind, outcome.reason, outcome.refusals) == (Kind.QUARANTINED, Reason.MALFORMED, ())
    assert output == ("shop.quarantine", None, msgspec.json.encode(record), [], None)


def test_a_suppressed_input_has_no_output() -> None:
    refusals = (("ads", Refusal.EXPIRED),)
    assert suppressed(Refusal.EXPIRED, refusals) == Outcome(Kind.SUPPRESSED, (), Refusal.EXPIRED, refusals)


def test_kinds_reasons_and_refusals_are_words_for_metrics() -> None:
    words = [*Kind, *Reason, *Refusal]
    assert len(set(words)) == len(words)
    assert all(word.replace("_", "").isalpha() and word.islower() for word in words)


def test_a_contribution_shows_nobody() -> None:
    assert repr(Contribution("stock", b"ana", b'["UK"]', [7], 5)) == "Contribution(purpose='stock')"
