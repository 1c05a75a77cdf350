"""Sources: from the bytes of an event to its envelope, or to a refusal."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.event import Reason, Rejected
from streams.sources import SHAPES, DocumentReader, Envelope, Paths
from streams.transforms import ABSENT

READER = DocumentReader(Paths("who.id", "what", "at", None), ["item.price", "item.size", "page"])
EVENT: dict[str, Any] = {
    "who": {"id": "ana"},
    "what": "seen",
    "at": 1500,
    "item": {"price": 3, "size": "M"},
    "page": "/",
}


def write(**changes: Any) -> bytes:
    """Return the event with some members changed; one that is changed to ... is left out."""
    members = EVENT | changes
    return json.dumps({name: value for name, value in members.items() if value is not ...}).encode()


def read(value: bytes, reader: DocumentReader = READER) -> Envelope | Reason:
    try:
        return reader.read(value)
    except Rejected as rejected:
        return rejected.reason


def fields(value: bytes, *paths: str) -> tuple[Any, ...]:
    return READER.getter(paths)(READER.read(value).document)


def test_plain_is_the_only_shape() -> None:
    assert list(SHAPES) == ["plain"]
    assert SHAPES["plain"] is DocumentReader


def test_an_event_is_read() -> None:
    envelope = READER.read(write())
    assert (envelope.subject, envelope.type, envelope.time) == (b"ana", "seen", 1500)
    assert fields(write(), "page", "item.price", "item.size") == ("/", 3, "M")


def test_without_a_path_of_the_time_there_is_none() -> None:
    reader = DocumentReader(Paths("who.id", "what", None, None), [])
    assert reader.read(write(at="yesterday")).time is None


# --- the envelope -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        ("ana", b"ana"),
        (17850, b"17850"),
        (-7, b"-7"),
        (10**30, b"1" + b"0" * 30),
        ("Zoë", "Zoë".encode()),
        (" ana ", b" ana "),
        ("*", b"*"),
        ("\0", b"\0"),
        ("x" * 1024, b"x" * 1024),
        ("é" * 512, "é".encode() * 512),
        (None, None),
        ("", Reason.BAD_SUBJECT),
        ("x" * 1025, Reason.BAD_SUBJECT),
        ("é" * 513, Reason.BAD_SUBJECT),
        (10**1024, Reason.BAD_SUBJECT),
        (1.0, Reason.BAD_SUBJECT),
        (True, Reason.BAD_SUBJECT),
        (["ana"], Reason.BAD_SUBJECT),
        ({"id": "ana"}, Reason.BAD_SUBJECT),
    ],
)
def test_the_subject(subject: Any, expected: bytes | Reason | None) -> None:
    envelope = read(write(who={"id": subject}))
    assert (envelope.subject if isinstance(envelope, Envelope) else envelope) == expected


@pytest.mark.parametrize("who", [..., None, {}, {"ID": "ana"}])
def test_an_event_may_be_about_nobody(who: Any) -> None:
    assert READER.read(write(who=who)).subject is None


@pytest.mark.parametrize("kind", [..., None, "", 7, True, ["seen"], {"what": "seen"}])
def test_an_event_must_have_a_type(kind: Any) -> None:
    assert read(write(what=kind)) is Reason.BAD_TYPE


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        (0, 0),
        (-1, -1),
        ((1 << 62) - 1, (1 << 62) - 1),
        ("1970-01-01T00:00:01Z", 1000),
        ("1970-01-01T00:00:01.9999999Z", 1999),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1969-12-31T23:59:59.9999Z", -1),
        ("0001-01-01T00:00:00+14:00", -62135647200000),
        ("9999-12-31T23:59:59.999999Z", 253402300799999),
        (1 << 62, None),
        (1.5, None),
        (1e3, None),
        (True, None),
        ("1500", None),
        ("", None),
        ("1970-01-01T00:00:01", None),
        ("1970-01-01 00:00:01Z", None),
        ("1970-01-01t00:00:01z", None),
        ("1970-01-01T00:00:01+01", None),
        ("1970-01-01T00:00:01+0100", None),
        ("1970-01-01", None),
        ("1970-02-30T00:00:00Z", None),
        ("1970-01-01T24:00:00Z", None),
        ("1970-01-01T00:00:60Z", None),
        ("1970-01-01T00:00:01Z\n", None),
        ("١٩٧٠-01-01T00:00:00Z", None),
        ("yesterday", None),
        (None, None),
        (..., None),
        ([1500], None),
        ({}, None),
    ],
)
def test_the_time(time: Any, expected: int | None) -> None:
    envelope = read(write(at=time))
    assert (envelope.time if isinstance(envelope, Envelope) else envelope) == (
        expected if expected is not None else Reason.BAD_TIME
    )


# --- fields -----------------------------------------------------------------------------------------------------------


def test_what_is_not_there_or_null_is_absent() -> None:
    assert fields(write(page=None, item=...), "page", "item.price", "item.size") == (ABSENT, ABSENT, ABSENT)
    assert fields(write(item=None), "page", "item.price") == ("/", ABSENT)
    assert fields(write(item={}), "item.price") == (ABSENT,)


def test_a_getter_gives_what_the_reader_was_made_for_and_nothing_else() -> None:
    assert fields(write(secret=1), "secret", "page") == (ABSENT, "/")
    assert fields(write(), "item", "who") == (ABSENT, ABSENT)
    assert fields(write(), "page") == ("/",)
    assert fields(write()) == ()


@pytest.mark.parametrize("name", ["Page", "p\u0430ge", "page ", "\uff50age", "page\0", "_page"])
def test_a_name_matches_letter_for_letter(name: str) -> None:
    assert fields(write(page=..., **{name: "/"}), "page") == (ABSENT,)


def test_a_dot_in_a_name_is_no_path() -> None:
    assert fields(write(**{"item": ..., "item.price": 3}), "item.price") == (ABSENT,)


def test_a_name_may_be_written_in_escapes() -> None:
    assert fields(write().replace(b'"page"', b'"\\u0070age"'), "page") == ("/",)


@given(rest=st.dictionaries(st.text("xyz", min_size=1), st.sampled_from(["canary", ["canary"], {"z": "canary"}])))
def test_what_the_policy_does_not_name_is_not_kept(rest: dict[str, Any]) -> None:
    assert "canary" not in repr(READER.read(json.dumps(EVENT | rest | {"item": {"price": 3} | rest}).encode()))


# --- documents --------------------------------------------------------------------------------------------------------

DEEP = b'{"what":"seen","at":1,"x":%b}'


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", Reason.NO_VALUE),
        (b" ", Reason.MALFORMED),
        (write()[:-1], Reason.MALFORMED),
        (write() + b"}", Reason.MALFORMED),
        (write() + write(), Reason.MALFORMED),
        (b"\xef\xbb\xbf" + write(), Reason.MALFORMED),
        (write().decode().encode("utf-16"), Reason.MALFORMED),
        (write(x="@").replace(b"@", b"\xff"), Reason.MALFORMED),
        (write(x="@").replace(b"@", b"\xc0\xaf"), Reason.MALFORMED),
        (write(x="@").replace(b"@", b"\n"), Reason.MALFORMED),
        (write(x="\ud800"), Reason.MALFORMED),
        (write(x=1).replace(b'"x": 1', b'"x": NaN'), Reason.MALFORMED),
        (write(x=1).replace(b'"x": 1', b'"x": 01'), Reason.MALFORMED),
        (write().replace(b'"', b"'"), Reason.MALFORMED),
        (b"[" + write() + b"]", Reason.NOT_AN_OBJECT),
        (b"null", Reason.NOT_AN_OBJECT),
        (b"17850", Reason.NOT_AN_OBJECT),
        (b'"seen"', Reason.NOT_AN_OBJECT),
        (write(item=3), Reason.WRONG_SHAPE),
        (write(item=[{"price": 3}]), Reason.WRONG_SHAPE),
        (write(who="ana"), Reason.WRONG_SHAPE),
        (DEEP % (b"[" * 128 + b"]" * 128), Reason.TOO_DEEP),
        (DEEP % (b'{"y":' * 128 + b"1" + b"}" * 128), Reason.TOO_DEEP),
        (b"[" * 100_000, Reason.TOO_DEEP),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_document_that_cannot_be_read(value: bytes, reason: Reason) -> None:
    assert read(value) is reason


@pytest.mark.parametrize(
    "value",
    [
        DEEP % (b"[" * 127 + b"]" * 127),
        DEEP % (b"[" + b",".join([b"[]"] * 1000) + b"]"),
        DEEP % (b'"' + b"[" * 1000 + b'\\"' + b"{" * 1000 + b'"'),
        b" \r\n\t" + write() + b"\n",
    ],
    ids=["127 below the first", "1,000 beside each other", "brackets in a string", "white space around"],
)
def test_a_document_that_can_be_read_after_all(value: bytes) -> None:
    assert isinstance(read(value), Envelope)


@pytest.mark.parametrize("value", [None, b""])
def test_no_value(value: bytes | None) -> None:
    with pytest.raises(Rejected, match="no_value"):
        READER.read(value)


# --- names given twice ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "extra",
    [
        b'"what":"seen"',
        b'"wh\\u0061t":"bought"',
        b'"\\u0077hat":"bought"',
        b'"who":{"id":"eve"}',
        b'"who":{"id":"eve","id":"ana"}',
        b'"w\\u0068o":{"id":"eve"}',
        b'"x":{"id":1,"id":2}',
        b'"x":[{"y":{"what":1,"wh\\u0061t":1}}]',
    ],
)
def test_subject_and_type_may_be_named_once_in_an_object(extra: bytes) -> None:
    assert read(b"{" + extra + b"," + write()[1:]) is Reason.DUPLICATE_NAME
    assert read(write()[:-1] + b"," + extra + b"}") is Reason.DUPLICATE_NAME


def test_names_in_different_objects_and_values_are_not_given_twice() -> None:
    event = read(write(x={"what": 1, "who": 2, "id": 3}, y=["what", '"what"', {"what": 1}], page="wh\u0061t"))
    assert isinstance(event, Envelope)
    assert event.type == "seen"


def test_of_other_names_given_twice_the_last_counts() -> None:
    assert fields(write()[:-1] + b',"page":"/last"}', "page") == ("/last",)
    assert fields(write()[:-1] + b',"item":{"size":"L"}}', "item.size", "item.price") == ("L", ABSENT)


def test_a_long_number_beside_a_repeated_name_changes_nothing() -> None:
    assert read(write()[:-1] + b',"x":{"what":' + b"9" * 5000 + b"}}") is not Reason.MALFORMED


@pytest.mark.parametrize("name", ["naïve", "Просмотр", "'a'", "a:b/c#d", "{"])
def test_any_name_may_be_that_of_the_subject(name: str) -> None:
    reader = DocumentReader(Paths(name, "what", None, None), [])
    once = json.dumps({name: "ana", "what": "seen"}).encode()
    twice = b"{" + json.dumps(name).encode() + b':"eve",' + once[1:]
    assert reader.read(once).subject == b"ana"
    assert read(twice, reader) is Reason.DUPLICATE_NAME
    raw = json.dumps({name: "ana", "what": "seen"}, ensure_ascii=False).encode()
    assert read(raw[:-1] + b"," + once[1:], reader) is Reason.DUPLICATE_NAME
