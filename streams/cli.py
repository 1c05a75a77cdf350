"""The command `celosia`.

Rules of this file:
- Options in, one call, text out. What a command knows, it knows from the module that it calls.
- A command imports what it needs when it runs: `check` and `explain` answer before Faust would have been loaded.
- Exit codes: 0 fine, 1 refused or failed (the reason in one message on standard error), 2 wrong usage.
- Never a traceback: what an unexpected error quotes may be personal data. Its type and place are told, no more.
"""

import errno
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streams.errors import CelosiaError, SettingsError

if TYPE_CHECKING:
    from streams.files import Line
    from streams.plan import Plan

__all__ = ["main"]

_READABLE = click.Path(exists=True, dir_okay=False, path_type=Path)
_READABLE_OR_STDIN = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)


class _Commands(click.Group):
    """Commands whose errors are one message each."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CelosiaError as error:
            message = str(error)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # whoever read our output has seen enough
            message = _unexpected(error)
        click.echo(f"celosia: {message}", err=True)
        return ctx.exit(1)


def _unexpected(error: Exception) -> str:
    # INVARIANT (discretion): not the message of the error, and no values of variables.
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
    return f"unexpected {type(error).__name__}, which is a bug; please report it with this: {' '.join(places[-6:])}"


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="celosia", prog_name="celosia")
def main() -> None:
    """Lets behaviour events through as far as each person's consent goes, and keeps who is behind them unseen."""


def _option(name: str, words: str, **more: Any) -> Callable[[Any], Any]:
    """An option that can also be given as CELOSIA_NAME."""
    return click.option(name, help=words, envvar=f"CELOSIA_{name[2:].replace('-', '_').upper()}", **more)


_policy = _option("--policy", "The policy file.", type=_READABLE, required=True)
_source = click.option(
    "--source", metavar="NAME", help="Where the events come from, if the policy has several sources."
)
_key_file = _option(
    "--key-file", "The key of pseudonyms; without it, the one of this installation.", type=click.Path(path_type=Path)
)
_bootstrap = _option("--bootstrap", "Kafka's bootstrap servers.", metavar="HOST:PORT", required=True)


def _moment(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    from streams.event import milliseconds

    try:
        return None if value is None else milliseconds(value)
    except ValueError:
        raise click.BadParameter("wanted RFC 3339 with an offset, as in 2026-03-01T09:30:00Z") from None


def _clock() -> int:
    import time

    return time.time_ns() // 1_000_000


def _compile(file: Path) -> "Plan":
    """Compile a policy with a key that nothing is ever published under."""
    from streams.keys import MasterKey
    from streams.plan import compile_plan
    from streams.policy import load_policy

    return compile_plan(load_policy(file), MasterKey.random(), str(file))


@main.command()
@click.argument("file", type=_READABLE)
@click.option(
    "--sample",
    type=_READABLE_OR_STDIN,
    metavar="EVENTS",
    help="Events, one a line: what is in them that the policy does not name?",
)
@_source
@click.option("--strict", is_flag=True, help="Fail if the sample holds a field that the policy does not name.")
def check(file: Path, sample: Path | None, source: str | None, strict: bool) -> None:
    """Check the policy in FILE, and say what it does.

    With --sample, also tell what the events hold that the policy does not name. No value of an event is shown.
    """
    from streams.check import describe, survey, warnings
    from streams.files import choose_source, open_input, read_lines

    plan = _compile(file)
    _print(describe(plan))
    found = warnings(plan.policy)
    if found:
        _print(["", "worth a second look:", *(f"  {line}" for line in found)])
    if sample is None:
        return
    chosen = choose_source(plan, source)
    with open_input(_or_stdin(sample)) as (stream, _):
        seen = survey(read_lines(stream, str(sample)), plan, chosen)
    _print(["", *seen.lines(chosen, plan.policy)])
    if strict and not seen.types:
        raise SettingsError(f"the sample holds no event of a type that policy {plan.name} names, so it shows nothing")
    if strict and seen.unnamed:
        raise SettingsError(
            f"{len(seen.unnamed)} fields of the sample are not named by policy {plan.name}; name each with its "
            "category, and `drop` it where nobody needs it"
        )


@main.command()
@_policy
@click.option("--event", type=_READABLE_OR_STDIN, required=True, help="One event as JSON (-: standard input).")
@click.option("--consents", type=_READABLE, help="Consent records, one a line.")
@click.option("--consent", type=_READABLE, help="One consent record.")
@click.option("--purpose", metavar="NAME", help="Only this purpose.")
@click.option("--at", metavar="TIME", callback=_moment, help="The time of the decision (RFC 3339); now, unless given.")
@_source
def explain(
    policy: Path,
    event: Path,
    consents: Path | None,
    consent: Path | None,
    purpose: str | None,
    at: int | None,
    source: str | None,
) -> None:
    """Say what happens to each field of one event.

    And by which rule of the policy. No value of the event is shown. Without consent, nothing passes.
    """
    if consents is not None and consent is not None:
        raise click.UsageError("give either --consents or --consent")
    from streams.explain import explain as explained
    from streams.explain import render
    from streams.files import FileConsents, choose_source, file_place, line_event, read_consents, read_document

    plan = _compile(policy)
    _known_purpose(plan, purpose)
    place = file_place(plan, choose_source(plan, source))
    folded = FileConsents() if consents is None else read_consents(consents)
    if consent is not None:
        folded.apply(read_document(consent))
    now = _clock() if at is None else at
    document = line_event(read_document(_or_stdin(event)), 0, now)
    _print(render(explained(plan, place, document, folded.consents, now), purpose))


@main.command("filter")
@_policy
@click.option("--consents", type=_READABLE, required=True, help="Consent records, one a line, oldest first.")
@click.option("--events", type=_READABLE_OR_STDIN, required=True, help="Events, one a line (-: standard input).")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="The folder of the results."
)
@_key_file
@_source
@click.option("--now", metavar="TIME", callback=_moment, help="Decide as of this time (RFC 3339); now, unless given.")
@click.option("--force", is_flag=True, help="Replace files that are there.")
def filter_(policy: Path, consents: Path, events: Path, out: Path, **options: Any) -> None:
    """Filter events from a file into one file for each topic.

    A summary is printed as JSON. Files that end in .gz are unpacked on the way.
    """
    import json

    from streams.files import (
        OutputFiles,
        choose_source,
        file_place,
        filter_lines,
        open_input,
        output_names,
        read_consents,
        read_lines,
    )
    from streams.keys import installation_key
    from streams.plan import compile_plan
    from streams.policy import load_policy

    checked = load_policy(policy)
    plan = compile_plan(checked, installation_key(options["key_file"]), str(policy))
    place = file_place(plan, choose_source(plan, options["source"]))
    names = output_names(plan)
    folded = read_consents(consents)
    if folded.blocked_by is not None:
        message = (
            f"`{consents}`, line {folded.blocked_by}: neither the record nor its subject can be read: nobody is served"
        )
        click.echo(f"celosia: {message}", err=True)
    now = options["now"]
    clock = _clock if now is None else lambda: now
    with (
        open_input(_or_stdin(events)) as (stream, position),
        OutputFiles(out, names, replace=options["force"]) as files,
        _progress(events, position) as watched,
    ):
        lines = watched(read_lines(stream, str(events)))
        summary = filter_lines(plan, place, folded.consents, lines, files, clock)
    counts = {"policy": plan.name, "source": place.source.name, **summary.as_dict(), "consents": folded.as_dict()}
    click.echo(json.dumps(counts, indent=2))


@contextmanager
def _progress(
    events: Path, position: Callable[[], int] | None
) -> "Iterator[Callable[[Iterable[Line]], Iterable[Line]]]":
    """Show how far the reading of a file is, if standard error is a terminal."""
    if not sys.stderr.isatty():
        yield lambda lines: lines
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        BarColumn(),
        TextColumn("{task.completed:,} of {task.total:,} bytes, {task.fields[events]:,} events"),
        TimeElapsedColumn(),
    )
    unknown = (TextColumn("{task.fields[events]:,} events"), TimeElapsedColumn())
    with Progress(*(unknown if position is None else columns), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None if position is None else events.stat().st_size, events=0)

        def watched(lines: "Iterable[Line]") -> "Iterator[Line]":
            for number, line in enumerate(lines):
                if number % 1000 == 0:
                    bar.update(task, completed=0 if position is None else position(), events=number)
                yield line

        yield watched


@main.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def key(file: Path) -> None:
    """Make the key of pseudonyms, in FILE.

    A key that is there already is kept.
    """
    from streams.keys import MasterKey

    if file.exists():
        MasterKey.of_file(file)
        click.echo(f"{file} holds a key already; it is kept")
    else:
        MasterKey.create(file)
        click.echo(f"{file} holds a new key; keep it secret, and keep it: without it the pseudonyms change")


@main.command()
@click.argument("token")
@_policy
@click.option("--purpose", metavar="NAME", required=True, help="The purpose of the output that the token is from.")
@_key_file
def trace(token: str, policy: Path, purpose: str, key_file: Path | None) -> None:
    """Tell where the raw record of an output lies.

    TOKEN is the output's header `celosia-source`; topic, partition and offset are printed.
    """
    from streams.keys import installation_key
    from streams.plan import compile_plan
    from streams.policy import load_policy

    checked = load_policy(policy)
    plan = compile_plan(checked, installation_key(key_file, create=False), str(policy))
    _known_purpose(plan, purpose)
    topics = [source.raw_topic for source in plan.sources]
    topic, partition, offset = plan.purposes[purpose].seal.open(token.encode(errors="replace"), topics)
    click.echo(f"{topic} partition {partition} offset {offset}")


@main.command()
@_bootstrap
@_policy
@click.option("--create", is_flag=True, help="Create those that are missing.")
@click.option("--partitions", type=click.IntRange(1), default=4, show_default=True, help="Partitions of new topics.")
@click.option("--replication", type=click.IntRange(1), default=1, show_default=True, help="Copies of new topics.")
def topics(bootstrap: str, policy: Path, create: bool, partitions: int, replication: int) -> None:
    """Check the topics on the broker, or create them."""
    import asyncio

    from streams.policy import load_policy

    checked = load_policy(policy)  # A policy that is refused is refused before the broker's client is loaded.
    from streams.errors import TopicsError
    from streams.kafka.topics import ask_states, create_topics, find_faults, wanted_topics

    if create:
        asyncio.run(create_topics(bootstrap, checked, partitions, replication))
    states = asyncio.run(ask_states(bootstrap, checked))
    wanted = wanted_topics(checked)
    wide = max(len(topic.name) for topic in wanted)
    for topic in wanted:
        state = states.get(topic.name)
        there = f"{state.partitions:>4} x {state.replication}" if state else "   missing"
        click.echo(f"{topic.name:{wide}}  {there}  {topic.use}")
    if faults := find_faults(wanted, states):
        raise TopicsError(faults)


@main.command()
@_bootstrap
@_policy
@_option(
    "--guarantee",
    "At-least-once is for brokers without transactions.  [default: exactly-once]",
    type=click.Choice(["exactly-once", "at-least-once"]),
)
@_key_file
@_option("--group", "The consumer group.  [default: celosia- and the policy's name]")
@_option("--ops-host", "Where the page for operators listens.  [default: 127.0.0.1]")
@_option("--ops-port", "0: any free port.  [default: 6066]", type=click.IntRange(0, 65535))
@_option("--log-level", "[default: info]", type=click.Choice(["debug", "info", "warning", "error"]))
def run(**options: Any) -> None:
    """Run a worker. Several of them share the work.

    Each option can also be given in the environment: CELOSIA_BOOTSTRAP, CELOSIA_POLICY, and so on.
    """
    from streams.kafka.app import run_worker
    from streams.settings import read_settings

    click.get_current_context().exit(run_worker(read_settings(**options)))


@main.command()
@click.option(
    "--seconds", type=click.FloatRange(min=1), help="How long.  [default: until Ctrl-C; without a terminal, 30 s]"
)
@click.option("--plain", is_flag=True, help="Lines instead of a live picture, for machines.")
@click.option(
    "--broker",
    type=click.Choice(["embedded", "kafka"]),
    default="embedded",
    show_default=True,
    help="Kafka needs Java 17 and Maven.",
)
@click.option("--events-per-second", "rate", type=click.FloatRange(min=1), help="How busy the shop is.")
def demo(**options: Any) -> None:
    """Watch real purchases being filtered while consents change.

    It brings a broker of its own.
    """
    from streams.demo import run_demo

    click.get_current_context().exit(run_demo(**_given(options)))


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _known_purpose(plan: "Plan", purpose: str | None) -> None:
    if purpose is not None and purpose not in plan.purposes:
        from streams.categories import closest

        known = list(plan.purposes)
        raise SettingsError(
            f"--purpose: policy {plan.name} has no purpose `{purpose}`{closest(purpose, known)} "
            f"(known: {', '.join(known)})"
        )


def _or_stdin(file: Path) -> Path | None:
    return None if str(file) == "-" else file


def _print(lines: Iterable[str]) -> None:
    click.echo("\n".join(lines))
