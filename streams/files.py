"""The file edge of the pipeline: what `celosia filter` does. Lines in, one file per output topic out.

Rules of this file:
- The same `process` as in the Kafka worker decides about each line, so the same input gives the same bytes.
- Events are streamed: memory does not grow with the input. Consents are held in memory, as in the worker.
- A file has no timestamps of Kafka: only the event's own time and the clock say when it was recorded, so a source
  whose events carry no time is refused.
- A consent line that cannot be read denies its subject; where not even the subject can be read, it denies everyone.
- Results appear under their names all together at the end, or not at all.
"""

import json
import os
import shutil
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from streams.categories import closest
from streams.consent import Consents, read_consent
from streams.errors import SettingsError
from streams.event import RawEvent, Reason
from streams.outcome import Coordinates, Kind, Outcome, QuarantineRecord, quarantined
from streams.pipeline import Place, process
from streams.plan import Plan, SourcePlan

__all__ = [
    "MAX_LINE_BYTES",
    "FileConsents",
    "Line",
    "OutputFiles",
    "Summary",
    "TooLong",
    "choose_source",
    "file_place",
    "filter_lines",
    "line_event",
    "open_input",
    "output_names",
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


def choose_source(plan: Plan, name: str | None) -> SourcePlan:
    """Return the source that the lines of a file come from: the one with this name, or the only one.

    Raises:
        SettingsError: there is none of this name, or there are several and none was named.
    """
    sources = {source.name: source for source in plan.sources}
    if name is None and len(sources) == 1:
        return plan.sources[0]
    if name is None:
        raise SettingsError(f"policy {plan.name} has several sources; name one: --source {'|'.join(sources)}")
    if name not in sources:
        raise SettingsError(
            f"--source: policy {plan.name} has no source `{name}`{closest(name, list(sources))} "
            f"(known: {', '.join(sources)})"
        )
    return sources[name]


def file_place(plan: Plan, source: SourcePlan) -> Place:
    """Return the place of the lines of a file: partition 0 of the source's own topic, not keyed by the subject.

    Raises:
        SettingsError: the source's events carry no time.
    """
    if plan.policy.sources[source.name].time is None:
        raise SettingsError(
            f"sources.{source.name} has no `time`: in Kafka the record's timestamp says when an event was recorded, "
            "and a file has none; add `time` with the path of the field that holds it"
        )
    return Place(source, 0, keyed=False, topic=source.raw_topic)


def line_event(line: bytes, offset: int, now: int) -> RawEvent:
    """Return a line as a record of this moment: only the event's own time and the clock count, both ways."""
    return RawEvent(offset, now, None, line)


@dataclass(slots=True)
class Summary:
    """Counts of what became of the lines: in = published + suppressed + quarantined."""

    kinds: Counter[str] = field(default_factory=Counter)
    outputs: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    refusals: dict[str, Counter[str]] = field(default_factory=dict)

    def count(self, outcome: Outcome) -> None:
        """Count one outcome."""
        self.kinds[outcome.kind.value] += 1
        if outcome.reason is not None:
            self.reasons[outcome.reason.value] += 1
        for purpose, why in outcome.refusals:
            self.refusals.setdefault(purpose, Counter())[why.value] += 1

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as they are printed."""
        return {
            "in": self.kinds.total(),
            **{kind.value: self.kinds[kind.value] for kind in Kind},
            "outputs": dict(self.outputs),
            "reasons": dict(sorted(self.reasons.items())),
            "refusals": {name: dict(sorted(reasons.items())) for name, reasons in sorted(self.refusals.items())},
        }


def output_names(plan: Plan) -> dict[str, str]:
    """Return the file name of each topic that a filter run writes: `<topic>.ndjson`, and `quarantine.ndjson`.

    Raises:
        SettingsError: two topics would have one file.
    """
    names = {purpose.topic: f"{purpose.topic}.ndjson" for purpose in plan.purposes.values()}
    names[plan.policy.topic("quarantine")] = "quarantine.ndjson"
    # Some file systems take `A` and `a` for one name.
    for name, times in Counter(name.casefold() for name in names.values()).items():
        if times > 1:
            raise SettingsError(f"two topics of policy {plan.name} would be written to `{name}`; rename one of them")
    return names


def filter_lines(
    plan: Plan, place: Place, consents: Consents, lines: Iterable[Line], files: "OutputFiles", clock: Callable[[], int]
) -> Summary:
    """Put each line through `process` and write what comes out.

    The clock (ms) is asked for each line: a consent that runs out while a long input is read has run out.
    """
    summary = Summary(outputs=Counter({purpose.topic: 0 for purpose in plan.purposes.values()}))
    quarantine = plan.policy.topic("quarantine")
    for offset, line in enumerate(lines):
        if isinstance(line, TooLong):
            outcome = _too_long(line, Coordinates(place.topic or place.source.topic, place.partition, offset), plan)
        else:
            now = clock()
            outcome = process(line_event(line, offset, now), place, consents, plan, now)
        summary.count(outcome)
        for output in outcome.outputs:
            files.write(output.topic, output.value)
            if output.topic != quarantine:
                summary.outputs[output.topic] += 1
    return summary


def _too_long(line: TooLong, where: Coordinates, plan: Plan) -> Outcome:
    record = QuarantineRecord(where, Reason.MALFORMED.value, plan.name, "absent", line.size)
    return quarantined(plan.policy.topic("quarantine"), record, Reason.MALFORMED)


class OutputFiles:
    """Files in a folder that appear under their names when all of them are whole: on leaving without an exception.

    `names` gives the file name of each topic. Existing files are refused unless `replace` is set.
    """

    def __init__(self, folder: Path, names: Mapping[str, str], *, replace: bool = False) -> None:
        self._folder = folder
        self._names = names
        self._replace = replace
        self._made_folder = False
        self._unfinished: Path | None = None
        self._files: dict[str, BinaryIO] = {}

    def __enter__(self) -> "OutputFiles":
        try:
            self._made_folder = not self._folder.exists()
            self._folder.mkdir(parents=True, exist_ok=True)
            there = [name for name in self._names.values() if (self._folder / name).exists()]
            if there and not self._replace:
                raise SettingsError(
                    f"`{self._folder}` holds {', '.join(there)} already; choose another --out, or replace with --force"
                )
            self._unfinished = Path(tempfile.mkdtemp(prefix=".celosia-", dir=self._folder))
            for topic, name in self._names.items():
                self._files[topic] = (self._unfinished / name).open("wb")
        except OSError as error:
            self._remove()
            raise self._failed(error) from None
        except BaseException:
            self._remove()
            raise
        return self

    def write(self, topic: str, value: bytes) -> None:
        """Write one line to the file of a topic.

        Raises:
            SettingsError: the disk does not take it.
        """
        try:
            self._files[topic].write(value + b"\n")
        except OSError as error:
            raise self._failed(error) from None

    def __exit__(self, failure: type[BaseException] | None, _error: object, _traceback: object) -> None:
        try:
            if failure is None and self._unfinished is not None:
                for file in self._files.values():
                    file.close()
                for name in self._names.values():
                    os.replace(self._unfinished / name, self._folder / name)
                self._made_folder = False
        except OSError as error:
            raise self._failed(error) from None
        finally:
            self._remove()

    def _remove(self) -> None:
        for file in self._files.values():
            # What is left in a buffer may not fit on the disk; the file is removed anyway.
            with suppress(OSError):
                file.close()
        if self._unfinished is not None:
            shutil.rmtree(self._unfinished, ignore_errors=True)
        if self._made_folder:
            with suppress(OSError):
                self._folder.rmdir()

    def _failed(self, error: OSError) -> SettingsError:
        return SettingsError(f"--out `{self._folder}` cannot be written: {error.strerror or type(error).__name__}")
