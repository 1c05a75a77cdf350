"""The reader of documents at its edges: depth, groups of null, short subjects, and what its caller has used up."""

import pytest

from streams.event import Reason, Rejected
from streams.sources import DocumentReader, Paths

READER = DocumentReader(Paths("who", "what", None, None), ["item.price", "item.shelf.row", "item.shelf.bay"])


def read(value: bytes) -> bytes | Reason | None:
    try:
        return READER.read(value).subject
    except Rejected as rejected:
        return rejected.reason


def event(extra: bytes) -> bytes:
    return b'{"who":"ana","what":"seen","x":' + extra + b"}"


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (b"[" + b"{}," * 200 + b"[]]", b"ana"),
        (b"[" + b"[]," * 200 + b"{}]", b"ana"),
        (b'[{"x":"' + b"}" * 9 + b'"},' + b"{}," * 200 + b"[]]", b"ana"),
        (b"[" * 127 + b"]" * 127, b"ana"),
        (b"[" * 128 + b"]" * 128, Reason.TOO_DEEP),
        (b'{"x":' * 127 + b"1" + b"}" * 127, b"ana"),
        (b'{"x":' * 128 + b"1" + b"}" * 128, Reason.TOO_DEEP),
        # It is told by what is open at one moment, not by what was opened since something closed.
        (b"[" * 70 + b"[]," + b"[" * 58 + b"]" * 128, Reason.TOO_DEEP),
        (b"[" * 70 + b"[]," + b"[" * 57 + b"]" * 127, b"ana"),
        (b"[" * 70 + b"{}," + b"[" * 58 + b"]" * 128, Reason.TOO_DEEP),
        (b"[" * 70 + b"{}," + b"[" * 57 + b"]" * 127, b"ana"),
    ],
)
def test_depth_is_what_is_open_at_one_moment(extra: bytes, expected: bytes | Reason) -> None:
    assert read(event(extra)) == expected


@pytest.mark.parametrize("subject", [b"7", b'"7"', b"0", b'"\xc3\xa9"'])
def test_the_shortest_subjects_are_subjects(subject: bytes) -> None:
    assert read(b'{"what":"seen","who":' + subject + b"}") == subject.strip(b'"')


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (b"null", (None, None)),
        (b'{"price":3,"shelf":null}', (3, None)),
        (b'{"shelf":null,"price":3}', (3, None)),
        (b'{"price":null,"shelf":{"row":2}}', (None, 2)),
        (b'{"shelf":{"row":null,"bay":1},"price":3}', (3, None)),
    ],
)
def test_a_group_of_null_is_a_group_without_members(item: bytes, expected: tuple[int | None, int | None]) -> None:
    envelope = READER.read(b'{"who":"ana","what":"seen","item":' + item + b"}")
    assert READER.getter(["item.price", "item.shelf.row"])(envelope.document) == expected


@pytest.mark.parametrize(
    "item", [b"[]", b'"x"', b"3", b"true", b'{"shelf":3}', b'{"shelf":[]}', b'{"shelf":{"row":1},"shelf":3}']
)
def test_a_group_that_is_no_object_is_refused(item: bytes) -> None:
    assert read(b'{"who":"ana","what":"seen","item":' + item + b"}") == Reason.WRONG_SHAPE


def test_a_caller_that_stands_deep_gets_the_event_or_a_reason() -> None:
    """How deep the parsers go depends on how deep their caller stands; both of them are asked here."""
    value = event(b"[" * 100 + b"]" * 100 + b',"y":{"who":1}')
    answers = set()

    def from_depth(frames: int) -> bytes | Reason | None:
        return read(value) if frames == 0 else from_depth(frames - 1)

    for frames in range(0, 1000, 5):
        try:
            answers.add(from_depth(frames))
        except RecursionError:
            break  # There was no room for the call itself.
    assert answers - {Reason.TOO_DEEP} == {b"ana"}
