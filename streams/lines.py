"""Lines of files and of standard input, and the consents of a file.

Rules of this file:
- Lines are streamed, and none is held that is longer than any event.
- A consent line that cannot be read denies its subject; where not even the subject can be read, it denies everyone.
"""

import json
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from streams.consent import Consents, read_consent
from streams.errors import SettingsError

__all__ = [
    "MAX_LINE_BYTES",
    "FileConsents",
    "Line",
    "TooLong",
    "open_input",
    "read_consents",
    "read_document",
    "read_lines",
]

MAX_LINE_BYTES = 16 << 20
"""A longer line is no event: it is counted and skipped without being held."""

_CHUNK = 1 << 20


class TooLong(NamedTuple):
    """Stands for a line longer than `MAX_LINE_BYTES`: its length in bytes."""

    size: int


Line = bytes | TooLong
"""A line without its end, or the length of one that is too long."""


@contextmanager
def open_input(file: Path | None) -> Iterator[tuple[BinaryIO, Callable[[], int] | None]]:
    """Open a file, or standard input (None); names that end in `.gz` are unpacked on the way.

    Gives the stream, and a function that tells how many bytes of the file were read (None for standard input).

    Raises:
        SettingsError: it cannot be opened.
    """
    if file is None:
        yield sys.stdin.buffer, None
        return
    try:
        raw = file.open("rb")
    except OSError as error:
        raise SettingsError(f"`{file}` cannot be read: {error.strerror}") from None
    with raw:
        if file.suffix == ".gz":
            import gzip  # only those who read packed files wait for it

            with gzip.GzipFile(fileobj=raw, mode="rb") as unpacked:
                yield unpacked, raw.tell  # type: ignore[misc]
        else:
            yield raw, raw.tell


def read_lines(stream: BinaryIO, name: str, longest: int = MAX_LINE_BYTES) -> Iterator[Line]:
    r"""Yield the lines of a stream without their ends; `name` is the stream's name in messages.

    >>> import io
    >>> list(read_lines(io.BytesIO(b'{}\n\n{"much": "too long"}\r\n{}'), "events", longest=8))
    [b'{}', b'', TooLong(size=20), b'{}']

    Raises:
        SettingsError: the stream breaks.
    """
    try:
        while line := stream.readline(longest + 2):
            ended = line.removesuffix(b"\n").removesuffix(b"\r")
            if len(ended) <= longest:
                yield ended
                continue
            size = len(ended)
            while not line.endswith(b"\n") and (line := stream.readline(_CHUNK)):
                size += len(line.removesuffix(b"\n").removesuffix(b"\r"))
            yield TooLong(size)
    except (OSError, EOFError, zlib.error) as error:
        raise SettingsError(f"`{name}` cannot be read to its end ({type(error).__name__}); is it whole?") from None


def read_document(file: Path | None) -> bytes:
    """Return the one JSON document of a file, or of standard input (None), which may stretch over many lines.

    Raises:
        SettingsError: it cannot be read, is too long, or holds several documents, one a line.
    """
    with open_input(file) as (stream, _):
        try:
            text = stream.read(MAX_LINE_BYTES + 1).strip(b"\r\n")
        except (OSError, EOFError, zlib.error) as error:
            raise SettingsError(f"`{file or '-'}` cannot be read ({type(error).__name__})") from None
    if len(text) > MAX_LINE_BYTES:
        raise SettingsError(f"`{file or '-'}` is longer than {MAX_LINE_BYTES} bytes, and so no single record")
    first, _, rest = text.partition(b"\n")
    if rest and _is_json(first):
        raise SettingsError(f"`{file or '-'}` holds several lines, and one record is wanted: head -n 1 takes the first")
    return text


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


@dataclass(slots=True)
class FileConsents:
    """The consents of a file, folded, and what became of its lines."""

    consents: Consents = field(default_factory=Consents)
    lines: int = 0
    unreadable: int = 0
    blocked_by: int | None = None
    """the first line, counted from 1, whose subject cannot be read: because of it nobody is served"""

    def apply(self, line: Line) -> None:
        """Fold one line in. What cannot be read denies."""
        self.lines += 1
        value = b"" if isinstance(line, TooLong) else line
        before = self.consents.rejected
        key = _subject_of(value)
        self.consents.apply(key, value)
        self.unreadable += self.consents.rejected - before
        if key is None and self.blocked_by is None:
            self.blocked_by = self.lines

    def as_dict(self) -> dict[str, Any]:
        """Return the counts for a summary."""
        counts = {"lines": self.lines, "subjects": len(self.consents), "unreadable": self.unreadable}
        return {**counts, "blocked": self.consents.blocked, "blocked_by_line": self.blocked_by}


def read_consents(file: Path) -> FileConsents:
    """Fold a file of consent records, one a line, oldest first. The subject is taken from inside each record.

    Raises:
        SettingsError: the file cannot be read.
    """
    folded = FileConsents()
    with open_input(file) as (stream, _):
        for line in read_lines(stream, str(file)):
            folded.apply(line)
    return folded


def _subject_of(line: bytes) -> bytes | None:
    """Return the subject of a consent record as the key it would have in Kafka; None: it cannot be told.

    >>> _subject_of(b'{"subject": "ana", "version": "not a number"}')
    b'ana'
    >>> _subject_of(b'{"subject": "ana", "subject": "ben"}') is None
    True
    """
    try:
        return read_consent(line)[0].encode()
    except ValueError:
        pass
    try:
        # Objects become tuples of pairs, and are told from arrays, which are lists.
        document = json.loads(line, object_pairs_hook=tuple)
        found = [value for name, value in document if name == "subject"] if type(document) is tuple else []
        if len(found) == 1 and type(found[0]) in (str, int):
            return str(found[0]).encode()
    except (ValueError, RecursionError):
        pass
    return None
