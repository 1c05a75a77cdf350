"""What must become of an event, in a form that can be compared with what a broker holds.

Rules of this file:
- `tests.model` says what must come; here it is only asked, and its answers remembered.
- What a broker holds is taken apart strictly: a name that is given twice, a header too many, a whole number that became
  a fraction make it something else, equal to nothing that the model says.
- No code of `streams`: seals and partitions are computed from their descriptions.
"""

import hashlib
import hmac
import json
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec, module_from_spec
from typing import Any, TypeVar

import orjson
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tests.history import Stored
from tests.model import LADDER
from tests.timelines import State, partition_of


@dataclass(frozen=True)
class Names:
    """What a policy calls things."""

    stamp: str
    sources: dict[str, str]
    """raw topic by source"""
    keyed: dict[str, str]
    """internal topic by source, of those that are re-keyed"""
    purposes: dict[str, str]
    """purpose by output topic"""
    consents: str
    receipts: str
    quarantine: str
    paths: frozenset[str]
    """all paths that may be named in a quarantine record; the empty one is the whole"""

    @classmethod
    def of(cls, policy: Mapping[str, Any]) -> "Names":
        """Read them from the document."""
        name, given, sources = policy["policy"], policy.get("topics") or {}, policy["sources"]

        def topic(use: str) -> str:
            return given.get(use) or f"{name}.{use}"

        envelopes = {source.get(what) for source in sources.values() for what in ("subject", "type", "time", "id")}
        return cls(
            f"{name}@{policy['version']}",
            {source: said["topic"] for source, said in sources.items()},
            {source: f"{topic('rekeyed')}.{source}" for source, said in sources.items() if said.get("key") == "other"},
            {said["topic"]: purpose for purpose, said in policy["purposes"].items()},
            topic("consents"),
            topic("receipts"),
            topic("quarantine"),
            frozenset({"", *(path for fields in policy["events"].values() for path in fields)} | (envelopes - {None})),
        )


# --- the model, asked once --------------------------------------------------------------------------------------------

S = TypeVar("S")
T = TypeVar("T")

Shown = tuple[Any, ...]
"""One record of an outcome, in a form in which two can be compared."""
Outcome = Mapping[str, Shown]
"""What becomes of one event: a record by topic; nothing where it is suppressed."""


def canonical(value: Any) -> bytes:
    """Write a JSON value so that equal ones give equal bytes, and `1`, `1.0` and `true` different ones."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        # Whole numbers of more than 64 bits.
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name is given twice")
    return names


parse = json.JSONDecoder(object_pairs_hook=_once).decode


def _remembering_model() -> Any:
    """Return a copy of the model that remembers what its small functions said last: it is slow on purpose."""
    spec = find_spec("tests.model")
    assert spec is not None
    assert spec.loader is not None
    copy = module_from_spec(spec)
    spec.loader.exec_module(copy)
    for name in ("read_consent", "duration", "pseudonym", "written", "cut"):
        setattr(copy, name, lru_cache(maxsize=65_536)(getattr(copy, name)))
    return copy


_model = _remembering_model()


class Oracle:
    """The reference model under one policy. Remembers what it was asked last: simulations repeat themselves."""

    remembered = 20_000

    def __init__(self, policy: dict[str, Any], secret: bytes, now: int) -> None:
        self._secret = secret
        self._now = now
        self._names = Names.of(policy)
        self._policies = {name: _as_source_allows(policy, source) for name, source in policy["sources"].items()}
        self._known: dict[tuple[Any, ...], Any] = {}

    def ask(self, source: str, record: Stored, state: State, owned: Callable[[bytes], bool]) -> Outcome:
        """Say what must become of an event under a state; `owned` tells whether a key belongs on its partition."""
        reason, outcome = self._remember(self._predict, source, record, state)
        # The model knows no partitions: who is unknown here may have spoken elsewhere, and that is said to operators.
        if reason == "no_consent" and record.key is not None and not owned(record.key):
            return self._quarantined(record, "wrong_partition")
        return outcome

    def _predict(self, source: str, record: Stored, state: State) -> tuple[str | None, Outcome]:
        event = _model.Event(record.value, record.key, record.timestamp, source)
        kind, reason, outputs, _ = _model.predict(self._policies[source], self._secret, event, list(state), self._now)
        if kind == "quarantined":
            return reason, self._quarantined(record, reason)
        return reason, {
            output.topic: (output.key, canonical(output.value), output.headers, output.timestamp) for output in outputs
        }

    def ask_rekeyed(self, source: str, record: Stored, origin: bytes, partitions: int) -> Outcome:
        """Say what must become of an event that is to be keyed by its subject; `origin` is partition and offset."""
        reason, subject = self._remember(self._read_subject, source, record, None)
        if reason is not None:
            return self._quarantined(record, reason)
        if subject is None:
            return {}
        number = partition_of(subject, partitions)
        copy = Stored(0, record.timestamp, subject, record.value, [("celosia-origin", origin)])
        return {self._names.keyed[source]: rekeyed(copy, number, record)}

    def _read_subject(self, source: str, record: Stored, _state: None) -> tuple[str | None, bytes | None]:
        """Return why an event is quarantined before it is keyed, and whom it is about."""
        policy = self._policies[source]
        said = policy["sources"][source]
        event = _model.Event(record.value, record.key, record.timestamp, source, keyed=False)
        prediction = _model.predict(policy, self._secret, event, [], self._now)
        if prediction.kind == "quarantined":
            return prediction.reason, None
        subject = _model.read_subject(_model.read_document(_model.named_paths(policy, said), record.value), said)
        return None, None if subject is None else subject.encode()

    def _remember(self, ask: Callable[[str, Stored, S], T], source: str, record: Stored, state: S) -> T:
        """Ask, or remember what was answered to the same question: an offset makes no difference to the model."""
        asked = source, record.key, record.value, record.timestamp, state
        known: T | None = self._known.get(asked)
        if known is None:
            if len(self._known) >= self.remembered:
                self._known.clear()
            known = self._known[asked] = ask(source, record, state)
        return known

    def _quarantined(self, record: Stored, reason: str | None) -> Outcome:
        key = "absent" if record.key is None else "present" if record.key else "empty"
        return {self._names.quarantine: (reason, key, len(record.value or b""))}


def _as_source_allows(policy: dict[str, Any], source: dict[str, Any]) -> dict[str, Any]:
    """Return the policy with the rungs of a source: what is not our own dealing gives nothing above anonymous."""
    if source["own"]:
        return policy
    lowered = {
        name: purpose | {"rung": LADDER[min(LADDER.index(purpose["rung"]), LADDER.index("anonymous"))]}
        for name, purpose in policy["purposes"].items()
    }
    return policy | {"purposes": lowered}


@lru_cache(maxsize=8)
def oracle_of(policy: str, secret: bytes, now: int) -> Oracle:
    return Oracle(json.loads(policy), secret, now)


def published(record: Stored) -> Shown:
    """Show an output as the broker has it. What no output may look like equals nothing that the model says."""
    try:
        headers = dict(record.headers)
        del headers["celosia-source"]
        if len(headers) != len(record.headers) - 1 or record.value is None:
            return ("no output",)
        return record.key, canonical(parse(record.value.decode())), headers, record.timestamp
    except (ValueError, KeyError, RecursionError):
        return ("no output",)


def rekeyed(record: Stored, number: int, raw: Stored) -> Shown:
    """Show a re-keyed event on a partition. A time that Kafka does not take (-1) is not compared."""
    time = record.timestamp if raw.timestamp >= 0 else None
    return number, record.key, record.value or b"", tuple(record.headers), time


def read_quarantine(record: Stored) -> dict[str, Any] | None:
    """Read a quarantine record, None if it is none: nothing may stand in it but what has a place there."""
    try:
        said: dict[str, Any] = parse((record.value or b"").decode())
        place, shape = said["source"], said.get("shape", {})
        numbers = [place["partition"], place["offset"], said["size"], said.get("unnamed", 0), said.get("to_offset", 0)]
        if (
            record.key is None
            and not record.headers
            and set(place) == {"topic", "partition", "offset"}
            and {"source", "reason", "policy", "key", "size"} <= set(said)
            and set(said) <= {"source", "reason", "policy", "key", "size", "shape", "unnamed", "to_offset"}
            and all(type(number) is int and number >= 0 for number in numbers)
            and set(shape.values()) <= _SHAPES
        ):
            return said
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    return None


_SHAPES = {"object", "array", "string", "number", "boolean", "null"}


# --- what celosia writes for operators --------------------------------------------------------------------------------


def read_receipt(record: Stored, names: Names, number: int) -> int | None:
    """Return through where a receipt says that consents are in force, None if it is none of this partition."""
    try:
        said = parse((record.value or b"").decode())
        through = said.pop("through")
        if (
            said == {"topic": names.consents, "partition": number, "policy": names.stamp}
            and record.key == b"%d" % number
            and not record.headers
            and type(through) is int
            and through >= 0
        ):
            return through
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    return None


# --- sealed sources ---------------------------------------------------------------------------------------------------

_BLOCK = struct.Struct(">4sIQ")


class Seals:
    """Opens the seals of all purposes, many at once: one AES-256 block each, as `streams/keys.py` describes."""

    def __init__(self, secret: bytes, topics: Iterable[str]) -> None:
        self._secret = secret
        self._topics = {hashlib.blake2b(topic.encode(), digest_size=4).digest(): topic for topic in topics}

    def open(self, purpose: str, tokens: Sequence[bytes]) -> list[tuple[str, int, int] | None]:
        """Return topic, partition and offset of each token; None for one that was not made here."""
        # What is no token is opened as zeros: they lead to no topic.
        blocks = b"".join([token if _TOKEN.fullmatch(token) else b"00" * _BLOCK.size for token in tokens])
        # Single blocks, each sealed for itself: see `Seal`.
        cipher = Cipher(algorithms.AES256(self._key(purpose)), modes.ECB())  # noqa: S305
        opened = cipher.decryptor().update(bytes.fromhex(blocks.decode()))
        return [
            None if topic is None else (topic, partition, offset)
            for short, partition, offset in _BLOCK.iter_unpack(opened)
            for topic in [self._topics.get(short)]
        ]

    def _key(self, purpose: str) -> bytes:
        extracted = hmac.digest(bytes(32), self._secret, "sha256")
        return hmac.digest(extracted, b"\0".join([b"celosia/1", b"seal", purpose.encode()]) + b"\x01", "sha256")


_TOKEN = re.compile(rb"[0-9a-f]{32}")


def sealed_source(record: Stored) -> bytes:
    """Return an output's sealed source, nothing where it has none."""
    headers = record.headers
    if headers and headers[-1][0] == "celosia-source":
        return headers[-1][1] or b""
    return next((value or b"" for name, value in headers if name == "celosia-source"), b"")
