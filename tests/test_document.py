"""The reader of documents at its edges: depth, groups of null, short subjects, and what its caller has used up."""

import json

import pytest

from streams.event import Reason, Rejected
from streams.sources import DocumentReader, Paths
from streams.transforms import ABSENT

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


# --- readers that are made in the test: what they are made of is seen too --------------------------------------------


def made(*fields: str, subject: str = "who.id") -> DocumentReader:
    return DocumentReader(Paths(subject, "what", "at", None), fields)


@pytest.mark.parametrize("name", ["XX", "X.X", "Xylophone.XXL", "x.XX", "_a-b", "ABC"])
def test_names_are_taken_letter_for_letter(name: str) -> None:
    path = name.split(".")
    value = json.dumps(
        {"who": {"id": "ana"}, "what": "seen", "at": 1, path[0]: {path[1]: 7} if len(path) > 1 else 7}
    ).encode()
    reader = made(name, "who.name")
    assert reader.getter([name, "who.name"])(reader.read(value).document) == (7, ABSENT)


@pytest.mark.parametrize("who", ['{"id":"eve","id":"ana"}', '{"id":"eve","\\u0069d":"ana"}'])
@pytest.mark.parametrize("subject", ["who.id", "WHO.id"])
def test_each_name_on_the_way_to_the_subject_is_given_once(who: str, subject: str) -> None:
    outer = subject.partition(".")[0]
    reader = made(subject=subject)
    assert reader.read(f'{{"{outer}":{{"id":"ana"}},"what":"seen","at":1}}'.encode()).subject == b"ana"
    for twice in (f'"{outer}":{who}', f'"{outer}":{{"id":"eve"}},"{outer}":{{"id":"ana"}}'):
        with pytest.raises(Rejected) as rejected:
            reader.read(f'{{{twice},"what":"seen","at":1}}'.encode())
        assert rejected.value.reason is Reason.DUPLICATE_NAME


@pytest.mark.parametrize("subject", ['"ana"', "7", '"' + "a" * 1024 + '"'])
def test_every_subject_comes_with_its_time(subject: str) -> None:
    assert made().read(f'{{"who":{{"id":{subject}}},"what":"seen","at":1500}}'.encode()).time == 1500
