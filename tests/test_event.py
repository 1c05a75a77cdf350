"""Records and times: nothing is shown, nothing is guessed at, and doubt goes to the strict side."""

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.consent import FOREVER, Consents
from streams.event import RawEvent, Reason, Rejected, iso, milliseconds
from streams.pipeline import moments
from tests.model import moment, written

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
A_MILLISECOND = timedelta(milliseconds=1)


@given(st.datetimes(), st.integers(-23 * 60, 23 * 60))
def test_rfc_3339_is_read_to_the_millisecond(when: datetime, minutes: int) -> None:
    text = when.replace(tzinfo=timezone(timedelta(minutes=minutes))).isoformat()
    exact = (when.replace(tzinfo=UTC) - EPOCH - timedelta(minutes=minutes)) // A_MILLISECOND
    assert milliseconds(text) == exact == moment(text)


@given(st.text(max_size=30))
def test_other_texts_are_read_as_the_oracle_reads_them(text: str) -> None:
    try:
        assert milliseconds(text) == moment(text)
    except ValueError:
        assert moment(text) is None


@pytest.mark.parametrize("value", [None, True, 1.0, [], {}, b"2026-03-01T00:00:00Z", 1 << 62, -(1 << 62)])
def test_what_is_no_time_is_none(value: object) -> None:
    with pytest.raises(ValueError, match=r"^not a time$"):
        milliseconds(value)


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_time_is_written_so_that_it_can_be_read_again(when: datetime) -> None:
    ms = (when - EPOCH) // A_MILLISECOND
    assert milliseconds(iso(ms)) == ms
    assert iso(ms) == written(ms)


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (-62_135_596_800_000, "0001-01-01T00:00:00Z"),
        (-62_135_596_800_001, "0001-01-01T00:00:00Z"),
        (-(1 << 62), "0001-01-01T00:00:00Z"),
        (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
        (253_402_300_800_000, "9999-12-31T23:59:59.999Z"),
        (1 << 63, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_times_that_no_calendar_has_are_written_as_the_nearest_that_one_has(ms: int, text: str) -> None:
    assert iso(ms) == text


def test_nothing_that_prints_a_record_or_a_rejection_shows_what_it_holds() -> None:
    record = RawEvent(7, 0, b"ana", b'{"email":"ana@example.org"}', [("who", b"ana")])
    assert repr(record) == str(record) == f"{record}" == "RawEvent(offset=7, 27 bytes)"
    assert repr(RawEvent(7, 0, b"ana", None)) == "RawEvent(offset=7, no value)"
    assert repr(Rejected(Reason.MALFORMED)) == "Rejected('malformed')"


# --- to the strict side -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("now", [1, 2, 3])
@pytest.mark.parametrize("kafka", [1, 2, 3, -1])
@pytest.mark.parametrize("time", [1, 2, 3, None])
def test_grants_are_held_against_the_earliest_time_and_their_ends_against_the_latest(
    now: int, kafka: int, time: int | None
) -> None:
    said = [now, kafka] + ([] if time is None else [time])
    assert moments(kafka, time, now) == (min(said), max(said))


@pytest.mark.parametrize(
    ("since", "until", "grant"),
    [
        ("1970-01-01T00:00:01Z", "1970-01-01T00:00:02Z", (1000, 2000)),
        ("1970-01-01T00:00:01.0001Z", "1970-01-01T00:00:02.0009Z", (1001, 2000)),
        ("1970-01-01T00:00:01.000001+00:00", None, (1001, FOREVER)),
        ("1969-12-31T23:59:59.9999Z", "1969-12-31T23:59:59.9999Z", (0, -1)),
    ],
)
def test_a_grant_begins_late_and_ends_early_by_less_than_a_millisecond(
    since: str, until: str | None, grant: tuple[int, int]
) -> None:
    consents = Consents()
    purposes = {"ads": {"rung": "identified", "since": since, "until": until}}
    consents.apply(b"ana", json.dumps({"subject": "ana", "version": 1, "purposes": purposes}).encode())
    consent = consents.of(b"ana")
    assert consent is not None
    assert consent.grants["ads"][1:] == grant


def test_forever_comes_after_every_time_that_kafka_can_write() -> None:
    assert FOREVER > (1 << 63) - 1
