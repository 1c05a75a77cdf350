"""What everything that reads bytes may do with them: one function a reader, which fails if it does anything else.

Rules of this file:
- A target takes any bytes and returns; it raises AssertionError where a rule is broken, and passes on what a reader
  raises against its rule. Random bytes hold no canary, so answers are held against closed lists instead: a reason is
  one of ours, a path one of the policy's, an error one of ours with a text of ours.
- Targets are functions of their bytes alone. `seeds` are inputs from the tables of the tests.
"""

import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from gzip import GzipFile
from typing import Any, BinaryIO, NamedTuple, cast

import msgspec
import yaml
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, FetchResult, PartitionRecords

from streams.check import survey
from streams.consent import FOREVER, Consents, Refusal, Rung, read_consent, write_consent
from streams.errors import PolicyError, SettingsError
from streams.event import RawEvent, Reason, Rejected
from streams.explain import explain, render
from streams.kafka.internals import Batches, hand_on_raw_records
from streams.kafka.port import Unreadable
from streams.keys import MasterKey, Seal
from streams.lines import FileConsents, TooLong, read_lines
from streams.outcome import Kind, Outcome, QuarantineRecord, shape_of
from streams.pipeline import Place, moments, process
from streams.plan import Plan, SourcePlan, compile_plan
from streams.policy import parse_policy
from streams.sources import DocumentReader, Envelope, Paths
from streams.transforms import FORMS
from tests.inputs import BASE, BROKEN, CASES, KEY, SHARED, policy
from tests.model import Event, predict
from tests.model import read_consent as read_by_the_oracle
from tests.strategies import NOW, SECRET

__all__ = ["TARGETS", "Target", "words"]

Target = Callable[[bytes], None]


# --- policies and readers ---------------------------------------------------------------------------------------------

FORMED: dict[str, Any] = {
    "hour": "hour", "day": "day", "month": "month", "round": {"round": 0.25}, "bucket": {"bucket": [0, 10, 50]},
    "ip": {"truncate_ip": {"v4": 24, "v6": 48}}, "url": {"url": {"keep_query": ["utm_source"]}}, "name": "pseudonym",
    "kept": "keep", "g.h.kept": "keep", "naïve": "keep", "a:b": "keep",
}  # fmt: skip
"""A field for each form, and odd names."""


def every_form() -> dict[str, Any]:
    """Return the policy of the table with a field for each form there is."""
    more = policy()
    more["events"]["viewed"] |= {
        path: {"is": "user.behavior", "for": "all", "as": {"anonymous": form}} for path, form in FORMED.items()
    }
    return more


class Compiled(NamedTuple):
    """What targets share. `policy` is the dict that the plan was made from."""

    policy: dict[str, Any]
    plan: Plan
    source: SourcePlan
    place: Place
    consents: Consents
    names: frozenset[str]


@cache
def compiled() -> Compiled:
    """Compile the policy once."""
    source = every_form()
    plan = compile_plan(parse_policy(json.dumps(source).encode()), MasterKey(SECRET))
    used = {form if isinstance(form, str) else next(iter(form)) for form in FORMED.values()}
    assert used == set(FORMS) - {"drop"}, "a form that is not fuzzed"
    consents = Consents()
    consents.apply(KEY, SHARED[0].value)
    names = {name for path in source["events"]["viewed"] for name in path.split(".")}
    return Compiled(source, plan, plan.sources[0], Place(plan.sources[0], 3), consents, frozenset(names))


READERS = [
    DocumentReader(Paths("user_id", "type", "at", "id"), ["product", "page.url"]),
    DocumentReader(Paths("who.id", "meta.type", None, None), ["who.name", "g.h.z", "g.x"]),
    DocumentReader(Paths("naïve", "a:b", "at", None), ["'", "{", "*"]),
]


def check_rejection(error: Rejected) -> None:
    """A rejection carries a reason and nothing else."""
    assert type(error.reason) is Reason
    assert error.args == (error.reason.value,) == (str(error),)


def read_documents(data: bytes) -> None:
    """Every source reader returns an envelope, or rejects for one of its reasons."""
    for reader in READERS:
        try:
            envelope = reader.read(data)
        except Rejected as rejected:
            check_rejection(rejected)
            continue
        assert type(envelope) is Envelope
        assert envelope.subject is None or 0 < len(envelope.subject) <= 1024
        assert envelope.type
        assert type(envelope.type) is str
        assert envelope.time is None or abs(envelope.time) < 1 << 62


# --- consents ---------------------------------------------------------------------------------------------------------


LENIENT = re.compile(rb'[0-9][t ][0-9]{2}:|[0-9]z"|[+-][0-9]{4}"')
"""Times of consents may have small letters, a space, an offset without a colon; the oracle takes none of these."""


def read_consents(data: bytes) -> None:
    """A consent record is read, as the oracle reads it, or refused by a ValueError; what was read can be written."""
    try:
        subject, consent = read_consent(data)
    except ValueError:
        # The decoder rounds a time at the end of the calendar up, to the year 10000: refused, so nothing passes.
        assert b"9999-12-31" in data or read_by_the_oracle(data, _subject(data)) is None
        return
    assert consent.readable
    assert 0 <= consent.version < 1 << 63
    assert subject
    known = read_by_the_oracle(data, subject)
    if known is None:
        assert LENIENT.search(data)
        return
    until = {name: FOREVER if grant.until == float("inf") else grant.until for name, grant in known[1].items()}
    grants = {name: (Rung(grant.rung), grant.since, until[name]) for name, grant in known[1].items()}
    assert (known[0], grants) == (consent.version, consent.grants)
    assert read_consent(write_consent(subject, consent)) == (subject, consent)


def _subject(data: bytes) -> str:
    """Return the subject that a record might be of, so that the oracle does not refuse it for another's name."""
    try:
        return str(json.loads(data)["subject"])
    except (ValueError, TypeError, LookupError, RecursionError):
        return "ana"


def fold_consents(data: bytes) -> None:
    """Consents takes any keys and values, cut from the data by lines; nobody is allowed what no record says."""
    consents = Consents()
    for line in data.split(b"\n"):
        key, _, value = line.partition(b"\t")
        consents.apply(None if key == b"-" else key, None if value == b"-" else value)
        state = consents.of(key)
        assert state is None or state.readable or not state.grants
        if key == b"-":
            assert consents.blocked


# --- events -----------------------------------------------------------------------------------------------------------


def process_events(data: bytes) -> None:
    """Every event has one outcome, the oracle's, and what is told of it is ours."""
    shared = compiled()
    outcome = process(RawEvent(1042, NOW, KEY, data), shared.place, shared.consents, shared.plan, NOW)
    check_outcome(outcome, shared)
    foreseen = predict(shared.policy, SECRET, Event(data, KEY, NOW, "web"), [(KEY, SHARED[0].value)], NOW)
    assert (outcome.kind, outcome.reason) == (foreseen.kind, foreseen.reason)
    if outcome.kind is Kind.PUBLISHED:
        assert [json.loads(output.value) for output in outcome.outputs] == [out.value for out in foreseen.outputs]


def check_outcome(outcome: Outcome, shared: Compiled) -> None:
    """Hold an outcome against the closed lists of what it may say."""
    if outcome.kind is Kind.SUPPRESSED:
        assert outcome.outputs == ()
        assert type(outcome.reason) is Refusal
        return
    (output,) = outcome.outputs
    if outcome.kind is Kind.PUBLISHED:
        assert output.key is not None
        assert output.key != KEY
        assert set(json.loads(output.value)) <= shared.names | {"_celosia"}
        return
    assert (output.key, output.headers, output.timestamp) == (None, [], None)
    record = msgspec.json.decode(output.value, type=QuarantineRecord, strict=True)
    assert record.reason in set(Reason)
    assert record.key in {"absent", "empty", "present"}
    check_shape(record.shape, shared.source.known_paths)


def check_shape(shape: dict[str, str], known: frozenset[str]) -> None:
    """Hold a shape against the policy's paths and the names of types."""
    assert set(shape) <= known | {""}
    assert set(shape.values()) <= {"object", "array", "string", "number", "boolean", "null"}


def shape_documents(data: bytes) -> None:
    """The shape of anything has paths of the policy and names of types."""
    known = compiled().source.known_paths
    shape, unnamed = shape_of(data, known)
    check_shape(shape, known)
    assert 0 <= unnamed <= len(data)


def explain_events(data: bytes) -> None:
    """An explanation agrees with the pipeline, and can be written."""
    shared = compiled()
    explanation = explain(shared.plan, shared.place, RawEvent(0, NOW, KEY, data), shared.consents, NOW)
    outcome = process(RawEvent(0, NOW, KEY, data), shared.place, shared.consents, shared.plan, NOW)
    assert explanation.outcome == outcome
    assert all(type(line) is str for line in render(explanation))
    assert bool(explanation.published) == (outcome.kind is Kind.PUBLISHED)


def survey_samples(data: bytes) -> None:
    """A sample of any lines is looked through."""
    shared = compiled()
    found = survey(data.split(b"\n"), shared.plan, shared.source)
    assert found.events == data.count(b"\n") + 1
    assert found.lines(shared.source, shared.plan.policy)


# --- everything else that is read -------------------------------------------------------------------------------------

REFUSALS = {
    "not a sealed source: wanted 32 hexadecimal digits",
    "the sealed source was made with another key, for another purpose or for another topic",
    *(f"`sample` cannot be read to its end ({kind}); is it whole?" for kind in ("BadGzipFile", "EOFError", "error")),
}
"""All that is said of seals and of packed samples."""
TOPICS = ["raw", "shop.raw"]


@cache
def _seal() -> Seal:
    return Seal(MasterKey(SECRET), "ads")


def check_refusal(error: SettingsError) -> None:
    """What was refused is not quoted."""
    assert str(error) in REFUSALS


def open_seals(data: bytes) -> None:
    """A sealed source is opened or refused, and the seal is none the worse for it."""
    good = _seal()("shop.raw", 3, 1042)
    try:
        topic, partition, offset = _seal().open(data, TOPICS)
    except SettingsError as error:
        check_refusal(error)
    else:
        assert _seal()(topic, partition, offset) == b"".join(data.split()).lower()
    assert _seal().open(good, TOPICS) == ("shop.raw", 3, 1042)


def load_policies(data: bytes) -> None:
    """A policy is compiled, or refused with findings."""
    try:
        compile_plan(parse_policy(data), MasterKey(SECRET))
    except PolicyError as error:
        check_findings(error)


def check_findings(error: PolicyError) -> None:
    """A policy is refused for something."""
    assert error.findings
    assert str(error).startswith("policy `policy` is refused:\n  ")


LONGEST = 64


def split_lines(data: bytes) -> None:
    """Lines come as they are or as their length, also out of broken archives; and consents fold from any of them."""
    whole = list(read_lines(io.BytesIO(data), "sample", LONGEST))
    lengths = [len(line) for line in data.split(b"\n")]
    assert len(whole) == len(lengths) - (not lengths[-1])
    for line, length in zip(whole, lengths, strict=False):
        size = line.size if isinstance(line, TooLong) else len(line)
        # Of a line that is too long, a carriage return at the end of a piece is not counted.
        assert length - 1 - (size > LONGEST) * data.count(b"\r") <= size <= length
        assert isinstance(line, TooLong) == (size > LONGEST)
    consents = FileConsents()
    for line in whole:
        consents.apply(line)
    assert consents.lines == len(whole)
    assert consents.consents.blocked == (consents.blocked_by is not None)
    try:
        for line in read_lines(cast(BinaryIO, GzipFile(fileobj=io.BytesIO(data))), "sample", LONGEST):
            assert isinstance(line, TooLong) or len(line) <= LONGEST
    except SettingsError as error:
        check_refusal(error)


class _Assigned:
    """As much of an assignment as the result of a fetch asks for."""

    active, paused, position = True, False, 0

    def state_value(self, _tp: TopicPartition) -> "_Assigned":
        return self

    def consumed_to(self, position: int) -> None:
        self.position = position


class _Fetching:
    """As much of a consumer as raw records are taken from."""

    def __init__(self) -> None:
        self._fetcher = self
        self._records: Any = None


TP = TopicPartition("raw", 0)


def check_unreadable(error: Unreadable) -> None:
    """What cannot be read has a place and an end, and nothing of it is told."""
    assert error.args == (f"raw: offset {error.position} is not there any more",)
    assert error.after > error.position


def take_batches(data: bytes) -> None:
    """The answer to a fetch is taken as records, or said to be unreadable; it is never taken twice."""
    consumer, assignment = _Fetching(), _Assigned()
    hand_on_raw_records(consumer, 1000)
    records = PartitionRecords(TP, Batches(data), [], 0, None, None, True, READ_COMMITTED)
    consumer._records[TP] = FetchResult(TP, assignment=assignment, partition_records=records, backoff=0)
    result = consumer._records[TP]
    for _ in range(100):
        before = assignment.position
        try:
            taken = result.getall()
        except Unreadable as error:
            check_unreadable(error)
            return
        for record in taken:
            if record.offset < before:
                raise LookupError("a record from before what was asked for")
            moments(record.timestamp, None, NOW)
            assert type(record.key) in (bytes, type(None))
        if not result.has_more():
            return


# --- seeds ------------------------------------------------------------------------------------------------------------


class Fuzzed(NamedTuple):
    """A target, and what its fuzzing begins with."""

    run: Target
    seeds: Callable[[], Iterator[bytes]]


def _events() -> Iterator[bytes]:
    """Yield the values of the table that are not long, and one with a value for each form."""
    for case in CASES:
        if case.value is not None and len(case.value) < 2000:
            yield case.value
    values = {"hour": BASE["at"], "day": NOW, "month": BASE["at"], "round": 3.7, "bucket": 12, "ip": "192.0.2.17"}
    values |= {"url": "https://a:b@shop.example:8443/p;x/7?utm_source=m&q=1#f", "name": 7, "naïve": True, "a:b": "x"}
    yield json.dumps(BASE | values | {"g": {"h": {"kept": -0.0}}, "ip": "2001:db8::1"}, ensure_ascii=False).encode()
    yield b'{"who":{"id":"ana","name":"A"},"meta":{"type":"viewed"},"g":{"h":{"z":1},"x":null}}'
    yield b'{"na\xc3\xafve":"ana","a:b":"viewed","at":0,"{":3,"*":4}'


def _consents() -> Iterator[bytes]:
    for case in CASES:
        for said in case.said:
            if said.value is not None and len(said.value) < 2000:
                yield said.value.replace(said.key or b"-", b"ana")
    grant = '{"rung":"crowd","since":"2020-01-01T00:00:00.0001+14:00","until":"2030-12-31T23:59:59.9999999-14:00"}'
    yield f'{{"subject":"ana","version":1,"purposes":{{"ads":{grant},"\\u0061":{grant}}}}}'.encode()


def _folds() -> Iterator[bytes]:
    records = [b"%s\t%s" % (key, value) for value in _consents() for key in (b"ana", b"\xff") if b"\n" not in value]
    yield from records
    yield b"\n".join(records[:6])
    yield b"-\t-\nana\t-"


def _samples() -> Iterator[bytes]:
    yield from _events()
    yield b"\n".join(value for value in _events() if b"\n" not in value)[:4000]


def _tokens() -> Iterator[bytes]:
    yield _seal()("shop.raw", 3, 1042)
    yield from (b"", b"0" * 32, b"0" * 64, b"x" * 32, _seal()("raw", 0, 0).upper())


def _policies() -> Iterator[bytes]:
    yield json.dumps(policy()).encode()
    yield yaml.safe_dump(every_form()).encode()
    yield b"a: &a [*a]"
    yield b"? {a: b}\n: !!python/none"


def _lines() -> Iterator[bytes]:
    for text in (b"a\nb\r\n\nc", b"x" * 200 + b"\n{}", *list(_consents())[:4]):
        yield text
        packed = zlib.compressobj(9, zlib.DEFLATED, 31)
        yield packed.compress(text) + packed.flush()


def _batches() -> Iterator[bytes]:
    from tests.kafka.batches import Entry, batch_of, legacy_of, with_codec

    entries = [Entry(b"k", b"v", NOW, [("h", None)]), Entry(None, b"w", 0)]
    good = batch_of(entries)
    yield good + batch_of(entries, 2)
    for broken in BROKEN:
        if "MiB" not in broken.name:
            yield good + broken.make(batch_of(entries, 2), entries, 2) + batch_of(entries, 4)
    for magic in (0, 1):
        yield legacy_of(entries, magic) + batch_of(entries, 2)
        yield legacy_of(entries, magic, codec=1)
    yield with_codec(good, 4)


TARGETS: dict[str, Fuzzed] = {
    "documents": Fuzzed(read_documents, _events),
    "consents": Fuzzed(read_consents, _consents),
    "fold": Fuzzed(fold_consents, _folds),
    "process": Fuzzed(process_events, _events),
    "shape": Fuzzed(shape_documents, _events),
    "explain": Fuzzed(explain_events, _events),
    "survey": Fuzzed(survey_samples, _samples),
    "seal": Fuzzed(open_seals, _tokens),
    "policy": Fuzzed(load_policies, _policies),
    "lines": Fuzzed(split_lines, _lines),
    "batches": Fuzzed(take_batches, _batches),
}
"""All targets by name."""


def words() -> Iterator[bytes]:
    """Yield what a fuzzer would take long to find by itself: names, times, and what documents are made of."""
    yield from (name.encode() for name in sorted(compiled().names))
    yield from (
        b"viewed",
        KEY,
        b'"subject"',
        b'"version"',
        b'"purposes"',
        b'"rung"',
        b'"since"',
        b'"until"',
    )
    yield from (b"pseudonymous", b"identified", b"nothing", b"crowd", b"2020-01-01T00:00:00Z", b".0000001Z", b"+14:00")
    yield from (b"null", b"true", b"\\u00", b"\\ud800", b"1e999", b"-0", b"NaN", b"9999-12-31T23:59:59.999Z", b"\xff")
    yield from (rung.name.lower().encode() for rung in Rung)
