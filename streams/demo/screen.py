"""What the demo shows: a screen for people, lines for machines, and the same summary for both.

Rules of this file: it draws what it is given and knows nothing of brokers; the plain display writes ASCII without any
control codes; the screen fits 80 x 24 and tells more where there is more room.
"""

import math
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import msgspec
import orjson
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.layout import Layout
from rich.live import Live
from rich.measure import Measurement
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from streams.demo.audit import Audit, Change, Sent, value_at
from streams.demo.report import Report, Totals
from streams.demo.shop import CREDIT

__all__ = ["Display", "Moment", "choose_display"]

_KEPT, _COARSENED, _REMOVED = "green", "yellow", "red"
_SHARES = {"kept": ("█", _KEPT), "coarsened": ("▓", _COARSENED), "removed": ("░", _REMOVED)}
_OUTCOMES = {"published": _KEPT, "suppressed": _COARSENED, "quarantined": _REMOVED}


class Moment(NamedTuple):
    """Everything that can be shown at one moment."""

    elapsed: float
    seconds: float
    stage: str
    rates: tuple[float, float]
    """events in and outputs out per second"""
    counted: Totals
    audit: Audit
    shown: Sent | None
    """an event of the watched person that the worker has handled"""


class Display(Protocol):
    """Shows the demo, from `with` to its end."""

    for_machines: bool

    def __enter__(self) -> "Display": ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def open(self, title: str) -> None:
        """Begin to show, under this title."""

    def say(self, line: str, at: float) -> None:
        """Tell of something notable that has happened, so many seconds after the opening."""

    def draw(self, moment: Moment) -> None:
        """Show how things stand: called several times a second."""

    def summarize(self, report: Report) -> None:
        """Show the end."""


def choose_display(plain: bool) -> Display:
    """Return the screen where there is a terminal that can show it, and plain lines elsewhere."""
    console = Console(highlight=False)
    capable = console.is_terminal and not console.is_dumb_terminal and console.encoding.startswith("utf")
    return Screen(console) if capable and not plain else PlainDisplay()


class PlainDisplay:
    """One line for each notable event, and one for each second."""

    for_machines = True

    def __init__(self) -> None:
        self._console = Console(file=sys.stdout, force_terminal=False, color_system=None, highlight=False)
        self._second = 0
        self._told: set[tuple[str | None, int]] = set()

    def __enter__(self) -> "PlainDisplay":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None

    def open(self, title: str) -> None:
        """See `Display`."""
        self._print(f"celosia demo: {title}")
        self._print(CREDIT)

    def say(self, line: str, at: float) -> None:
        """See `Display`."""
        self._print(f"{at:6.2f} s  {line}")

    def draw(self, moment: Moment) -> None:
        """See `Display`."""
        if moment.shown is not None:
            self._tell(moment.shown, moment.elapsed)
        if moment.stage != "opening" and int(moment.elapsed) > self._second:
            self._second = int(moment.elapsed)
            outcomes = "  ".join(f"{name} {moment.counted.outcomes[name]}" for name in _OUTCOMES)
            outputs = "  ".join(f"{_short(name)} {count}" for name, count in moment.audit.outputs.items())
            events, after = moment.audit.after_withdrawals()
            self.say(
                f"in {moment.audit.sent_count} (+{moment.rates[0]:.0f}/s)  {outcomes}  out (+{moment.rates[1]:.0f}/s): "
                f"{outputs}  after withdrawals: {events} in, {after} out",
                moment.elapsed,
            )

    def _tell(self, sent: Sent, at: float) -> None:
        """Tell once, for each consent of the watched person, what became of an event under it."""
        if (which := (sent.line.person, sent.acknowledged)) not in self._told:
            self._told.add(which)
            self.say(f"  before  {sent.line.value.decode()}", at)
            for purpose, document in sent.outputs.items():
                self.say(f"  after   {_short(purpose)}: {msgspec.json.encode(document).decode()}", at)
            if not sent.outputs:
                self.say("  after   nothing", at)

    def summarize(self, report: Report) -> None:
        """See `Display`."""
        for line in summary(report):
            self._print(line.plain)
        self._print(msgspec.json.encode(report).decode())

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)


def summary(report: Report) -> Iterator[Text]:
    """Yield the lines of the summary."""
    outputs = ", ".join(f"{_short(name)} {count:,}" for name, count in report.outputs.items())
    reasons = {
        outcome: ", ".join(f"{reason} {count:,}" for reason, count in counts.items())
        for outcome, counts in report.reasons.items()
    }
    yield Text()
    yield Text(f"{report.broker}, {report.guarantee}, {report.seconds:.1f} s", style="bold")
    yield Text(f"    in           {report.sent:8,}")
    yield Text(f"  = published    {report.published:8,}  {outputs}")
    yield Text(f"  + suppressed   {report.suppressed:8,}  {reasons['suppressed']}")
    yield Text(f"  + quarantined  {report.quarantined:8,}  {reasons['quarantined']}")
    yield Text()
    for change in report.changes:
        allowed = ", ".join(f"{_short(name)} {rung}" for name, rung in change.allowed.items())
        receipt = "no receipt" if change.receipt is None else f"receipt {change.receipt_ms} ms later"
        beyond = f", {change.too_much} BEYOND WHAT IS ALLOWED" if change.too_much else ""
        yield Text(f"{change.person} {change.act}: {allowed}")
        yield Text(
            f"    at {change.written}, {receipt}, then {change.events_after_receipt} events in, "
            f"{change.outputs_after_receipt} outputs{beyond}"
        )
    yield Text()
    for check in report.checks:
        mark = ("ok    ", "green") if check.holds else ("FAILED", "bold red")
        yield Text.assemble(mark, f" {check.claim}  ", (f"({check.found})", "dim"))
    yield Text(CREDIT, style="dim")


def _short(purpose: str) -> str:
    return purpose.rpartition(".")[2]


class Screen:
    """The live screen of a terminal."""

    for_machines = False

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, screen=True, auto_refresh=False)
        self._title = ""

    def __enter__(self) -> "Screen":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def open(self, title: str) -> None:
        """See `Display`."""
        self._title = title
        self._live.start()

    def say(self, line: str, at: float) -> None:
        """See `Display`. Once the screen is drawn, it shows all that is said."""
        if not self._live.is_started:
            self._console.print(line, markup=False)

    def draw(self, moment: Moment) -> None:
        """See `Display`."""
        self._live.update(self.picture(moment), refresh=True)

    def summarize(self, report: Report) -> None:
        """See `Display`."""
        self._live.stop()
        for line in summary(report):
            self._console.print(line)

    def picture(self, moment: Moment) -> Layout:
        """Return the whole screen, made to fit."""
        height, half = self._console.height, self._console.width // 2
        above, below = (3 if height >= 30 else 2), len(moment.audit.fields) + 3
        room = max(8, height - above - below - 1)
        upper, whole = Layout(size=room + 1), Layout()
        upper.split_row(
            Layout(Padding(_flow(moment, room, half - 1), (0, 1, 0, 0)), size=half),
            Layout(_changes(list(moment.audit.changes.values()), room)),
        )
        whole.split_column(Layout(self._head(moment), size=above), upper, Layout(_person(moment), size=below))
        return whole

    def _head(self, moment: Moment) -> RenderableType:
        of = f" of {moment.seconds:.0f}" if math.isfinite(moment.seconds) else ""
        grid = Table.grid(expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(justify="right", no_wrap=True)
        grid.add_row(Text("celosia demo", "bold"), Text(f"{moment.stage} {moment.elapsed:.0f}{of} s; Ctrl-C ends"))
        return Group(grid, Text(self._title, no_wrap=True, overflow="ellipsis"), Text(CREDIT, style="dim"))


def _flow(moment: Moment, room: int, width: int) -> RenderableType:
    """Events in and out: totals by outcome, purpose and reason."""
    total = max(1, moment.audit.sent_count)
    bar = max(4, width - 33)
    table = Table.grid(padding=(0, 1))
    table.add_column(width=20, no_wrap=True, overflow="ellipsis")
    table.add_column(justify="right", width=9)
    table.add_column(width=bar)

    def add(name: str, count: int, style: str, indent: str = "") -> None:
        filled = round(bar * min(1.0, count / total))
        table.add_row(Text(indent + name, style), f"{count:,}", Text("█" * filled, style))

    add("in", moment.audit.sent_count, "bold")
    spare = room - 4 - len(moment.audit.outputs)
    room_for = {"suppressed": spare - min(2, spare // 3), "quarantined": min(2, spare // 3)}
    for outcome, style in _OUTCOMES.items():
        add(outcome, moment.counted.outcomes[outcome], style)
        if outcome == "published":
            for purpose, count in moment.audit.outputs.items():
                add(_short(purpose), count, f"dim {style}", "  ")
        else:
            reasons = [item for item in moment.counted.reasons.most_common() if item[0][0] == outcome]
            for (_, reason), count in reasons[: room_for[outcome]]:
                add(reason.replace("_", " "), count, f"dim {style}", "  ")
    title = f"{moment.rates[0]:.0f} events/s in, {moment.rates[1]:.0f}/s out"
    return Group(Rule(title, align="left", style="dim"), table)


def _changes(changes: list[Change], room: int) -> RenderableType:
    """The newest changes of consent, and that nothing follows a withdrawal."""
    lines: list[Text] = []
    for change in reversed(changes[-(room // 3) :]):
        purposes = ", ".join(map(_short, change.allowed))
        lines.append(Text.assemble((change.person, "bold cyan"), f" {change.act} ", (purposes, "bold")))
        receipt = "waiting for the receipt" if change.receipt is None else f"receipt {change.receipt_ms} ms later"
        lines.append(Text(f"  written at [{change.place.partition}]@{change.place.offset}, {receipt}", "dim"))
        wrong = change.too_much or (change.is_withdrawal and change.outputs)
        after = f"  then {change.events} events in, {change.outputs} published"
        mark = ("  WRONG", "bold red") if wrong else ("", "")
        if change.is_withdrawal and change.receipt is not None and not wrong:
            mark = ("  ✓", "bold green")
        lines.append(Text.assemble(after, mark))
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    if not lines:
        lines.append(Text("nobody has changed anything yet", style="dim"))
    return Group(Rule("consents that change", align="left", style="dim"), *lines)


def _person(moment: Moment) -> RenderableType:
    """One event of one person before and after; and in the last column what becomes of each field of all events."""
    sent, purposes = moment.shown, list(moment.audit.outputs)
    raw = {} if sent is None else orjson.loads(sent.line.value)
    outputs = {} if sent is None else sent.outputs
    table = Table(box=None, expand=True, padding=(0, 1, 0, 0), header_style="bold", pad_edge=False)
    table.add_column("field", width=13, no_wrap=True)
    table.add_column("before", ratio=4, no_wrap=True, overflow="ellipsis")
    for purpose in purposes:
        table.add_column(_short(purpose), ratio=3, no_wrap=True, overflow="ellipsis")
    table.add_column("all events", ratio=2, no_wrap=True)
    rungs = [Text(outputs[name]["_celosia"]["rung"] if name in outputs else "nothing", "italic") for name in purposes]
    table.add_row("", "", *rungs, "")
    for path, counts in moment.audit.fields.items():
        before = value_at(raw, path)
        cells = [_cell(before, moment.audit.published_value(outputs.get(name), path)) for name in purposes]
        table.add_row(path.removeprefix("item."), _text(before), *cells, _Shares(counts))
    who = "nobody yet" if sent is None else f"customer {sent.line.person}"
    legend = Text.assemble(*((f" {block} {what}", style) for what, (block, style) in _SHARES.items()))
    title = Text.assemble(f"one purchase of {who}, before and after:", legend)
    return Group(Rule(title, align="left", style="dim"), table)


def _text(value: Any) -> Text:
    return Text("" if value is None else value if isinstance(value, str) else msgspec.json.encode(value).decode())


def _cell(before: Any, after: Any) -> Text:
    if after is None:
        return Text("·", _REMOVED)
    text = _text(after)
    text.stylize(_KEPT if after == before else _COARSENED)
    return text


@dataclass(frozen=True, slots=True)
class _Shares:
    """A bar of three colours, as wide as its cell: how often a field was kept, coarsened and removed."""

    counts: Counter[str]

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        bar, so_far = Text(), 0
        for what, (block, style) in _SHARES.items():
            so_far += self.counts[what]
            upto = round(options.max_width * so_far / max(1, self.counts.total()))
            bar.append(block * (upto - len(bar)), style)
        yield bar

    def __rich_measure__(self, _console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(4, options.max_width)
