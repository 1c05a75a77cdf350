"""The oracle: what becomes of one event, computed slowly and obviously from the documents alone.

It shares no code with `streams`: plain `json`, dicts, `datetime`, `hmac`. It was written from the policy language, the
decision in `streams/decision.py`'s docstring, rule 1, and the words of `Reason` and `Refusal`; where several reasons
apply at once it reports the first in the order of `predict`.

Nothing here is clever on purpose. If it disagrees with the program, one of the two is wrong; find out which.
"""

import hashlib
import hmac
import ipaddress
import json
import re
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from math import ceil, floor
from typing import Any, NamedTuple
from urllib.parse import quote_plus, unquote_plus

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY = 86_400_000
LADDER = ["nothing", "crowd", "anonymous", "pseudonymous", "identified"]
UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": DAY}

REFUSALS = [
    "no_subject",
    "event_not_named",
    "partition_blocked",
    "no_consent",
    "consent_unreadable",
    "not_allowed",
    "recorded_before_consent",
    "expired",
    "rung_too_low",
    "nothing_left",
]


class Published(NamedTuple):
    """One output: the value parsed, the headers without the sealed source."""

    topic: str
    key: bytes | None
    value: Any
    headers: dict[str, bytes]
    timestamp: int


class Prediction(NamedTuple):
    """What must become of one event."""

    kind: str
    reason: str | None = None
    outputs: tuple[Published, ...] = ()
    refusals: tuple[tuple[str, str], ...] = ()


class Event(NamedTuple):
    """A raw record of one source."""

    value: bytes | None
    key: bytes | None
    timestamp: int
    source: str
    keyed: bool = True


class Quarantined(Exception):
    """This record cannot be handled."""


class Suppressed(Exception):
    """Consent or policy say no."""


History = list[tuple[bytes | None, bytes | None]]
"""The records of a consent partition, oldest first: key and value."""


def predict(policy: dict[str, Any], secret: bytes, event: Event, history: History, now: int) -> Prediction:
    """Say what must become of one event."""
    try:
        return Prediction("published", None, *serve(policy, secret, event, history, now))
    except Quarantined as quarantined:
        return Prediction("quarantined", quarantined.args[0])
    except Suppressed as suppressed:
        reason, *refusals = suppressed.args
        return Prediction("suppressed", reason, (), tuple(refusals))


def serve(
    policy: dict[str, Any], secret: bytes, event: Event, history: History, now: int
) -> tuple[tuple[Published, ...], tuple[tuple[str, str], ...]]:
    """Decide for each purpose and build what is published."""
    source = policy["sources"][event.source]
    document = read_document(named_paths(policy, source), event.value)
    kind = read_type(document, source)
    time = read_time(document, source)
    subject = read_subject(document, source)
    if event.keyed and subject is not None and event.key != subject.encode():
        raise Quarantined("key_is_not_subject")
    if subject is None:
        raise Suppressed("no_subject")
    fields = policy["events"].get(kind, {})
    purposes = [name for name in policy["purposes"] if any(serves(rule, name) for rule in fields.values())]
    if not purposes:
        raise Suppressed("event_not_named")
    if any(key is None or not is_utf8(key) for key, _ in history):
        raise Suppressed("partition_blocked")
    consent = consent_in_force(history, subject)
    if consent is None:
        raise Suppressed("no_consent")

    said = [event.timestamp] if time is None else [event.timestamp, time]
    earliest, latest = min(now, *said), max(now, *said)
    outputs, refusals = [], []
    for name in purposes:
        try:
            rung = decide(policy, name, fields, consent, earliest, latest, duration(source.get("clock_skew", "0s")))
            body = minimized(policy, secret, name, rung, fields, document, earliest)
        except Suppressed as no:
            refusals.append((name, no.args[0]))
        else:
            outputs.append(output(policy, secret, source, kind, name, rung, fields, body, consent, subject, earliest))
    if not outputs:
        raise Suppressed(max((why for _, why in refusals), key=REFUSALS.index), *refusals)
    return tuple(outputs), tuple(refusals)


# --- the envelope -----------------------------------------------------------------------------------------------------


class Members(list[tuple[str, Any]]):
    """A JSON object with all its members, repeated names included."""

    def get(self, name: str) -> Any:
        """Return the member of this name; the last one counts."""
        return dict(self).get(name)


class Immense:
    """A number that is grammatical and that no reader can hold: 1e999, or 5,000 digits."""


def read_document(paths: set[str], value: bytes | None) -> Members:
    """Read one JSON object in UTF-8, or say what is wrong with it."""
    if not value:
        raise Quarantined("no_value")
    if depth(value) > 128:
        raise Quarantined("too_deep")
    try:
        document = parse(value)
    except ValueError:
        raise Quarantined("malformed") from None
    groups = {path.rsplit(".", cut)[0] for path in paths for cut in range(1, path.count(".") + 1)}
    here = list(occurrences_of(document, paths))
    odd = not isinstance(document, Members) or any(
        not isinstance(group, Members) for group in occurrences_of(document, groups)
    )
    # A number that nobody can hold matters where it is read: at a named field; everywhere if the shape is in question.
    if any(isinstance(inner, Immense) for read in ([document] if odd else here) for inner in walk(read)):
        raise Quarantined("malformed")
    if not isinstance(document, Members):
        raise Quarantined("not_an_object")
    for path in sorted(groups, key=len):
        group = at(document, path)
        if group is not None and not isinstance(group, Members):
            raise Quarantined("wrong_shape")
    return document


def parse(value: bytes) -> Any:
    """Parse JSON, strictly: UTF-8 throughout, no NaN, no lone surrogates; repeated names are kept."""

    def refuse(_constant: str) -> None:
        raise ValueError("not JSON")

    document = json.loads(
        value.decode("utf-8"),
        object_pairs_hook=Members,
        parse_constant=refuse,
        parse_int=lambda digits: int(digits) if len(digits.lstrip("-")) <= 4300 else Immense(),
        parse_float=lambda digits: Immense() if float(digits) in (float("inf"), float("-inf")) else float(digits),
    )
    for inner in walk(document):
        if isinstance(inner, str):
            inner.encode()  # raises for a lone surrogate
    return document


def walk(value: Any) -> Iterator[Any]:
    """Yield a value, all names and all values inside."""
    yield value
    if isinstance(value, Members):
        for name, below in value:
            yield name
            yield from walk(below)
    elif isinstance(value, list):
        for below in value:
            yield from walk(below)


def depth(value: bytes) -> int:
    """Count how deep objects and arrays are nested, letter by letter; what stands in strings does not count."""
    deepest = level = 0
    in_string = escaped = False
    for letter in value.decode("latin-1"):
        if in_string:
            in_string = escaped or letter != '"'
            escaped = letter == "\\" and not escaped
        elif letter == '"':
            in_string = True
        elif letter in "[{":
            level += 1
            deepest = max(deepest, level)
        elif letter in "]}":
            level -= 1
    return deepest


def named_paths(policy: dict[str, Any], source: dict[str, Any]) -> set[str]:
    """Return all paths that are read in a source: the fields of all events, and the envelope."""
    envelope = {source.get(what) for what in ("subject", "type", "time", "id")}
    return {path for fields in policy["events"].values() for path in fields} | {path for path in envelope if path}


def occurrences_of(document: Any, paths: Iterable[str]) -> Iterator[Any]:
    """Yield every value that stands at one of the paths, repeated names included."""
    for path in paths:
        found = [document]
        for step in path.split("."):
            found = [below for group in found if isinstance(group, Members) for name, below in group if name == step]
        yield from found


def at(document: Any, path: str) -> Any:
    """Return the value at a path, None where there is none."""
    for step in path.split("."):
        if not isinstance(document, Members):
            return None
        document = document.get(step)
    return document


def repeated(document: Any, names: set[str]) -> bool:
    """Tell whether any object gives one of the names twice."""
    for inner in walk(document):
        if isinstance(inner, Members):
            given = [name for name, _ in inner if name in names]
            if len(given) != len(set(given)):
                return True
    return False


def read_type(document: Members, source: dict[str, Any]) -> str:
    """Return the event's type."""
    if repeated(document, set(f"{source['subject']}.{source['type']}".split("."))):
        raise Quarantined("duplicate_name")
    kind = at(document, source["type"])
    if not isinstance(kind, str) or kind == "":
        raise Quarantined("bad_type")
    return kind


def read_time(document: Members, source: dict[str, Any]) -> int | None:
    """Return the event's time in milliseconds, None where the source has none."""
    if source.get("time") is None:
        return None
    time = moment(at(document, source["time"]))
    if time is None:
        raise Quarantined("bad_time")
    return time


def read_subject(document: Members, source: dict[str, Any]) -> str | None:
    """Return whom the event is about, None where it says nobody."""
    subject = at(document, source["subject"])
    if subject is None:
        return None
    if isinstance(subject, int) and not isinstance(subject, bool):
        subject = str(subject)
    if not isinstance(subject, str) or not 1 <= len(subject.encode()) <= 1024:
        raise Quarantined("bad_subject")
    return subject


def is_utf8(data: bytes) -> bool:
    """Tell whether bytes are UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


# --- time -------------------------------------------------------------------------------------------------------------

RFC_3339 = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:Z|([+-])(\d\d):(\d\d))", re.ASCII)


def moment(value: Any, *, up: bool = False) -> int | None:
    """Return a time in milliseconds: RFC 3339 with an offset, or an integer. None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) < 1 << 62 else None
    found = RFC_3339.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return None
    year, month, day, hour, minute, second = map(int, found.groups()[:6])
    offset_hours, offset_minutes = int(found[9] or 0), int(found[10] or 0)
    if offset_hours > 23 or offset_minutes > 59:
        return None
    try:
        whole = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return None
    seconds = (whole - EPOCH) // timedelta(seconds=1)
    offset = (offset_hours * 60 + offset_minutes) * 60
    seconds += offset if found[8] == "-" else -offset
    exact = 1000 * (seconds + Fraction(f"0.{found[7] or 0}"))
    return ceil(exact) if up else floor(exact)


def duration(text: str) -> int:
    """Return 30s, 10m, 12h or 30d in milliseconds."""
    found = re.fullmatch(r"(\d+)(ms|s|m|h|d)", text)
    assert found is not None
    return int(found[1]) * UNITS[found[2]]


def written(ms: int) -> str:
    """Write a time as RFC 3339."""
    try:
        when = EPOCH + timedelta(milliseconds=ms)
    except OverflowError:
        return "9999-12-31T23:59:59.999Z" if ms > 0 else "0001-01-01T00:00:00Z"
    text = f"{when.year:04}-{when.month:02}-{when.day:02}T{when.hour:02}:{when.minute:02}:{when.second:02}"
    return text + (f".{when.microsecond // 1000:03}Z" if when.microsecond else "Z")


def cut(ms: int, precision: str) -> int | None:
    """Cut a time to the beginning of its hour, day or month in UTC; None where no calendar has it."""
    try:
        when = EPOCH + timedelta(milliseconds=ms)
    except OverflowError:
        return None
    when = when.replace(minute=0, second=0, microsecond=0)
    if precision in ("day", "month"):
        when = when.replace(hour=0)
    if precision == "month":
        when = when.replace(day=1)
    return (when - EPOCH) // timedelta(milliseconds=1)


# --- consent and decision ---------------------------------------------------------------------------------------------


class Grant(NamedTuple):
    """One purpose: rung (as a number), and the time from `since` to `until`; infinity where there is no end."""

    rung: int
    since: float
    until: float


class Consent(NamedTuple):
    """What is in force for a person; `grants` is None if it cannot be read."""

    version: int
    grants: dict[str, Grant] | None


def consent_in_force(history: History, subject: str) -> Consent | None:
    """Fold a partition's records for one person.

    The highest version counts; what was said twice under it, the stricter counts. A record that cannot be read denies
    until a version arrives that is higher than all that came before it.
    """
    readable: list[tuple[int, dict[str, Grant]]] = []
    barred = set()
    for key, value in history:
        if key != subject.encode():
            continue
        record = read_consent(value, subject)
        if record is None:
            barred.add(max([version for version, _ in readable], default=-1))
        else:
            readable.append(record)
    if not readable and not barred:
        return None
    newest = max([version for version, _ in readable], default=-1)
    if newest in barred:
        return Consent(newest, None)
    said = [grants for version, grants in readable if version == newest]
    everywhere = set.intersection(*(set(grants) for grants in said))
    return Consent(
        newest,
        {
            purpose: Grant(
                min(grants[purpose].rung for grants in said),
                max(grants[purpose].since for grants in said),
                min(grants[purpose].until for grants in said),
            )
            for purpose in everywhere
        },
    )


def read_consent(value: bytes | None, subject: str) -> tuple[int, dict[str, Grant]] | None:
    """Read one consent record of a person: version and grants, None if anything at all is wrong with it."""
    try:
        document = parse(value or b"")
        for inner in walk(document):
            if isinstance(inner, Members) and len(dict(inner)) != len(inner):
                return None
        record = dict(document)
        if set(record) != {"subject", "version", "purposes"} or record["subject"] != subject or not subject:
            return None
        version = record["version"]
        if type(version) is not int or not 0 <= version < 1 << 63 or not isinstance(record["purposes"], Members):
            return None
        return version, {purpose: read_grant(dict(grant)) for purpose, grant in record["purposes"]}
    except (ValueError, TypeError, RecursionError):
        return None


def read_grant(grant: dict[str, Any]) -> Grant:
    """Read what a record says about one purpose."""
    if not {"rung", "since"} <= set(grant) <= {"rung", "since", "until"}:
        raise ValueError("fields")
    if type(grant["since"]) is not str or type(grant.get("until")) not in (str, type(None)):
        raise ValueError("times")
    since = moment(grant["since"], up=True)
    until = float("inf") if grant.get("until") is None else moment(grant["until"])
    if since is None or until is None:
        raise ValueError("times")
    return Grant(LADDER.index(grant["rung"]), since, until)


def serves(rule: dict[str, Any], purpose: str) -> bool:
    """Tell whether a field may reach a purpose."""
    wanted = rule.get("for")
    return wanted == "all" or (isinstance(wanted, list) and purpose in wanted)


def decide(
    policy: dict[str, Any],
    purpose: str,
    fields: dict[str, Any],
    consent: Consent,
    earliest: int,
    latest: int,
    skew: int,
) -> int:
    """Rule 1, and the ladder: return the rung in force."""
    if consent.grants is None:
        raise Suppressed("consent_unreadable")
    grant = consent.grants.get(purpose)
    if grant is None or grant.rung == 0:
        raise Suppressed("not_allowed")
    if earliest < grant.since + skew:
        raise Suppressed("recorded_before_consent")
    if latest >= grant.until:
        raise Suppressed("expired")
    rung = min(grant.rung, LADDER.index(policy["purposes"][purpose]["rung"]))
    if rung < LADDER.index("anonymous") or not forms(purpose, fields, rung):
        raise Suppressed("rung_too_low")
    return rung


def forms(purpose: str, fields: dict[str, Any], rung: int) -> dict[str, tuple[str, Any]]:
    """Return form and parameters of each field that has a form for the purpose at the rung."""
    found = {}
    for path, rule in fields.items():
        if not serves(rule, purpose):
            continue
        if rule.get("as") is None:
            if rung >= LADDER.index("pseudonymous"):
                found[path] = ("keep", None)
            continue
        below = [name for name in LADDER[: rung + 1] if name in rule["as"]]
        if below:
            form = rule["as"][below[-1]]
            found[path] = (form, None) if isinstance(form, str) else next(iter(form.items()))
    return found


# --- the minimized event ----------------------------------------------------------------------------------------------


def minimized(
    policy: dict[str, Any],
    secret: bytes,
    purpose: str,
    rung: int,
    fields: dict[str, Any],
    document: Members,
    recorded: int,
) -> dict[str, Any]:
    """Build the fields of an output."""
    body: dict[str, Any] = {}
    for path, (name, parameters) in forms(purpose, fields, rung).items():
        value = at(document, path)
        if isinstance(value, (list, type(None))):
            continue
        if name == "pseudonym":
            kept = field_pseudonym(secret, purpose, epoch_of(policy, purpose, recorded), value)
        else:
            kept = FORMS[name](value, parameters)
        if kept is None:
            continue
        place = body
        *groups, leaf = path.split(".")
        for group in groups:
            place = place.setdefault(group, {})
        place[leaf] = kept
    if not body:
        raise Suppressed("nothing_left")
    return body


def output(
    policy: dict[str, Any],
    secret: bytes,
    source: dict[str, Any],
    kind: str,
    purpose: str,
    rung: int,
    fields: dict[str, Any],
    body: dict[str, Any],
    consent: Consent,
    subject: str,
    recorded: int,
) -> Published:
    """Stamp an output and address it."""
    who = None
    if LADDER[rung] == "identified":
        who = subject
    elif LADDER[rung] == "pseudonymous":
        epoch = epoch_of(policy, purpose, recorded)
        who = pseudonym(secret, "subject", purpose, epoch, subject.encode())
    told = told_time(source, purpose, rung, fields, recorded)
    expires = written(told + duration(policy["purposes"][purpose]["lifetime"]))
    stamp = {
        "policy": policy["policy"],
        "version": policy["version"],
        "purpose": purpose,
        "rung": LADDER[rung],
        "event": kind,
        "expires_at": expires,
    }
    headers = {
        "celosia-policy": f"{policy['policy']}@{policy['version']}".encode(),
        "celosia-purpose": purpose.encode(),
        "celosia-rung": LADDER[rung].encode(),
        "celosia-expires-at": expires.encode(),
    }
    # An anonymous output says nothing about its person, not even how often they have changed their mind.
    if who is not None:
        stamp |= {"subject": who, "consent": consent.version}
        headers["celosia-consent"] = str(consent.version).encode()
    value = {**body, "_celosia": stamp}
    if len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()) > 900_000:
        raise Quarantined("too_large")
    topic = policy["purposes"][purpose]["topic"]
    return Published(topic, None if who is None else who.encode(), value, headers, max(0, told))


def told_time(source: dict[str, Any], purpose: str, rung: int, fields: dict[str, Any], recorded: int) -> int:
    """Cut the time of an output to what its fields tell; a day where they tell none.

    A lower rung never tells more: where the time is told at a higher rung only, no finer than there.
    """
    chosen = forms(purpose, fields, rung).get(source.get("time") or "")
    if chosen is not None and chosen[0] == "keep":
        return recorded
    here = chosen is not None and chosen[0] in ("hour", "day", "month")
    precision = chosen[0] if chosen is not None and here else "day"
    if not here and any(
        forms(purpose, fields, above).get(source.get("time") or "") == ("month", None) for above in range(rung, 5)
    ):
        precision = "month"
    told = cut(recorded, precision)
    return recorded if told is None else told


# --- forms: a scalar and parameters in, a value or None out -----------------------------------------------------------


def is_number(value: Any) -> bool:
    """Tell whether a value is a number of a size that doubles have."""
    return (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 1024) or isinstance(
        value, float
    )


def keep(value: Any, _none: None) -> Any:
    """Keep it as it is."""
    return value


def drop(_value: Any, _none: None) -> Any:
    """Leave it out."""


def round_to(value: Any, step: Any) -> Any:
    """Round to the nearest multiple of a step, halves up; to fifteen digits if the step is a fraction."""
    if not is_number(value):
        return None
    multiple = floor(Fraction(value) / Fraction(step) + Fraction(1, 2)) * Fraction(step)
    return int(multiple) if isinstance(step, int) else float(f"{float(multiple):.15g}")


def bucket(value: Any, edges: list[Any]) -> Any:
    """Tell the range: the lower edge is in, the upper is not."""
    labels = [f"<{edges[0]}"]
    labels += [f"{edges[i]}..{edges[i + 1]}" for i in range(len(edges) - 1)]
    labels += [f">={edges[-1]}"]
    if isinstance(value, str):
        return value if value in labels else None
    if not is_number(value):
        return None
    return labels[sum(edge <= value for edge in edges)]


def coarse(precision: str) -> Callable[[Any, None], Any]:
    """Cut a time."""

    def cut_time(value: Any, _none: None) -> Any:
        ms = moment(value)
        told = None if ms is None else cut(ms, precision)
        return None if told is None else written(told)

    return cut_time


def truncate_ip(value: Any, bits: dict[str, int] | None) -> Any:
    """Keep the first bits of an address; an IPv4 address inside an IPv6 one is an IPv4 address."""
    try:
        address = ipaddress.ip_address(value.split("%")[0]) if isinstance(value, str) else None
    except ValueError:
        return None
    if address is None or (address.version == 4 and "%" in value) or value.endswith("%") or value.count("%") > 1:
        return None
    packed = address.packed
    if packed[:12] == bytes(10) + b"\xff\xff":
        address = ipaddress.IPv4Address(packed[12:])
    elif packed[:2] == b"\x20\x02" and len(packed) == 16:
        address = ipaddress.IPv4Address(packed[2:6])
    kept = {"v4": 24, "v6": 48, **(bits or {})}[f"v{address.version}"]
    return str(ipaddress.ip_network(f"{address}/{kept}", strict=False).network_address)


URL = re.compile(r"(https?)://([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#.*)?", re.IGNORECASE | re.DOTALL)


def url(value: Any, parameters: dict[str, Any] | None) -> Any:
    """Keep scheme, host, port and path without its parameters, and the parameters that are named (RFC 3986)."""
    found = URL.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return None
    scheme, authority, path, query = found.groups()
    place = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]*)(?::(\d*))?", authority.rpartition("@")[2], re.ASCII)
    if place is None or not place[1] or int(place[2] or 0) > 65535:
        return None
    kept = []
    for pair in (query or "").split("&"):
        name, _, content = pair.partition("=")
        if pair and unquote_plus(name) in (parameters or {}).get("keep_query", []):
            kept.append(f"{quote_plus(unquote_plus(name))}={quote_plus(unquote_plus(content))}")
    port = f":{int(place[2])}" if int(place[2] or 0) else ""
    path = re.sub(r";[^/]*", "", path)
    return f"{scheme.lower()}://{place[1].lower()}{port}{path}" + ("?" + "&".join(kept) if kept else "")


FORMS: dict[str, Callable[[Any, Any], Any]] = {
    "keep": keep,
    "drop": drop,
    "round": round_to,
    "bucket": bucket,
    "hour": coarse("hour"),
    "day": coarse("day"),
    "month": coarse("month"),
    "truncate_ip": truncate_ip,
    "url": url,
}


# --- pseudonyms: HKDF (RFC 5869) and HMAC (RFC 2104), from the docstring of `streams/keys.py` -------------------------


def epoch_of(policy: dict[str, Any], purpose: str, recorded: int) -> int:
    """Return the number of the epoch that an event was recorded in."""
    return recorded // (duration(policy["purposes"][purpose].get("rotate", "1d")) or DAY)


def pseudonym(secret: bytes, kind: str, purpose: str, epoch: int, value: bytes) -> str:
    """Return the pseudonym: the key's id, a dot, 128 bits of HMAC-SHA-256."""
    info = b"\0".join([b"celosia/1", b"pseudonym", kind.encode(), purpose.encode(), str(epoch).encode()])
    extracted = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    first = hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()
    second = hmac.new(extracted, first + info + b"\x02", hashlib.sha256).digest()
    name = hmac.new(first, value, hashlib.sha256).digest()[:16]
    return urlsafe_b64encode(second[:4]).decode()[:6] + "." + urlsafe_b64encode(name).decode().rstrip("=")


def field_pseudonym(secret: bytes, purpose: str, epoch: int, value: Any) -> str | None:
    """Return the pseudonym of a field: strings and integers have one."""
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        return None
    return pseudonym(secret, "field", purpose, epoch, str(value).encode())
