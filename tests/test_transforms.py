"""Forms: their examples run, and what each promises holds for any value."""

import json
from ipaddress import ip_address
from itertools import pairwise
from math import isfinite
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.keys import MasterKey
from streams.transforms import ABSENT, FORMS, SCALARS, Context, Form

CONTEXT = Context("ads", 86_400_000, MasterKey(bytes(32)))
EXAMPLES = [(kind, example) for kind in FORMS.values() for example in kind.examples]
PARAMETERS: dict[str, list[Any]] = {
    "round": [1, 10, 1000, 0.5, 0.1, 0.01, 2.5, 1e-9, 1e300],
    "bucket": [[0], [0, 10, 50], [-1.5, 0, 0.25], [1, 1 << 70]],
    "truncate_ip": [None, {"v4": 0, "v6": 0}, {"v4": 8}, {"v6": 64}, {"v4": 17, "v6": 33}],
    "url": [None, {"keep_query": ["utm_source"]}, {"keep_query": ["a b", "é", ""]}],
}
MADE = [(name, parameters) for name in FORMS for parameters in PARAMETERS.get(name, [None])]
IDEMPOTENT = [(name, parameters) for name, parameters in MADE if FORMS[name].idempotent]

words = st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.one_of(
    st.integers(),
    st.integers(-(10**400), 10**400),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-100_000, 100_000).map(lambda cents: cents / 100),
)
times = st.one_of(
    st.datetimes().map(lambda moment: moment.isoformat() + "Z"),
    st.tuples(st.datetimes(), st.integers(-14, 14)).map(lambda pair: f"{pair[0].isoformat()}{pair[1]:+03}:00"),
    st.integers(-(1 << 62), 1 << 62),
)
addresses = st.one_of(st.ip_addresses().map(str), st.ip_addresses(v=6).map(lambda address: f"{address}%eth0"))
part = st.text("abc09.-_~", min_size=1, max_size=5)
urls = st.builds(
    lambda scheme, user, host, path, query, fragment: f"{scheme}://{user}{host}/{path}{query}{fragment}",
    st.sampled_from(["http", "https", "HTTPS", "ftp"]),
    st.one_of(st.just(""), st.builds("{}:{}@".format, part, part)),
    st.sampled_from(["shop.example", "Shop.Example:8443", "[2001:db8::1]", "shop.example:0", ""]),
    words.map(quote),
    st.one_of(st.just(""), words.map(lambda text: f"?utm_source={quote(text)}&q=1"), words.map("?{}".format)),
    st.one_of(st.just(""), words.map("#{}".format)),
)
scalars = st.one_of(words, numbers, st.booleans(), times, addresses, urls)
anything = st.recursive(
    st.one_of(scalars, st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=6,
)
moments = st.integers(-(1 << 62), 1 << 62)


def make(name: str, parameters: Any = None) -> Form:
    return FORMS[name].make(parameters, CONTEXT)


def ids(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, str) else value


# --- every form -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "example"), EXAMPLES, ids=[f"{kind.name}-{e.value}" for kind, e in EXAMPLES])
def test_every_example_shows_what_happens(kind: Any, example: Any) -> None:
    result = kind.make(example.parameters, CONTEXT)(example.value, 0)
    assert result == example.result
    assert type(result) is type(example.result)


def test_every_form_has_examples_and_says_what_it_protects() -> None:
    for name, kind in FORMS.items():
        assert kind.name == name
        assert kind.does, name
        assert kind.protects, name
        assert any(example.result is ABSENT for example in kind.examples) or name in ("day",), name
        assert any(example.result is not ABSENT for example in kind.examples) or name == "drop", name


@pytest.mark.parametrize(("name", "parameters"), MADE, ids=ids)
@given(value=anything, at=moments)
def test_no_form_raises_and_what_comes_out_is_a_scalar_or_nothing(
    name: str, parameters: Any, value: Any, at: int
) -> None:
    result = make(name, parameters)(value, at)
    assert result is ABSENT or type(result) in SCALARS
    assert type(result) is not float or isfinite(result)


@pytest.mark.parametrize(("name", "parameters"), MADE, ids=ids)
@pytest.mark.parametrize("value", [{}, [], {"e-mail": "ana@example.org"}, ["ana@example.org"], None])
def test_no_form_lets_an_object_an_array_or_null_through(name: str, parameters: Any, value: Any) -> None:
    assert make(name, parameters)(value, 0) is ABSENT


@pytest.mark.parametrize(("name", "parameters"), IDEMPOTENT, ids=ids)
@given(value=scalars, at=moments)
def test_minimizing_twice_changes_nothing(name: str, parameters: Any, value: Any, at: int) -> None:
    form = make(name, parameters)
    once = form(value, at)
    assert form(once, at) == once


@pytest.mark.parametrize("kind", [kind for kind in FORMS.values() if kind.idempotent], ids=lambda kind: kind.name)
def test_minimizing_an_example_twice_changes_nothing(kind: Any) -> None:
    for example in kind.examples:
        assert kind.make(example.parameters, CONTEXT)(example.result, 0) == example.result


def test_only_the_pseudonym_is_not_idempotent() -> None:
    assert [name for name, kind in FORMS.items() if not kind.idempotent] == ["pseudonym"]


@given(value=scalars)
def test_keep_keeps_and_drop_drops(value: Any) -> None:
    assert make("keep")(value, 0) is value
    assert make("drop")(value, 0) is ABSENT


# --- numbers ----------------------------------------------------------------------------------------------------------


@given(value=st.integers(-(1 << 1000), 1 << 1000), step=st.integers(1, 1 << 70))
def test_round_gives_the_nearest_multiple_halves_up(value: int, step: int) -> None:
    result = make("round", step)(value, 0)
    assert result % step == 0
    assert -step < 2 * (result - value) <= step


@given(value=st.integers(-(10**9), 10**9).map(lambda cents: cents / 100), step=st.sampled_from([1, 10, 0.5, 0.1, 2.5]))
def test_round_moves_no_amount_by_more_than_half_a_step(value: float, step: float) -> None:
    assert abs(make("round", step)(value, 0) - value) <= step / 2 * (1 + 1e-6)


def test_round_takes_every_integer_that_a_double_can_come_near() -> None:
    assert make("round", 1)(2**1024 - 1, 0) == 2**1024 - 1
    assert make("round", 1)(2**1024, 0) is ABSENT


def test_round_never_tells_a_number_beyond_what_json_holds() -> None:
    assert make("round", 10)(1 << 1024, 0) is ABSENT
    assert make("round", 1e-300)(1e300, 0) is ABSENT
    assert make("round", 0.5)((1 << 1024) - 1, 0) is ABSENT


@given(value=numbers, edges=st.lists(st.integers(-100, 100), min_size=1, unique=True).map(sorted))
def test_bucket_tells_the_range_and_nothing_finer(value: Any, edges: list[int]) -> None:
    bucket = make("bucket", edges)
    labels = [f"<{edges[0]}", *(f"{a}..{b}" for a, b in pairwise(edges)), f">={edges[-1]}"]
    below = [float("-inf"), *edges]
    above = [*edges, float("inf")]
    if type(value) is int and value.bit_length() > 1024:
        assert bucket(value, 0) is ABSENT
        return
    index = labels.index(bucket(value, 0))
    assert below[index] <= value < above[index]


@pytest.mark.parametrize(("value", "label"), [(-1, "<0"), (0, "0..10"), (9.999, "0..10"), (10, "10..50"), (50, ">=50")])
def test_the_lower_edge_is_in_and_the_upper_is_not(value: float, label: str) -> None:
    assert make("bucket", [0, 10, 50])(value, 0) == label


# --- times ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "finer"), [("hour", 13), ("day", 10), ("month", 7)])
@given(value=times)
def test_a_coarser_time_tells_nothing_finer(name: str, finer: int, value: Any) -> None:
    result = make(name)(value, 0)
    if result is not ABSENT:
        assert result == result[:finer] + "0000-01-01T00:00:00Z"[finer:]


@given(moment=st.datetimes(), other=st.datetimes())
def test_times_of_one_span_cannot_be_told_apart(moment: Any, other: Any) -> None:
    same_day = moment.replace(hour=other.hour, minute=other.minute, second=other.second, microsecond=other.microsecond)
    same_month = same_day.replace(day=min(other.day, 28))
    for name, sibling in (("day", same_day), ("month", same_month)):
        form = make(name)
        assert form(moment.isoformat() + "Z", 0) == form(sibling.isoformat() + "Z", 0)


def test_the_same_moment_in_two_zones_is_the_same_day() -> None:
    assert (
        make("day")("2026-03-01T00:30:00+01:00", 0) == make("day")("2026-02-28T23:30:00Z", 0) == "2026-02-28T00:00:00Z"
    )


@pytest.mark.parametrize(
    ("ms", "hour"),
    [
        (253_402_300_799_999, "9999-12-31T23:00:00Z"),
        (253_402_300_800_000, ABSENT),
        (-62_135_596_800_000, "0001-01-01T00:00:00Z"),
        (-62_135_596_800_001, ABSENT),
    ],
)
def test_the_first_and_the_last_hour_that_can_be_written(ms: int, hour: Any) -> None:
    assert make("hour")(ms, 0) == hour


# --- addresses --------------------------------------------------------------------------------------------------------


@given(address=st.ip_addresses(), bits4=st.integers(0, 24), bits6=st.integers(0, 64))
def test_truncate_ip_zeroes_the_bits_that_may_not_stay(address: Any, bits4: int, bits6: int) -> None:
    result = ip_address(make("truncate_ip", {"v4": bits4, "v6": bits6})(str(address), 0))
    if address.version == 6:
        address = address.ipv4_mapped or address.sixtofour or address
    assert result.version == address.version
    cleared = 32 - bits4 if address.version == 4 else 128 - bits6
    assert int(result) == int(address) >> cleared << cleared


def test_truncate_ip_without_parameters_keeps_24_and_48_bits() -> None:
    assert make("truncate_ip")("203.0.113.255", 0) == "203.0.113.0"
    assert make("truncate_ip")("2001:db8:ffff:ffff::1", 0) == "2001:db8:ffff::"


@pytest.mark.parametrize(
    "text", ["010.1.2.3", "1.2.3", "0x7f000001", "1.2.3.4 ", "1.2.3.4\0", "1.2.3.4/24", "localhost", ""]
)
def test_what_is_no_address_is_left_out(text: str) -> None:
    assert make("truncate_ip")(text, 0) is ABSENT


# --- addresses of pages -----------------------------------------------------------------------------------------------


@given(user=part, password=part, fragment=part, q=words)
def test_url_never_keeps_user_password_fragment_or_a_parameter_that_is_not_named(
    user: str, password: str, fragment: str, q: str
) -> None:
    address = f"https://{user}:{password}@shop.example:8443/p/7?q={quote(q)}&utm_source=mail&q#{fragment}"
    assert make("url")(address, 0) == "https://shop.example:8443/p/7"
    kept = make("url", {"keep_query": ["utm_source"]})(address, 0)
    assert kept == "https://shop.example:8443/p/7?utm_source=mail"


@given(value=urls)
def test_url_keeps_scheme_host_and_path_only(value: str) -> None:
    result = make("url", {"keep_query": ["utm_source"]})(value, 0)
    if result is ABSENT:
        assert value.startswith("ftp") or urlsplit(value).hostname is None
        return
    parts = urlsplit(result)
    assert parts.scheme in ("http", "https")
    assert (parts.username, parts.password, parts.fragment) == (None, None, "")
    assert {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)} <= {"utm_source"}


@pytest.mark.parametrize(
    ("value", "result"),
    [
        ("https://shop.example/?utm_source=a%20b&UTM_SOURCE=c", "https://shop.example/?utm_source=a+b"),
        ("https://shop.example/?%75tm_source=mail", "https://shop.example/?utm_source=mail"),
        ("https://shop.example/?utm_source", "https://shop.example/?utm_source="),
        ("https://shop.example?utm_source=x%26q%3Dana", "https://shop.example?utm_source=x%26q%3Dana"),
        ("https://shop.example/#utm_source=mail", "https://shop.example/"),
        ("https://ana@shop.example@evil.example/", "https://evil.example/"),
        ("//shop.example/", ABSENT),
        ("shop.example/p", ABSENT),
        ("data:text/html,ana", ABSENT),
        ("https://", ABSENT),
        ("https://[::1/", ABSENT),
        ("https://shop.example/?" + "&" * 999 + "utm_source=a", "https://shop.example/?utm_source=a"),
        ("https://shop.example/?" + "&" * 1000 + "utm_source=a", ABSENT),
    ],
)
def test_url_of_odd_addresses(value: str, result: Any) -> None:
    assert make("url", {"keep_query": ["utm_source"]})(value, 0) == result


# --- pseudonyms -------------------------------------------------------------------------------------------------------


@given(value=st.one_of(words, st.integers()))
def test_a_pseudonym_holds_within_its_purpose_and_epoch_and_only_there(value: Any) -> None:
    form = make("pseudonym")
    name = form(value, 0)
    assert form(value, CONTEXT.rotate - 1) == name
    assert form(value, CONTEXT.rotate) != name
    assert FORMS["pseudonym"].make(None, Context("news", CONTEXT.rotate, CONTEXT.master))(value, 0) != name
    assert FORMS["pseudonym"].make(None, Context("ads", CONTEXT.rotate, MasterKey(b"1" * 32)))(value, 0) != name
    assert form(name, 0) != name


def test_an_integer_and_the_string_of_its_digits_are_one_account() -> None:
    assert make("pseudonym")(17850, 0) == make("pseudonym")("17850", 0)
    assert make("pseudonym")(1.5, 0) is ABSENT


# --- parameters that make no sense ------------------------------------------------------------------------------------

STEP = "wanted the step, a number above 0, as in {round: 10}"
EDGES = "wanted the edges, numbers that rise, as in {bucket: [0, 10, 50]}"
BITS = "wanted the bits to keep, as in {truncate_ip: {v4: 24, v6: 48}}"
HOUSEHOLD = "at most 24 bits of an IPv4 and 64 of an IPv6 address may stay: more is one household"
QUERY = "wanted the parameters to keep, as in {url: {keep_query: [utm_source]}}"
WRONG: dict[str, dict[str, list[Any]]] = {
    "round": {STEP: [None, 0, -1, True, "10", [10], {}, float("nan"), float("inf"), 1 << 1025]},
    "bucket": {EDGES: [None, [], 5, "0", [0, 0], [1, 0], ["0"], [True], [None], {"0": 1}, [0, float("inf")]]},
    "truncate_ip": {
        BITS: [24, "24", [], {"v5": 1}, {"v4": "24"}, {"v4": 24.0}, {"v4": True}, {"v6": None}],
        HOUSEHOLD: [{"v4": 25}, {"v4": 32}, {"v4": -1}, {"v6": 65}, {"v6": -1}],
    },
    "url": {QUERY: [[], "utm_source", 1, {"keep": []}, {"keep_query": "q"}, {"keep_query": [1]}, {"keep_query": None}]},
}
CASES = [(name, message, value) for name, kinds in WRONG.items() for message, some in kinds.items() for value in some]


@pytest.mark.parametrize(("name", "message", "parameters"), CASES, ids=[f"{name}-{value}" for name, _, value in CASES])
def test_parameters_that_make_no_sense_are_refused_in_words(name: str, message: str, parameters: Any) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is what is tested
        make(name, parameters)
    assert str(error.value) == message
