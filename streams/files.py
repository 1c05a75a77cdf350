"""The file edge of the pipeline: what `celosia filter` does. Lines in, one file per output topic out.

Rules of this file:
- The same `process` as in the Kafka worker decides about each line, so the same input gives the same bytes.
- Events are streamed: memory does not grow with the input. Consents are held in memory, as in the worker.
- A file has no timestamps of Kafka: only the event's own time and the clock say when it was recorded, so a source
  whose events carry no time is refused.
- A file has an end, and with it all windows of crowds: then consents are asked again, and the cells are told.
- Results appear under their names all together at the end, or not at all.
"""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from streams.aggregate import aggregates, table
from streams.categories import closest
from streams.consent import Consents
from streams.crowd import told_of
from streams.crowd.counts import Counts
from streams.errors import SettingsError
from streams.event import RawEvent, Reason
from streams.lines import Line, TooLong
from streams.outcome import Coordinates, Kind, Outcome, Output, QuarantineRecord, quarantined
from streams.pipeline import Place, process, still_allows
from streams.plan import Plan, SourcePlan, crowd_rules

__all__ = [
    "OutputFiles",
    "Summary",
    "choose_source",
    "file_place",
    "filter_lines",
    "line_event",
    "output_names",
]


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
    """Counts of what became of the lines: in = published + counted + suppressed + quarantined."""

    kinds: Counter[str] = field(default_factory=Counter)
    outputs: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    refusals: dict[str, Counter[str]] = field(default_factory=dict)
    crowds: dict[str, Counter[str]] = field(default_factory=dict)
    """by crowd purpose: events by what it did with them, windows, cells told and cells suppressed"""

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
            **{kind.value: self.kinds[kind.value] for kind in Kind if kind is not Kind.COUNTED or self.crowds},
            "outputs": dict(self.outputs),
            "reasons": dict(sorted(self.reasons.items())),
            "refusals": {name: dict(sorted(reasons.items())) for name, reasons in sorted(self.refusals.items())},
            **({"crowds": {name: dict(counts) for name, counts in self.crowds.items()}} if self.crowds else {}),
        }


def output_names(plan: Plan, *, csv: bool = False) -> dict[str, str]:
    """Return the file name of each topic that a filter run writes: `<topic>.ndjson`, and `quarantine.ndjson`.

    With `csv` the cells of crowds are written as tables, to `<topic>.csv`.

    Raises:
        SettingsError: two topics would have one file.
    """
    names = {
        purpose.topic: f"{purpose.topic}.{'csv' if csv and purpose.crowd is not None else 'ndjson'}"
        for purpose in plan.purposes.values()
    }
    names[plan.policy.topic("quarantine")] = "quarantine.ndjson"
    # Some file systems take `A` and `a` for one name.
    for name, times in Counter(name.casefold() for name in names.values()).items():
        if times > 1:
            raise SettingsError(f"two topics of policy {plan.name} would be written to `{name}`; rename one of them")
    return names


def filter_lines(
    plan: Plan,
    place: Place,
    consents: Consents,
    lines: Iterable[Line],
    files: "OutputFiles",
    clock: Callable[[], int],
    *,
    csv: bool = False,
) -> Summary:
    """Put each line through `process` and write what comes out; with `csv` the cells of crowds as tables.

    The clock (ms) is asked for each line: a consent that runs out while a long input is read has run out.
    """
    summary = Summary(outputs=Counter({purpose.topic: 0 for purpose in plan.purposes.values()}))
    quarantine = plan.policy.topic("quarantine")
    counts = Counts(crowd_rules(plan), plan.master)
    summary.crowds = {purpose: Counter() for purpose in counts.rules}
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
        for part in outcome.crowd:
            summary.crowds[part.purpose][counts.add(*part)] += 1
    now = clock()
    for name in counts.rules:
        purpose = plan.purposes[name]
        told = list(_told(plan, name, counts, consents, place.source.clock_skew, now, summary))
        summary.outputs[purpose.topic] += len(told)
        for row in table(purpose, told) if csv else (output.value for output in told):
            files.write(purpose.topic, row)
    return summary


def _told(
    plan: Plan, name: str, counts: Counts, consents: Consents, skew: int, now: int, summary: Summary
) -> Iterator[Output]:
    """Close all windows of a crowd purpose and yield what may be told of them."""
    purpose, tally = plan.purposes[name], summary.crowds[name]
    allows = still_allows(consents, name, skew, now)
    for window, cells in counts.close(name, max(counts.open(name), default=0), allows):
        released = told_of(counts.rules[name], cells)
        if cells is None or released is None:
            tally["windows_dropped"] += 1
            continue
        tally["windows"] += 1
        tally["cells_told"] += len(released.cells)
        tally["cells_suppressed"] += len(cells) - len(released.cells)
        yield from aggregates(plan, purpose, window, released)


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
