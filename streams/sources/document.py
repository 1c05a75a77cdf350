"""Reads one JSON object by dotted paths.

Rules of this file:
- Bytes are decoded straight into a type compiled from the paths (msgspec `Struct`): what the policy does not name is
  parsed for validity and never kept, so it cannot leak. It also halves the cost of reading.
- A name matches letter for letter: no case folding, no normalization, no dots inside a name. What does not match is
  not there.
- The document must be UTF-8 throughout and must not name subject or type twice in one object: parsers disagree about
  which one counts, and the person asked for consent must be the person the event is about. Of any other name given
  twice the last one counts, here and wherever the event is read again.
"""

import json
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from streams.event import Reason, Rejected, milliseconds
from streams.transforms import ABSENT

__all__ = ["DocumentReader", "Envelope", "Getter", "Paths"]

Getter = Callable[[Any], tuple[Any, ...]]
"""Takes a document and returns the values at the paths it was made for, ABSENT where there is none."""

_LONGEST_SUBJECT = 1024
_DEEPEST = 128
# Strings are passed over whole; one that does not end takes the rest.
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[][{}]', re.DOTALL)
# Only these escapes can hide a letter of an ASCII name: \u0020 to \u007f.
_ESCAPED_ASCII = re.compile(rb"\\u00[2-7]")


class Paths(NamedTuple):
    """Dotted paths of the envelope. `time` and `id` may be None: then Kafka's timestamp and coordinates serve."""

    subject: str
    type: str
    time: str | None
    id: str | None


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """What every event has. `subject` is None where the event is about nobody known; `time` is ms or None."""

    subject: bytes | None
    type: str
    time: int | None
    document: Any


class DocumentReader:
    """Reads the events of one source: the envelope, and the fields at `fields` (dotted paths).

    >>> reader = DocumentReader(Paths("who", "what", None, None), ["item.price"])
    >>> envelope = reader.read(b'{"who":"ana","what":"bought","item":{"price":3,"note":"for my mother"}}')
    >>> envelope.subject, envelope.type, reader.getter(["item.price", "item.note"])(envelope.document)
    (b'ana', 'bought', (3, None))
    """

    def __init__(self, paths: Paths, fields: Iterable[str]) -> None:
        envelope = [path for path in paths if path is not None]
        self._tree = _tree([*envelope, *fields])
        self._attributes: dict[str, str] = {}
        self._document = self._compile(self._tree, "", "")
        self._decode = msgspec.json.Decoder(self._document).decode
        self._envelope = self.getter([paths.subject, paths.type, paths.time or paths.type])
        self._timed = paths.time is not None
        names = {name for path in (paths.subject, paths.type) for name in path.split(".")}
        self._names = names
        self._quoted = [f'"{name}"'.encode() for name in sorted(names)]
        # Names of letters, digits, _ and - can only be written another way by \u00XX; other names by any escape.
        plain = all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in names)
        self._escape = _ESCAPED_ASCII if plain else re.compile(rb"\\")

    def _compile(self, tree: dict[str, Any], path: str, attribute: str) -> type[msgspec.Struct]:
        fields: list[tuple[str, Any, Any]] = []
        rename = {}
        for index, (name, below) in enumerate(tree.items()):
            here, at = f"{path}.{name}".lstrip("."), f"{attribute}.f{index}".lstrip(".")
            rename[f"f{index}"] = name
            if below:
                group = self._compile(below, here, at)
                fields.append((f"f{index}", group, msgspec.field(default_factory=group)))
            else:
                self._attributes[here] = at
                fields.append((f"f{index}", Any, ABSENT))
        return msgspec.defstruct("Document", fields, rename=rename, gc=False)

    def getter(self, paths: Iterable[str]) -> Getter:
        """Return a getter of these paths. A path that the reader was not made for is always ABSENT."""
        wanted = [self._attributes.get(path) for path in paths]
        known = [attribute for attribute in wanted if attribute is not None]
        if len(known) == len(wanted) > 1:
            return attrgetter(*known)
        if len(known) == len(wanted) == 1:
            get = attrgetter(known[0])
            return lambda document: (get(document),)
        each = [attrgetter(attribute) if attribute is not None else _absent for attribute in wanted]
        return lambda document: tuple(get(document) for get in each)

    def read(self, value: bytes | None) -> Envelope:
        """Read one event.

        Raises:
            Rejected: it is not one JSON object in UTF-8, or its envelope cannot be read.
        """
        if not value:
            raise Rejected(Reason.NO_VALUE)
        document = self._read_document(value)
        subject, kind, time = self._envelope(document)
        if type(kind) is not str or not kind:
            raise Rejected(Reason.BAD_TYPE)
        if self._timed:
            try:
                time = milliseconds(time)
            except ValueError:
                raise Rejected(Reason.BAD_TIME) from None
        else:
            time = None
        if type(subject) is str and 0 < len(subject) <= _LONGEST_SUBJECT // 4:
            return Envelope(subject.encode(), kind, time, document)  # The usual case, without a call.
        return Envelope(_subject(subject), kind, time, document)

    def _read_document(self, value: bytes) -> Any:
        opened = value.count(b"{")
        if b"[" in value:
            opened += value.count(b"[")
        if opened > _DEEPEST:
            _refuse_depth(value)
        wrong: Exception | None = None
        try:
            if not value.isascii():
                value.decode()  # The decoder does not look into strings that it skips.
            document = self._decode(value)
        except (UnicodeDecodeError, RecursionError, msgspec.MsgspecError) as error:
            wrong = error
        if wrong is not None:  # Not above: the decoder's error would hang on what is raised, with the event in it.
            document = self._second_look(value, wrong)
        for name in self._quoted:
            if value.count(name) > 1:
                self._refuse_duplicates(value)
                break
        else:
            if b"\\" in value and self._escape.search(value):
                self._refuse_duplicates(value)
        return document

    def _second_look(self, value: bytes, error: Exception) -> Any:
        """Tell what is wrong with a document that did not fit, or read it after all: a group may be null."""
        if isinstance(error, RecursionError):
            raise Rejected(Reason.TOO_DEEP)
        if not isinstance(error, msgspec.ValidationError):
            raise Rejected(Reason.MALFORMED)
        reason, document = Reason.NOT_AN_OBJECT, None
        try:
            document = msgspec.json.decode(value)
        except RecursionError:
            reason = Reason.TOO_DEEP
        except msgspec.MsgspecError:
            reason = Reason.MALFORMED
        if type(document) is dict:
            _drop_null_groups(document, self._tree)
            reason = Reason.WRONG_SHAPE
            with suppress(msgspec.ValidationError):
                return msgspec.convert(document, self._document)
        raise Rejected(reason)

    def _refuse_duplicates(self, value: bytes) -> None:
        # The names stand more than once, or may hide behind escapes: now the exact question, at six times the cost.
        names = self._names

        def refuse(pairs: list[tuple[str, Any]]) -> None:
            given = [name for name, _ in pairs if name in names]
            if len(given) != len(set(given)):
                raise Rejected(Reason.DUPLICATE_NAME)

        reason = None
        try:
            # Numbers are not looked at: a long one is none of this question's business.
            json.loads(value, object_pairs_hook=refuse, parse_int=str)
        except RecursionError:
            reason = Reason.TOO_DEEP
        except ValueError:
            reason = Reason.MALFORMED
        if reason is not None:
            raise Rejected(reason)


def _refuse_depth(value: bytes) -> None:
    # How deep the parsers go depends on how deep their caller stands; this limit is the same for everyone.
    depth = 0
    for token in _BRACKETS.finditer(value):
        match token[0]:
            case b"{" | b"[":
                depth += 1
                if depth > _DEEPEST:
                    raise Rejected(Reason.TOO_DEEP)
            case b"}" | b"]":
                depth -= 1


def _absent(_document: Any) -> Any:
    return ABSENT


def _subject(value: Any) -> bytes | None:
    if value is ABSENT:
        return None
    if type(value) is int:
        value = str(value)
    if type(value) is not str:
        raise Rejected(Reason.BAD_SUBJECT)
    subject = value.encode()
    if not 0 < len(subject) <= _LONGEST_SUBJECT:
        raise Rejected(Reason.BAD_SUBJECT)
    return subject


def _tree(paths: Iterable[str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path in paths:
        here = tree
        for name in path.split("."):
            here = here.setdefault(name, {})
    return tree


def _drop_null_groups(document: dict[str, Any], tree: dict[str, Any]) -> None:
    for name, below in tree.items():
        if below and name in document:
            if document[name] is None:
                del document[name]
            elif type(document[name]) is dict:
                _drop_null_groups(document[name], below)
