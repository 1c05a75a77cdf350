"""Whatever comes, only our own errors leave, and they carry no payload: readers of events, consents, and all the rest.

The targets are those of `make fuzz`, here with mutations of the inputs of the tables; what a fuzzer found is a test.
"""

import json
import traceback
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streams.check import survey
from streams.consent import Consents, read_consent
from streams.errors import SettingsError
from streams.event import RawEvent, Rejected
from streams.explain import explain, render
from streams.outcome import shape_of
from streams.pipeline import process
from tests.fuzz.found import FOUND, is_known
from tests.fuzz.targets import READERS, TARGETS, compiled, open_seals, words
from tests.inputs import CANARY, CASES, KEY
from tests.strategies import NOW, Draw


@cache
def seeds(name: str) -> list[bytes]:
    return list(TARGETS[name].seeds())


WORDS = list(words())


@st.composite
def mutated(draw: Draw, name: str) -> bytes:
    """Draw a seed of a target with some edits, or any bytes."""
    data: bytes = draw(st.one_of(st.sampled_from(seeds(name)), st.binary(max_size=200)))
    for _ in range(draw(st.integers(0, 4))):
        start, end = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
        new = draw(
            st.one_of(
                st.just(b""),
                st.sampled_from(WORDS),
                st.binary(max_size=4),
                st.just(data[start:end] * 2),
                st.sampled_from(seeds(name)),
            )
        )
        data = data[:start] + bytes(new) + data[draw(st.sampled_from([start, min(len(data), start + len(new)), end])) :]
    return data


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_comes_only_our_own_errors_leave(name: str) -> None:
    @settings(max_examples=5 * settings().max_examples)
    @given(data=mutated(name))
    def run(data: bytes) -> None:
        try:
            TARGETS[name].run(data)
        except Exception as error:
            if not is_known(name, error):
                raise

    run()


HUGE = {
    "opened": b"[" * 1_000_000,
    "objects": b'{"a":' * 300_000,
    "nested": b'{"user_id":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "closed": b"]" * 1_000_000,
    "names": b"{" + b",".join(b'"%d":1' % n for n in range(20_000)) + b"}",
    "one name": b"{" + b'"type":1,' * 20_000 + b'"type":1}',
    "digits": b'{"version":' + b"9" * 1_000_000 + b"}",
    "an exponent": b'{"version":1e' + b"9" * 100_000 + b"}",
    "escapes": b'{"subject":"' + b"\\u0061" * 200_000 + b'"}',
    "quotes": b'"' * 1_000_000,
    "a long time": b'{"user_id":"a","type":"b","at":"2026-01-01T00:00:00.' + b"0" * 4_000 + b'Z"}',
    "colons": b":" * 300_000,
    "aliases": b"a: &a [" + b"*a," * 10_000 + b"]",
    "lines": b"\n" * 20_000,
    "zeros": bytes(1_000_000),
}


@pytest.mark.parametrize("shape", HUGE)
@pytest.mark.parametrize("name", TARGETS)
def test_nothing_is_too_deep_or_too_long(name: str, shape: str) -> None:
    try:
        TARGETS[name].run(HUGE[shape])
    except Exception as error:
        if not is_known(name, error):
            raise


@pytest.mark.parametrize("number", range(len(FOUND)), ids=lambda number: FOUND[number].what)
def test_what_was_found_is_mended(number: int, request: pytest.FixtureRequest) -> None:
    found = FOUND[number]
    if not found.mended:
        request.applymarker(pytest.mark.xfail(strict=True, raises=found.raised, reason=found.what))
    TARGETS[found.target].run(found.data)


# --- canaries in errors -----------------------------------------------------------------------------------------------


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and all that hang on it, whether a traceback would show them or not."""
    if error is not None:
        yield error
        yield from chain(error.__cause__)
        yield from chain(error.__context__)


def shown(error: BaseException) -> str:
    """Return what a log shows of an error with its traceback."""
    return "".join(traceback.format_exception(error))


def held(error: BaseException) -> str:
    """Return all that an error and those behind it hold: texts, arguments, and attributes such as an object."""
    parts = [(str(one), repr(one), one.args, vars(one), getattr(one, "object", None)) for one in chain(error)]
    return repr(parts)


def breaks(value: bytes) -> Iterator[bytes]:
    """Yield a document in many broken forms that all still hold what it held."""
    yield from (value[:-1], value + b"}", value + value, b"\xef\xbb\xbf" + value, value.replace(b'"', b"'"))
    yield from (value + b"\xff", b"[" + value + b"]", b"[" * 200 + value, value.replace(b":", b":NaN,", 1))


DOCUMENT = json.dumps(
    {"user_id": f"ana-{CANARY}", "type": f"viewed-{CANARY}", "at": CANARY, "page": CANARY, CANARY: {CANARY: [CANARY]}}
).encode()
RECORD = json.dumps(
    {"subject": f"ana-{CANARY}", "version": CANARY, "purposes": {CANARY: {"rung": CANARY, "since": CANARY}}, CANARY: 1}
).encode()
GRANT = {"rung": "crowd", "since": "2020-01-01T00:00:00Z"}
READABLE = {"subject": f"ana-{CANARY}", "version": 1, "purposes": {CANARY: GRANT}}
ALMOST = [
    READABLE | {CANARY: 1},
    READABLE | {"purposes": {CANARY: GRANT | {"rung": CANARY}}},
    READABLE | {"purposes": {CANARY: GRANT | {CANARY: 1}}},
    READABLE | {"purposes": {CANARY: GRANT | {"until": CANARY}}},
    READABLE | {"purposes": {CANARY: CANARY}},
]
WRONG = [*(json.dumps(record).encode() for record in ALMOST), DOCUMENT, *breaks(DOCUMENT), RECORD, *breaks(RECORD)]


def rejected_by_readers() -> Iterator[Rejected]:
    """Yield what readers raise for inputs with a canary."""
    for reader in READERS:
        for value in [*(case.value for case in CASES if case.value and len(case.value) < 5000), *WRONG]:
            try:
                reader.read(value)
            except Rejected as rejected:
                yield rejected


def refused_consents() -> Iterator[ValueError]:
    for value in [*WRONG, *(said.value or b"" for case in CASES for said in case.said)]:
        try:
            read_consent(value)
        except ValueError as error:
            yield error


def test_a_rejection_shows_nothing_of_the_payload() -> None:
    errors = list(rejected_by_readers())
    assert len({error.reason for error in errors}) > 7
    for error in errors:
        assert CANARY not in str(error) + repr(error) + repr(error.args) + shown(error)


def test_a_rejection_holds_nothing_of_the_payload() -> None:
    for error in rejected_by_readers():
        assert CANARY not in held(error)


def test_a_refused_consent_shows_nothing_of_the_record() -> None:
    errors = list(refused_consents())
    assert len(errors) > 30
    for error in errors:
        assert CANARY not in str(error) + repr(error) + repr(error.args) + shown(error)


def test_a_refused_consent_holds_nothing_of_the_record() -> None:
    for error in refused_consents():
        assert CANARY not in held(error)


def test_a_refused_token_holds_nothing_of_it() -> None:
    for token in (CANARY.encode(), CANARY.encode().hex().encode(), b"0" * 31, CANARY.encode() * 4):
        with pytest.raises(SettingsError) as raised:
            compiled().plan.purposes["ads"].seal.open(token, ["raw"])
        assert CANARY not in held(raised.value)
        open_seals(token)


@given(data=st.data())
@example(data=None)
def test_nothing_that_is_told_of_an_input_holds_a_canary(data: Any) -> None:
    """What becomes of an event that is not published, its shape, its explanation and a survey of it."""
    shared = compiled()
    for value in WRONG if data is None else [data.draw(st.sampled_from(WRONG)) + data.draw(st.binary(max_size=8))]:
        record = RawEvent(0, NOW, KEY, value)
        known = Consents()
        known.apply(KEY, value)
        told: list[Any] = [record, shape_of(value, shared.source.known_paths)]
        for consents in (shared.consents, known):
            told.append(process(record, shared.place, consents, shared.plan, NOW))
            told.append(render(explain(shared.plan, shared.place, record, consents, NOW)))
        told.append(survey([value], shared.plan, shared.source).lines(shared.source, shared.plan.policy))
        assert CANARY not in repr(told)
