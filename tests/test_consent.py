"""Consent: what is read, what denies, how records fold, and rule 1."""

import json
from itertools import permutations
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streams.consent import (
    BARRIER,
    FOREVER,
    Consent,
    Consents,
    Grant,
    Refusal,
    Rung,
    read_consent,
    rule_1,
    stricter,
    write_consent,
    write_denial,
)

SINCE = "1970-01-01T00:00:01Z"
GRANT = {"rung": "identified", "since": SINCE}
ADS = Grant(Rung.IDENTIFIED, 1000, FOREVER)
DENIED = Consent(-1, {}, readable=False)


def record(**changes: Any) -> bytes:
    """Return Ana's consent record with some fields changed; a field that is changed to ... is left out."""
    fields = {"subject": "ana", "version": 1, "purposes": {"ads": GRANT}} | changes
    return json.dumps({name: value for name, value in fields.items() if value is not ...}).encode()


def grant(**changes: Any) -> bytes:
    fields = GRANT | changes
    return record(purposes={"ads": {name: value for name, value in fields.items() if value is not ...}})


def folded(*values: bytes | None, key: bytes | None = b"ana") -> Consents:
    consents = Consents()
    for value in values:
        consents.apply(key, value)
    return consents


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_record_is_read() -> None:
    value = record(purposes={"ads": GRANT, "news": {"rung": "crowd", "since": SINCE, "until": "1970-01-01T00:00:02Z"}})
    grants = {"ads": ADS, "news": Grant(Rung.CROWD, 1000, 2000)}
    assert read_consent(value) == ("ana", Consent(1, grants, readable=True))


def test_a_purpose_that_no_policy_knows_does_no_harm() -> None:
    value = record(purposes={"ads": GRANT, "made.up": GRANT, "": GRANT})
    assert read_consent(value)[1].grants["ads"] == ADS


def test_an_until_of_null_is_none() -> None:
    assert read_consent(grant(until=None))[1].grants == {"ads": ADS}


@pytest.mark.parametrize(
    ("since", "until", "read"),
    [
        ("1970-01-01T00:00:01.0001Z", "1970-01-01T00:00:02.0009Z", (1001, 2000)),
        ("1970-01-01T01:00:01+01:00", "1969-12-31T23:00:02-01:00", (1000, 2000)),
        ("1969-12-31T23:59:59.9995Z", "1969-12-31T23:59:59.9995Z", (0, -1)),
        ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", (-62135647200000, 253402351199000)),
        # Finer than the decoder reads, which rounds: digit by digit.
        ("1970-01-01T00:00:01.0010000000Z", "1970-01-01T00:00:02.0010000000Z", (1001, 2001)),
        ("1970-01-01T00:00:01.0019999999Z", "1970-01-01T00:00:02.0019999999Z", (1002, 2001)),
        ("1970-01-01T00:00:01.0015000000Z", "1970-01-01T00:00:02.0015000000Z", (1002, 2001)),
        ("1970-01-01T00:00:01.9999999Z", "1970-01-01T00:00:02.9999999Z", (2000, 2999)),
        ("1970-01-01T00:00:01.0000001Z", "1970-01-01T00:00:02.0000001Z", (1001, 2000)),
        ("1970-01-01T02:00:01.1010000000+02:00", "1969-12-31T22:00:02.1019999000-02:00", (1101, 2101)),
        ("1970-01-01T00:00:01.0000001Z", "1970-01-01T00:00:02.5Z", (1001, 2500)),
        ("1970-01-01T00:00:01Z", "1970-01-01T00:00:02.0000001Z", (1000, 2000)),
    ],
)
def test_times_are_cut_to_the_strict_side_of_the_millisecond(since: str, until: str, read: tuple[int, int]) -> None:
    assert read_consent(grant(since=since, until=until))[1].grants["ads"][1:] == read


MALFORMED = {
    "nothing": b"",
    "null": b"null",
    "not JSON": b"broken",
    "cut short": record()[:-1],
    "two documents": record() + b"{}",
    "byte order mark": b"\xef\xbb\xbf" + record(),
    "UTF-16": record().decode().encode("utf-16"),
    "invalid UTF-8 in the subject": record().replace(b"ana", b"an\xff"),
    "invalid UTF-8 in a purpose": record().replace(b"ads", b"ad\xff"),
    "lone surrogate": record().replace(b"ads", b"\\ud800"),
    "nested too deep": b'{"subject":' + b"[" * 100_000,
    "an array": b"[" + record() + b"]",
    "a string": b'"ana"',
    "no subject": record(subject=...),
    "an empty subject": record(subject=""),
    "a number as subject": record(subject=7),
    "null as subject": record(subject=None),
    "no version": record(version=...),
    "a version that is true": record(version=True),
    "a version with a fraction": record(version=1.5),
    "a version that is a float": record(version=1.0),
    "a version in quotes": record(version="1"),
    "a negative version": record(version=-1),
    "a version of 2^63": record(version=1 << 63),
    "a version of 5,000 digits": record(version=0).replace(b'"version": 0', b'"version": ' + b"9" * 5000),
    "a version of null": record(version=None),
    "no purposes": record(purposes=...),
    "purposes in an array": record(purposes=["ads"]),
    "purposes of null": record(purposes=None),
    "a grant that is true": record(purposes={"ads": True}),
    "a grant that is a rung": record(purposes={"ads": "identified"}),
    "a grant of null": record(purposes={"ads": None}),
    "an unknown field": record(quiet="22:00-08:00"),
    "an unknown field of a grant": grant(channel="mail"),
    "a field in other letters": record().replace(b'"version"', b'"Version"'),
    "an unknown rung": grant(rung="everything"),
    "a rung in other letters": grant(rung="Identified"),
    "a rung as a number": grant(rung=4),
    "no rung": grant(rung=...),
    "no since": grant(since=...),
    "a since of null": grant(since=None),
    "a since without a zone": grant(since="1970-01-01T00:00:01"),
    "an until without a zone": grant(until="2030-01-01T00:00:00"),
    "a since that is a number": grant(since=1000),
    "a since that is a day": grant(since="1970-01-01"),
    "an until that is a word": grant(until="never"),
    "a day that is not in the calendar": grant(until="2030-02-30T00:00:00Z"),
    "subject twice": record().replace(b'"subject"', b'"subject": "eve", "subject"'),
    "version twice": record().replace(b'"version"', b'"version": 0, "version"'),
    "version twice, once in escapes": record().replace(b'"version"', b'"v\\u0065rsion": 0, "version"'),
    "purposes twice": record().replace(b'"purposes"', b'"purposes": {}, "purposes"'),
    "a purpose twice": record().replace(
        b'"ads"', b'"ads": {"rung": "nothing", "since": "1970-01-01T00:00:01Z"}, "ads"'
    ),
    "a purpose twice, once in escapes": record().replace(
        b'"ads"', b'"\\u0061ds": {"rung": "nothing", "since": "1970-01-01T00:00:01Z"}, "ads"'
    ),
    "rung twice": grant().replace(b'"rung"', b'"rung": "nothing", "rung"'),
    "rung twice, once in escapes": grant().replace(b'"rung"', b'"r\\u0075ng": "nothing", "rung"'),
    "since twice": grant().replace(b'"since"', b'"since": "2030-01-01T00:00:00Z", "since"'),
    "until twice": grant(until=None).replace(b'"until"', b'"until": "1970-01-01T00:00:02Z", "until"'),
}


@pytest.mark.parametrize("value", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_record_is_not_read_and_denies_its_subject(value: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the message is for nobody
        read_consent(value)
    consents = folded(record(version=1), value)
    assert consents.of(b"ana") == Consent(1, {}, readable=False)
    assert (consents.rejected, consents.blocked) == (1, False)


def test_escapes_alone_are_no_fault() -> None:
    value = record().replace(b'"ana"', b'"\\u0061na"').replace(b'"version"', b'"v\\u0065rsion"')
    assert folded(value).of(b"ana") == Consent(1, {"ads": ADS})
    assert folded(record(subject='a"n\\a'), key=b'a"n\\a').of(b'a"n\\a') == Consent(1, {"ads": ADS})


# --- writing ----------------------------------------------------------------------------------------------------------

FIRST, LAST = -62_135_596_800_000, 253_402_300_799_999
"""The years 1 to 9999 in ms, which is what a record can say in UTC."""


@given(
    subject=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
    version=st.integers(0, (1 << 63) - 1),
    grants=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
        st.builds(
            Grant,
            st.sampled_from(Rung),
            st.integers(FIRST, LAST),
            st.one_of(st.integers(FIRST, LAST), st.just(FOREVER)),
        ),
        max_size=4,
    ),
)
@example(subject="ana", version=0, grants={"ads": Grant(Rung.CROWD, FIRST, LAST), "": Grant(Rung.NOTHING, LAST, FIRST)})
def test_what_is_written_is_read_as_it_was(subject: str, version: int, grants: dict[str, Grant]) -> None:
    consent = Consent(version, grants)
    assert read_consent(write_consent(subject, consent)) == (subject, consent)


def test_a_record_is_written_as_the_schema_has_it() -> None:
    grants = {"ads": ADS, "news": Grant(Rung.CROWD, -1, 2_000), "post": Grant(Rung.NOTHING, 1, 1)}
    assert json.loads(write_consent("Zoë", Consent(7, grants))) == {
        "subject": "Zoë",
        "version": 7,
        "purposes": {
            "ads": {"rung": "identified", "since": "1970-01-01T00:00:01Z"},
            "news": {"rung": "crowd", "since": "1969-12-31T23:59:59.999000Z", "until": "1970-01-01T00:00:02Z"},
            "post": {
                "rung": "nothing",
                "since": "1970-01-01T00:00:00.001000Z",
                "until": "1970-01-01T00:00:00.001000Z",
            },
        },
    }


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, b"\xff", b"ana\xc3", b"\xed\xa0\x80"])
def test_a_key_that_cannot_be_read_blocks_the_partition(key: bytes | None) -> None:
    consents = folded(record())
    consents.apply(key, record())
    assert (consents.blocked, consents.rejected) == (True, 1)
    consents.apply(b"ana", record(version=2))
    assert consents.blocked, "whose record it was is still not known"


def test_a_barrier_says_nothing_about_anybody() -> None:
    consents = folded(record())
    for value in (None, b"", b"broken", record(subject=BARRIER.decode(), version=9)):
        consents.apply(BARRIER, value)
    assert (consents.blocked, consents.rejected, len(consents)) == (False, 0, 1)
    assert consents.of(BARRIER) is None
    assert consents.of(b"ana") == Consent(1, {"ads": ADS})
    for key in (BARRIER + b" ", BARRIER.upper(), b"celosia-barrier"):
        consents.apply(key, None)
        assert consents.of(key) == DENIED


def test_the_empty_key_and_the_wildcard_are_nobody_else() -> None:
    assert folded(record(subject=""), key=b"").of(b"") == DENIED
    consents = folded(record(subject="*"), key=b"*")
    assert consents.of(b"*") == Consent(1, {"ads": ADS})
    assert consents.of(b"ana") is None
    assert not consents.blocked


@pytest.mark.parametrize("key", [b"ben", b"Ana", b"ana ", b"", "\u0430na".encode()])
def test_a_record_under_another_key_grants_nobody(key: bytes) -> None:
    consents = folded(record(), key=key)
    assert consents.of(key) == DENIED
    assert consents.of(b"ana") is None
    assert consents.rejected == 1


def test_a_consent_in_the_wrong_partition_denies_there() -> None:
    consents = Consents(owns=lambda key: key != b"ana")
    consents.apply(b"ana", record())
    assert consents.of(b"ana") == DENIED
    assert consents.rejected == 1


# --- the fold ---------------------------------------------------------------------------------------------------------


def test_the_version_decides_and_not_the_order() -> None:
    old, new = record(version=1), record(version=2, purposes={})
    assert folded(old, new).of(b"ana") == folded(new, old).of(b"ana") == Consent(2, {})
    assert folded(new, old, old).rejected == 0


def test_of_one_version_said_twice_the_stricter_holds() -> None:
    high = record(purposes={"ads": GRANT, "news": GRANT})
    low = record(purposes={"ads": {"rung": "anonymous", "since": "1970-01-01T00:00:03Z"}})
    expected = Consent(1, {"ads": Grant(Rung.ANONYMOUS, 3000, FOREVER)})
    assert folded(high, low).of(b"ana") == folded(low, high).of(b"ana") == expected
    assert folded(high, high).of(b"ana") == folded(high).of(b"ana")


@pytest.mark.parametrize("broken", [None, b"", b"broken", record(subject="eve", version=9)])
def test_what_cannot_be_read_denies_until_a_higher_version_comes(broken: bytes | None) -> None:
    assert folded(broken).of(b"ana") == DENIED
    assert folded(broken, record(version=0)).of(b"ana") == Consent(0, {"ads": ADS})
    assert folded(record(version=5), broken).of(b"ana") == Consent(5, {}, readable=False)
    for version in (4, 5):
        assert folded(record(version=5), broken, record(version=version)).of(b"ana") == Consent(5, {}, readable=False)
    assert folded(record(version=5), broken, record(version=6)).of(b"ana") == Consent(6, {"ads": ADS})


def test_an_old_grant_replayed_after_the_withdrawal_grants_nothing() -> None:
    yes, no = record(version=1), record(version=2, purposes={"ads": GRANT | {"rung": "nothing"}})
    assert folded(yes, no, yes).of(b"ana") == Consent(2, {"ads": Grant(Rung.NOTHING, 1000, FOREVER)})


def test_a_grant_and_a_withdrawal_of_one_version_withdraw() -> None:
    yes, no = record(version=1), record(version=1, purposes={})
    for order in permutations([yes, no, yes]):
        assert folded(*order).of(b"ana") == Consent(1, {})


def test_people_do_not_touch_each_other() -> None:
    consents = folded(record())
    consents.apply(b"ben", b"broken")
    consents.apply(b"eve", record(subject="eve", version=7, purposes={}))
    assert consents.of(b"ana") == Consent(1, {"ads": ADS})
    assert len(consents) == 3


def test_rejected_records_are_counted_once() -> None:
    consents = folded(b"broken", None, record(version=1))
    assert (consents.take_rejected(), consents.take_rejected()) == (2, 0)
    consents.apply(None, None)
    assert consents.take_rejected() == 1


def test_clear_forgets_everybody_and_the_block_and_keeps_the_partition() -> None:
    consents = Consents(owns=lambda key: key == b"ana")
    consents.apply(b"ana", record())
    consents.apply(None, None)
    of = consents.of
    consents.clear()
    assert (len(consents), consents.blocked, consents.of(b"ana"), of(b"ana")) == (0, False, None, None)
    consents.apply(b"ben", record(subject="ben"))
    assert consents.of(b"ben") == of(b"ben") == DENIED


# --- the stricter of two ----------------------------------------------------------------------------------------------

grants = st.builds(Grant, st.sampled_from(Rung), st.integers(0, 3), st.integers(0, 3))
readable = st.builds(Consent, st.just(1), st.dictionaries(st.sampled_from("abc"), grants), st.just(True))
consents_of_one_version = st.one_of(readable, st.just(Consent(1, {}, readable=False)))


@given(one=consents_of_one_version, two=consents_of_one_version, three=consents_of_one_version)
def test_stricter_does_not_ask_for_the_order(one: Consent, two: Consent, three: Consent) -> None:
    assert stricter(one, two) == stricter(two, one)
    assert stricter(one, stricter(two, three)) == stricter(stricter(one, two), three)
    assert stricter(one, one) == one


@given(one=consents_of_one_version, two=consents_of_one_version, recorded=st.integers(0, 3), now=st.integers(0, 3))
def test_stricter_allows_nothing_that_one_of_the_two_refuses(
    one: Consent, two: Consent, recorded: int, now: int
) -> None:
    both = stricter(one, two)
    for purpose in "abc":
        allowed = [rule_1(consent.grants.get(purpose), recorded, now, 0) for consent in (one, two, both)]
        rungs = [Rung.NOTHING if isinstance(rung, Refusal) else rung for rung in allowed]
        assert rungs[2] == min(rungs[:2])


def test_of_two_versions_the_higher_is_told() -> None:
    assert stricter(Consent(1, {}), Consent(2, {})).version == 2


# --- rule 1 -----------------------------------------------------------------------------------------------------------

CROWD = Grant(Rung.CROWD, 1000, 5000)


@pytest.mark.parametrize(
    ("given_", "recorded", "now", "skew", "expected"),
    [
        (None, 2000, 2000, 0, Refusal.NOT_ALLOWED),
        (Grant(Rung.NOTHING, 0, FOREVER), 2000, 2000, 0, Refusal.NOT_ALLOWED),
        (CROWD, 999, 2000, 0, Refusal.RECORDED_BEFORE_CONSENT),
        (CROWD, 1000, 2000, 0, Rung.CROWD),
        (CROWD, 1000, 1000, 0, Rung.CROWD),
        (CROWD, 1099, 2000, 100, Refusal.RECORDED_BEFORE_CONSENT),
        (CROWD, 1100, 2000, 100, Rung.CROWD),
        (CROWD, -1, 2000, 0, Refusal.RECORDED_BEFORE_CONSENT),
        (CROWD, 4999, 4999, 0, Rung.CROWD),
        (CROWD, 4999, 5000, 0, Refusal.EXPIRED),
        (CROWD, 5000, 4999, 0, Refusal.EXPIRED),
        (CROWD, 5000, 5000, 100, Refusal.EXPIRED),
        (CROWD, 999, 6000, 0, Refusal.RECORDED_BEFORE_CONSENT),
        (Grant(Rung.IDENTIFIED, 1000, FOREVER), 1 << 61, 1 << 61, 0, Rung.IDENTIFIED),
        (Grant(Rung.IDENTIFIED, 1000, FOREVER), 1000, FOREVER, 0, Refusal.EXPIRED),
        (Grant(Rung.IDENTIFIED, 5000, 5000), 5000, 5000, 0, Refusal.EXPIRED),
        (Grant(Rung.IDENTIFIED, 5000, 4000), 4500, 4500, 0, Refusal.RECORDED_BEFORE_CONSENT),
    ],
)
def test_rule_1(given_: Grant | None, recorded: int, now: int, skew: int, expected: Rung | Refusal) -> None:
    assert rule_1(given_, recorded, now, skew) is expected


@given(recorded=st.integers(0, 9), now=st.integers(0, 9), since=st.integers(0, 9), back=st.integers(0, 9))
def test_an_until_that_is_not_after_the_since_allows_nothing(recorded: int, now: int, since: int, back: int) -> None:
    assert isinstance(rule_1(Grant(Rung.IDENTIFIED, since, since - back), recorded, now, 0), Refusal)


@pytest.mark.parametrize(
    "ms", [-62_135_596_800_000 - 86_340_000, -62_135_596_800_001, 253_402_300_800_000, 253_402_300_799_999 + 86_340_000]
)
def test_times_before_the_year_1_and_after_9999_are_written_with_an_offset(ms: int) -> None:
    grant = Grant(Rung.ANONYMOUS, ms, FOREVER)
    _, consent = read_consent(write_consent("ana", Consent(1, {"ads": grant})))
    assert consent.grants["ads"] == grant
    assert type(consent.grants["ads"].since) is int


def test_times_finer_than_microseconds_come_to_whole_milliseconds() -> None:
    fine = b"1970-01-01T00:00:01.0000000001Z"
    value = b'{"subject":"ana","version":1,"purposes":{"ads":{"rung":"anonymous","since":"%b"}}}' % fine
    assert type(read_consent(value)[1].grants["ads"].since) is int


def test_a_denial_says_whose_it_is_and_nothing_else() -> None:
    assert json.loads(write_denial("ana")) == {"subject": "ana", "purposes": {}}
    with pytest.raises(ValueError, match="not a consent record"):
        read_consent(write_denial("ana"))


@pytest.mark.parametrize("again", [b'"version":9', b'"subject":"ana"', b'"version":9,"version":9'])
def test_a_name_that_is_given_twice_is_found_whatever_else_is_there(again: bytes) -> None:
    grant = b'{"rung":"anonymous","since":"1970-01-01T00:00:01Z","until":"2030-01-01T00:00:00Z"}'
    for purposes in (b"", b'"ads":%b' % grant, b'"ads":%b,"stats":%b' % (grant, grant)):
        value = b'{"subject":"ana","version":1,%b,"purposes":{%b}}' % (again, purposes)
        with pytest.raises(ValueError, match="not a consent record"):
            read_consent(value)


def test_a_record_that_is_nested_without_end_is_none() -> None:
    deep = b'{"subject":"ana","version":1,"purposes":{},"more":%b1%b}' % (b"[" * 100_000, b"]" * 100_000)
    with pytest.raises(ValueError, match="not a consent record"):
        read_consent(deep)
